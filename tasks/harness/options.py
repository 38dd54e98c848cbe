"""Options of every task, and of a batch."""

from dataclasses import dataclass
from typing import Literal

from dino_dense.config.schema import path


@dataclass(frozen=True)
class RunOptions:
    """Which backbone, where, and how (every task)"""

    ckpt: str | None = path()
    """Checkpoint file or run folder, published .pth, timm:NAME, hf-hub:NAME (these download) or random:NAME."""
    out: str | None = path()
    """Folder for results; default runs/TASK/CHECKPOINT-HASH. The same command goes on where it stopped."""
    arch: str | None = None
    """Architecture, where it cannot or should not be read from the file (any timm name)."""
    network: str = "auto"
    """Which network of a training file to measure: auto (the one that the tool's authors evaluate, as DINO its
    teacher), teacher, student, or the prefix of its names in the file."""
    heads: int | None = None
    """Attention heads, where the file does not say them (MoCo v3's ViT-S has 12, DINO's 6)."""
    positions: Literal["official", "hf"] = "official"
    """Which rule resamples a file's position table to other sizes of images: of its authors, or of transformers."""
    layers: tuple[int, ...] = (-1,)
    """Layers whose features are measured, joined along the channels: --layers=-4,-1 (-1 is the last)."""
    norm: bool = True
    """Whether patches and class tokens go through the network's final norm."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the backbone; reduced ones run under autocast."""
    seed: int = 0
    """Of random weights and of every draw."""
