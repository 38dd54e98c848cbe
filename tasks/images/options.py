"""Options of all tasks on center crops of images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dino_dense.config.schema import constant, runtime

Decoder = Literal["pillow", "device"]


@dataclass(frozen=True)
class ImageFeatureOptions:
    """Image preprocessing"""

    resize: int = constant(256, layout="classes")
    """Resize the image's short side to this, bicubic, pixels (eval_knn.py, eval_linear.py)."""
    crop: int = constant(224, layout="classes")
    """Side of the center crop, pixels (eval_knn.py, eval_linear.py); a multiple of the patch size."""
    fast_decode: bool = constant(False, layout="classes")
    """Decode large JPEGs at 1/2, 1/4 or 1/8 size if this is enough: faster, but pixels differ slightly from the
    published protocol's."""
    decode: Decoder = constant("pillow", layout="classes")
    """device: the backbone's device decodes, resizes and crops JPEGs; pixels, and so numbers, differ slightly from the
    published protocol's. Files that it cannot decode are read by Pillow."""
    workers: int | None = runtime(None)
    """Worker processes that read images. None: 0 on a CPU; on CUDA one for each processor, 16 at most."""

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize:
            raise ValueError(f"crop is {self.crop}: expected 1 to resize, {self.resize}.")
        check_decoding(self.decode, self.fast_decode)


def check_decoding(decode: Decoder, fast_decode: bool) -> None:
    """Raise ValueError if both ways to decode faster are asked for."""
    if decode == "device" and fast_decode:
        raise ValueError("decode is device, and fast_decode reduces JPEGs on the CPU: leave one of both out.")
