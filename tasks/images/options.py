"""Options of every task that looks at middle squares of images."""

from __future__ import annotations

from dataclasses import dataclass

from dino_dense.config.schema import constant, runtime


@dataclass(frozen=True)
class ImageFeatureOptions:
    """How images become features"""

    resize: int = constant(256, layout="classes")
    """Short side the image is resized to, bicubic, pixels (eval_knn.py, eval_linear.py)."""
    crop: int = constant(224, layout="classes")
    """Side of the center crop, pixels (eval_knn.py, eval_linear.py); a multiple of the patch size."""
    fast_decode: bool = constant(False, layout="classes")
    """Decode large JPEGs at a half, a quarter or an eighth of their size where that suffices: faster, and pixels differ
    a little from the published protocol's."""
    workers: int = runtime(0)
    """Processes that read images beside the main one."""

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop is {self.crop}: expected 1 to resize, {self.resize}.")
