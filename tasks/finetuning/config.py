"""Settings of a fine-tuning run."""

import math
from dataclasses import dataclass
from typing import Literal

from dino_dense.config.schema import path, runtime

"""Fields that change no result."""

RANDAUGMENT = "rand-m9-mstd0.5-inc1"
"""DeiT's augmentation, in timm's notation."""
LIMITS: dict[str, tuple[float, float]] = {
    "epochs": (1, math.inf),
    "max_steps": (1, math.inf),
    "batch_size": (1, math.inf),
    "accumulate": (1, math.inf),
    "lr_scale_batch": (1, math.inf),
    "min_lr": (0, math.inf),
    "warmup_epochs": (0, math.inf),
    "warmup_lr": (0, math.inf),
    "weight_decay": (0, math.inf),
    "layer_decay": (0, 1),
    "head_lr_scale": (0, math.inf),
    "head_init_scale": (0, math.inf),
    "clip_grad": (0, math.inf),
    "smoothing": (0, 1),
    "mixup": (0, math.inf),
    "cutmix": (0, math.inf),
    "mixing_batch": (2, math.inf),
    "drop_path": (0, 0.99),
    "ema_decay": (0, 1),
    "flip": (0, 1),
    "erasing": (0, 1),
    "repeats": (1, math.inf),
    "eval_every": (1, math.inf),
    "save_every": (1, math.inf),
    "workers": (0, math.inf),
}
"""Smallest and largest value of each number; None is allowed."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Images and recipe (the defaults are a recipe for own images; the presets are DINO's)"""

    data: str | None = path()
    """Folder with train/CLASS/* and val/CLASS/* (or test/); without it, the embedded set."""
    epochs: int = 50
    """Passes over the training images (MAE, arXiv 2111.06377, Tab. 9: 100 for ViT-B, 50 for ViT-L)."""
    max_steps: int | None = None
    """Stop after this many optimizer steps; the schedule still spans all epochs."""
    batch_size: int = 128
    """Images per optimizer step, over all processes; at most all training images."""
    accumulate: int = 1
    """Micro-batches per optimizer step in each process, to save memory."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum 0.9 (timm's, as DeiT uses them)."""
    lr: float = 5e-4
    """Peak learning rate of the last layer, for a batch of lr_scale_batch images (DeiT main.py; dino issue 31)."""
    lr_scale_batch: int | None = 512
    """The lr is multiplied by batch_size / this, as DeiT does with 512 (main.py); null: no scaling."""
    min_lr: float = 1e-6
    """Final learning rate of the cosine (MAE main_finetune.py; DeiT's 1e-5 is above the lr of DINO's CIFAR recipes)."""
    warmup_epochs: int = 5
    """Epochs of linear warm-up from warmup_lr (DeiT main.py)."""
    warmup_lr: float = 1e-6
    """Learning rate of the first step (DeiT main.py; dino issue 81)."""
    weight_decay: float = 0.05
    """Weight decay; not for biases, norms, class token and positions (DeiT main.py; dino issue 81)."""
    layer_decay: float = 0.75
    """Factor on the lr from each layer to the layer below (BEiT; MAE, Tab. 9). DINO's recipes use 1."""
    head_lr_scale: float = 1.0
    """Factor on the lr of the new linear layer."""
    head_init_scale: float = 0.001
    """Factor on the new layer's initial weights, which have deviation 0.02. DINO used smaller weights too (dino issue
    31), by an unpublished factor; this factor is ConvNeXt's and MAE's."""
    clip_grad: float | None = None
    """Largest L2 norm of the whole gradient; null: no clipping (DeiT main.py)."""
    smoothing: float = 0.1
    """Label smoothing (DeiT main.py)."""
    mixup: float = 0.8
    """Alpha of mixup; 0: no mixup (DeiT main.py)."""
    cutmix: float = 1.0
    """Alpha of CutMix, chosen instead of mixup with probability 0.5; 0: no CutMix (DeiT main.py)."""
    mixing_batch: int | None = 128
    """Images that share a random draw of mixup or CutMix, as on one GPU (DeiT: 8 GPUs of 128); null: all of a step."""
    drop_path: float = 0.1
    """Rate of stochastic depth in the last block, from 0 in the first (DeiT main.py)."""
    ema_decay: float | None = None
    """Decay of a moving average of the weights, which is then measured instead; it begins lower, as in the warm-up of
    timm's ModelEmaV3. null: no average."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Share of the image's area that a training crop covers (DeiT, timm's default)."""
    flip: float = 0.5
    """Probability of a horizontal flip (DeiT, timm's default)."""
    randaugment: str | None = RANDAUGMENT
    """timm's RandAugment string (DeiT main.py); null: no RandAugment."""
    erasing: float = 0.25
    """Probability of random erasing, with noise in every pixel (DeiT main.py)."""
    repeats: int = 1
    """Repeated augmentation: copies of an image in a pass, which then has fewer distinct images (DeiT: 3)."""
    resize: int = 256
    """Short side that a test image is resized to, bicubic, pixels (DeiT datasets.py)."""
    crop: int = 224
    """Side of training crops and of the test images' center crop, pixels; a multiple of the patch size."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Precision of training and its evaluation under autocast; --dtype is only for frozen backbones."""
    eval_every: int = 1
    """Epochs between evaluations; the last epoch is always evaluated."""
    save_every: int | None = runtime(None)
    """Optimizer steps between saved states, in addition to the end of each epoch; does not change the result."""
    activation_checkpointing: bool = runtime(False)
    """For ViTs: keep only the input of each block for the backward pass, and compute the block again there."""
    workers: int | None = runtime(None)
    """Worker processes that read images. None: 0 on a CPU; on CUDA one for each processor, 16 at most."""

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                expected = f"at least {low}" if high == math.inf else f"{low} to {high}"
                raise ValueError(f"{name} is {value}, expected {expected}.")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"lr is {self.lr}, expected a number above 0.")
        if self.mixing_batch is not None and self.mixing_batch % 2:
            raise ValueError(
                f"mixing_batch is {self.mixing_batch}, expected an even number: images are mixed in pairs."
            )
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}, expected at most epochs, {self.epochs}.")
        if not 0 < self.crop <= self.resize:
            raise ValueError(f"crop is {self.crop}, expected 1 to resize, {self.resize}.")
        if len(self.crop_scale) != 2 or not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale is {self.crop_scale}, expected two rising numbers in (0, 1].")
        _check_randaugment(self.randaugment)


def _check_randaugment(text: str | None) -> None:
    if text in (None, RANDAUGMENT):
        return
    from timm.data.auto_augment import rand_augment_transform

    try:
        rand_augment_transform(text, {})
    except (AssertionError, ValueError, KeyError):
        raise ValueError(f"randaugment is {text!r}, expected a string such as rand-m9-mstd0.5-inc1.") from None
