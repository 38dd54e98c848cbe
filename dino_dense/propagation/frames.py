"""Resize frames to the size of a protocol."""

from typing import get_args

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from dino_dense.backbone.grid import fit
from dino_dense.propagation.protocol import Interpolation, Rounding, check_choice

_DINO_MULTIPLE = 64  # dino/eval_video_segmentation.py, read_frame: the long side becomes a multiple of 64


# ---- frames and labels in, masks out


def frame_size(
    height: int, width: int, *, short_side: int | None, rounding: Rounding, patch_size: int
) -> tuple[int, int]:
    """Size (h, w) in pixels to resize a frame and its labels to, multiples of `patch_size`.

    `floor64` is DINO's rule: the short side is `short_side`, the long side is rounded down to a multiple of 64. If
    64 or `short_side` is no multiple of the patch size (patch 14), each side is then rounded down to a multiple.
    (DINO's script swaps the sides of a square frame for its labels only; here frame and labels have the same size.)
    `ceil` rounds the short side up to a multiple of the patch size, scales the long side by the same factor and
    rounds it up (DINOv3's notebook). `nearest` rounds both sides to the nearest multiple (DINOv3's paper, App. D.5).

    Raises:
        ValueError: a side becomes 0.
    """
    check_choice("rounding", rounding, get_args(Rounding))
    native_short, native_long = sorted((height, width))
    short = short_side or native_short
    if rounding == "floor64":
        long = short * native_long // native_short // _DINO_MULTIPLE * _DINO_MULTIPLE
        short, long = fit((short, long), patch_size, "floor", least=0).size
    else:
        short, _ = fit((short, short), patch_size, rounding, least=0).size
        long, _ = fit((short * native_long / native_short, 0), patch_size, rounding, least=0).size
    if not short or not long:
        raise ValueError(
            f"a frame {height} high and {width} wide, by short_side {short_side} and rounding {rounding!r}, "
            f"becomes {short}x{long}: raise short_side (patch size {patch_size}) or choose rounding 'ceil'"
        )
    # In a square frame DINO's script shortens the width.
    return (short, long) if height <= width else (long, short)


def resize_frame(
    frame: npt.NDArray[np.uint8], size: tuple[int, int], interpolation: Interpolation = "bilinear"
) -> npt.NDArray[np.uint8]:
    """Resize a frame, uint8 RGB [H, W, 3], to `size` (h, w).

    As in the references, the 8-bit picture is resized: by OpenCV for bilinear, by PIL (antialiased) for bicubic.
    """
    check_choice("interpolation", interpolation, get_args(Interpolation))
    width_height = size[1], size[0]
    if interpolation == "bilinear":
        return np.asarray(cv2.resize(frame, width_height, interpolation=cv2.INTER_LINEAR), np.uint8)
    return np.array(Image.fromarray(frame).resize(width_height, Image.Resampling.BICUBIC))
