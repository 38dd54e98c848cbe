"""The constants of probes on frozen features."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PixelProbe:
    """Training and use of the linear layer (defaults: DINOv3, arXiv 2508.10104, App. D)"""

    steps: int = 40_000
    """Optimizer steps (DINOv3's linear segmentation, arXiv 2508.10104, App. D)."""
    batch_size: int = 16
    """Crops per step, over all processes (DINOv3)."""
    lr: float = 1e-3
    """Learning rate of AdamW, with a cosine to 0 over the steps (DINOv3 sweeps 1e-4, 3e-4, 1e-3)."""
    weight_decay: float = 1e-3
    """Weight decay of AdamW (DINOv3 sweeps 1e-4, 1e-3)."""
    warmup: int = 1500
    """Steps of warm-up, at most a tenth of all steps (config-ade20k-linear-training.yaml)."""
    dropout: float = 0.1
    """Share of the channels of each training crop that is dropped before the layer (dinov3, linear_head.py)."""
    crop: int = 512
    """Side of training crops and windows, and short side of whole images, pixels (DINOv3); must be a multiple of the
    patch size: 518 for patch 14."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the short side of a training image before its crop, as a multiple of `crop` (DINOv3)."""
    class_share: float = 0.75
    """A crop is drawn again where one class has this share of its labeled pixels or more, ten times at most (dinov3,
    transforms.py); 1: never."""
    distort: bool = True
    """Change brightness, contrast, saturation and hue of training crops (dinov3, `PhotoMetricDistortion`)."""
    augment: bool = True
    """False: the middle square of every training image at short side `crop`, its tokens extracted once and kept in
    memory (for laptops); scale, class_share, distort and flips are then unused. Ours."""
    window: Literal["whole", "slide"] = "slide"
    """slide: windows of `crop` of the image at short side `crop`, logits averaged where they overlap (DINOv3); whole:
    the image at once. Ours."""
    stride: int | None = None
    """Between windows, pixels; None: two thirds of the crop, rounded down (DINOv3: 341 of 512)."""
    evaluations: int = 8
    """Times that the layer is scored on the images of the split while it trains; the best of them is reported (dinov3,
    train.py: every 5000 of 40,000 steps). 1: the last layer is scored, and nothing chosen on these images."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "crop", "stride", "evaluations"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}: expected 1 or more")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {self.scale}: expected a range (low, high) with 0 < low <= high")
        if not 0 <= self.dropout < 1 or not 0 < self.class_share <= 1:
            raise ValueError(
                f"dropout is {self.dropout} and class_share {self.class_share}: expected 0 to below 1, and above 0 to 1"
            )
        if self.window == "slide" and self.stride is not None and self.stride > self.crop:
            raise ValueError(f"stride {self.stride} is larger than crop {self.crop}: pixels would be left out")

    @property
    def window_stride(self) -> int:
        """`stride`, decided, pixels."""
        return max(1, 2 * self.crop // 3) if self.stride is None else self.stride
