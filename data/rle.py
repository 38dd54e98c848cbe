"""COCO's run-length encoding of masks."""

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from data.arrays import Mask


def encode_mask(mask: Mask) -> dict[str, Any]:
    """A mask [H, W] -> COCO's compressed run lengths, for JSON."""
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode_mask(encoded: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """The inverse of `encode_mask`, values 0 and 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0.11 under NumPy 2
        return coco_mask.decode(encoded)
