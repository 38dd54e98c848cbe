"""Decode mask files of any format to numbers or colors and transparency, without interpreting the values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from data import DataError
from data.arrays import Mask, Pixels
from data.mask_json import is_json, read_json_mask

LOSSY_FORMATS = frozenset({"JPEG", "MPO", "JPEG2000"})
GRAY_TOLERANCE = 6  # largest difference between the channels of a gray JPEG
FEW_INDICES = 16  # a gray palette with more entries is a picture's, not a mask's
OPAQUE = 128  # a pixel is visible from this alpha on

Kind = Literal["ids", "levels", "colors"]


class Raster(NamedTuple):
    """One mask file."""

    kind: Kind
    """ids: numbers are ids; levels: ids or brightness; colors."""
    values: npt.NDArray[np.integer]
    """[H, W]; for colors uint8 [H, W, 3]."""
    transparent: Mask | None = None
    """[H, W]; None unless some pixels are transparent and others are not."""
    lossy: bool = False
    """Whether the format is lossy."""
    names: Sequence[str] = ()
    """Names of the ids 1, 2, ..., if the file has names."""


def read_raster(path: Path, frame: str = "") -> Raster:
    """Decode a mask file.

    Args:
        frame: name of the mask's frame, to find the image in COCO's JSON.

    Raises:
        FileNotFoundError: no such file.
        DataError: the file is damaged, or neither a picture nor JSON of labelme or COCO.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such mask. Check the path.")
    if is_json(path):
        ids, names = read_json_mask(path, frame)
        return Raster("ids", ids, names=names)
    try:
        with Image.open(path) as image:
            lossy = image.format in LOSSY_FORMATS
            upright = ImageOps.exif_transpose(image)
            upright.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a mask that can be read ({error}). Replace it.") from None
    if upright.mode in ("P", "PA"):
        return _of_palette(upright)
    if upright.mode in ("L", "1", "F") or upright.mode.startswith("I"):
        return _of_numbers(upright, path, lossy)
    return _of_colors(upright, lossy)


def _of_palette(image: Image.Image) -> Raster:
    """Palette indices are ids if index 0 is background; else the colors are used."""
    shown = np.array(image.convert("RGBA"))
    indices = np.array(image)[..., 0] if image.mode == "PA" else np.array(image)
    used = np.unique(indices)
    first, others = shown[indices == 0], shown[indices > 0]
    dark = _is_ground(others)
    zero_is_ground = not len(first) or bool(_is_ground(first).any()) or not dark.any()
    gray_picture = len(used) > FEW_INDICES and bool((shown[..., :1] == shown[..., :3]).all())
    if not zero_is_ground or gray_picture:
        return _of_colors(image, lossy=False)
    seen = shown[..., 3] >= OPAQUE
    return Raster("ids", np.where(seen, indices, 0) if seen.any() else indices)


def _is_ground(rgba: Pixels) -> Mask:
    """Whether colors [N, 4] are black or transparent."""
    return ~rgba[:, :3].any(axis=1) | (rgba[:, 3] < OPAQUE)


def _of_numbers(image: Image.Image, path: Path, lossy: bool) -> Raster:
    values = np.array(image.convert("L") if image.mode == "1" else image)
    transparent = None
    if (level := image.info.get("transparency")) is not None and isinstance(level, int):
        transparent = _if_some(values == level)
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or values.min() < 0:
            raise DataError(f"{path}: values from {values.min()} to {values.max()}; expected numbers from 0 on.")
        whole = bool((values == np.floor(values)).all())
        values = np.round(values if whole or values.max() > 1 else 255 * values)
    return Raster("levels", values.astype(np.int64), transparent, lossy)


def _of_colors(image: Image.Image, lossy: bool) -> Raster:
    pixels = np.array(image.convert("RGBA"))
    transparent = _if_some(pixels[..., 3] < OPAQUE) if image.has_transparency_data else None
    rgb = pixels[..., :3]
    spread = np.ptp(rgb.astype(np.int16) if transparent is None else rgb[~transparent].astype(np.int16), axis=-1)
    if spread.max(initial=0) <= (GRAY_TOLERANCE if lossy else 0):
        return Raster("levels", rgb[..., 1].astype(np.int64), transparent, lossy)
    return Raster("colors", rgb, transparent, lossy)


def _if_some(mask: Mask) -> Mask | None:
    """The mask if it has both values, else None."""
    return mask if mask.any() and not mask.all() else None
