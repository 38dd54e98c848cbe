"""A configuration that trains in a second, and pictures for it."""

from pathlib import Path

import numpy as np
from PIL import Image

from dino_dense.pretrain.config import PretrainConfig

TINY = PretrainConfig(
    arch="vit_micro_patch8_32",
    out_dim=48,
    head_hidden_dim=32,
    head_bottleneck_dim=16,
    global_crop_size=32,
    local_crop_size=16,
    local_crops_number=2,
    batch_size=8,
    epochs=5,
    warmup_epochs=1,
    lr=0.01,
    drop_path_rate=0.3,
    teacher_temp=0.06,
    warmup_teacher_temp_epochs=3,
    device="cpu",
    num_workers=0,
    log_every=1,
    save_every=5,
)
"""26 pictures make 3 steps an epoch, 15 in all; the schedules, drop path and frozen layer are all at work."""


def write_pictures(folder: Path, count: int, suffix: str = "png") -> None:
    """Pictures of random blocks of color."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for i in range(count):
        blocks = generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((48, 40), Image.Resampling.BICUBIC).save(folder / f"{i}.{suffix}")
