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
    network: Literal["teacher", "student"] = "teacher"
    """Which network of a training file to measure (the paper measures the teacher)."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the backbone; reduced ones run under autocast."""
    seed: int = 0
    """Of random weights and of every draw."""
