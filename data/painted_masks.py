"""Masks that a person painted, for the frames of a clip."""

import contextlib
from pathlib import Path

import numpy as np
from PIL import Image

from data import DataError
from data.arrays import Pixels
from data.masks import PALETTE, VOID_ID


def read_painted_mask(path: Path | str, size: tuple[int, int]) -> Pixels:
    """A mask that a person made, as object ids uint8 [H, W].

    Palette or grey values are the ids, as in DAVIS, but for a picture of black and white alone (0, 255), whose white
    is object 1. A colour picture is read by the colours of DAVIS' palette; where it is black (or transparent) and one
    colour that is not of the palette, that is object 1.

    Args:
        size: (height, width) it must have, pixels.

    Raises:
        FileNotFoundError: no such file.
        DataError: not an image, another size, no object, or colours that are no ids.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such mask. Check the path.")
    with contextlib.suppress(OSError), Image.open(path) as image:
        if image.mode in ("P", "L", "1"):
            values: Pixels = np.array(image.convert("L") if image.mode == "1" else image, np.uint8)
            return _checked_ids(values, path, size)
    rgb = _over_black(path)
    colours = np.unique(rgb.reshape(-1, 3), axis=0)
    lit = colours[colours.any(axis=1)]
    known = {tuple(colour): identity for identity, colour in enumerate(PALETTE.tolist())}
    if len(lit) == 1 and tuple(lit[0].tolist()) not in known:
        return _checked_ids(np.asarray(rgb.any(axis=2), np.uint8), path, size)
    if not all(tuple(colour) in known for colour in colours.tolist()):
        raise DataError(
            f"{path}: {len(colours)} colours, which are no object ids. Expected a palette or grey PNG whose values are "
            "ids (0 background), or one flat colour on black, without soft edges."
        )
    ids = np.zeros(rgb.shape[:2], np.uint8)
    for colour in lit.tolist():
        ids[(rgb == colour).all(axis=2)] = known[tuple(colour)]
    return _checked_ids(ids, path, size)


def _over_black(path: Path | str) -> Pixels:
    """RGB [H, W, 3], transparent pixels black."""
    try:
        with Image.open(path) as image:
            if image.has_transparency_data:
                pixels = np.array(image.convert("RGBA"))
                return np.where(pixels[..., 3:] > VOID_ID // 2, pixels[..., :3], 0).astype(np.uint8)
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise DataError(f"{path}: not a mask that can be read ({error}). Replace it.") from None


def _checked_ids(ids: Pixels, path: Path | str, size: tuple[int, int]) -> Pixels:
    if ids.shape != size:
        raise DataError(
            f"{path}: {ids.shape[0]}x{ids.shape[1]} pixels (height x width), but the frames have {size[0]}x{size[1]}. "
            "Paint the mask on a frame at its full size."
        )
    found = np.unique(ids)
    found = found[found > 0]
    if not len(found):
        raise DataError(f"{path}: the mask has no object (all of it is 0). Paint one.")
    if list(found) == [VOID_ID]:
        return (ids > 0).astype(np.uint8)
    if VOID_ID in found:
        raise DataError(
            f"{path}: ids {', '.join(map(str, found))}; {VOID_ID} is void in DAVIS, and no object. Use ids 1, 2, ..."
        )
    return ids
