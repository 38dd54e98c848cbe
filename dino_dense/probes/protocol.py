"""The constants of probes on frozen features."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PixelProbe:
    """How the linear layer is trained and applied (defaults: DINOv3, arXiv 2508.10104, App. D)"""

    steps: int = 40_000
    """Optimizer steps (DINOv3's linear segmentation, arXiv 2508.10104, App. D)."""
    batch_size: int = 16
    """Crops a step, over all processes (DINOv3)."""
    lr: float = 1e-3
    """Of AdamW, falling to 0 by a cosine over the steps (DINOv3 sweeps 1e-4, 3e-4, 1e-3)."""
    weight_decay: float = 1e-3
    """Of AdamW (DINOv3 sweeps 1e-4, 1e-3)."""
    warmup: int = 1500
    """Steps of linear warm-up, at most a tenth of all steps. Ours; no source states it."""
    crop: int = 512
    """Side of training crops and windows, and short side of whole images, pixels (DINOv3); must be a multiple of the
    patch size: 518 for patch 14."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the short side of a training image before its crop, as a multiple of `crop` (DINOv3)."""
    augment: bool = True
    """False: the middle square of every training image at short side `crop`, its tokens extracted once and kept in
    memory (for laptops); scale and flips are then unused. Ours."""
    window: Literal["whole", "slide"] = "whole"
    """whole: the image at short side `crop`; slide: windows of `crop`, scores averaged where they overlap."""
    stride: int = 341
    """Between windows, pixels (DINOv3)."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "crop", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 1 or more")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {self.scale}: expected a range (low, high) with 0 < low <= high")
        if self.window == "slide" and self.stride > self.crop:
            raise ValueError(f"stride {self.stride} is larger than crop {self.crop}: pixels would be left out")
