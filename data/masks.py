"""Read and write mask files: ids, palettes, void, painted masks."""

import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from data import DataError, png
from data.arrays import Pixels

VOID_ID = 255  # the official scorer turns this value of a 2017 ground truth into background


ID_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".pgm")
"""Suffixes, in any case, of lossless formats for ids (not JPEG)."""


def read_ids(path: str | Path, advice: str = "") -> Pixels:
    """Raw ids uint8 [H, W] of a palette or grayscale file (the palette index, not its color).

    Wider values and three equal channels are read too, if all ids are below 256.

    Args:
        advice: end of the message for a mask with colors.

    Raises:
        DataError: the file is missing, damaged, or has no such ids.
    """
    mode, pixels = _decode_mask(Path(path))
    if mode in ("LA", "RGBA", "PA"):
        if len(np.unique(pixels[..., -1])) > 1:
            raise DataError(f"{path}: a mask with transparent pixels, which are no ids. Save it without transparency")
        pixels = pixels[..., :-1]
    if pixels.ndim == 3:
        if mode == "CMYK" or (pixels != pixels[..., :1]).any():
            raise DataError(
                f"{path}: a mask of mode {mode}, where ids need an 8-bit palette (P) or grayscale (L) PNG. "
                f"Colors are not ids: convert the file, so that each pixel is a number{advice}"
            )
        pixels = pixels[..., 0]
    if pixels.size and (pixels.min() < 0 or pixels.max() > VOID_ID or (pixels != np.floor(pixels)).any()):
        raise DataError(
            f"{path}: values from {pixels.min()} to {pixels.max()} ({mode}); ids are whole numbers from 0 to 254, and "
            f"{VOID_ID} is void. Relabel them"
        )
    return pixels.astype(np.uint8)


def read_foreground(path: str | Path) -> Pixels:
    """Foreground uint8 [H, W] in {0, 1} of a mask of any mode: 1 if the value or any color is above 0."""
    mode, pixels = _decode_mask(Path(path))
    if pixels.ndim == 3:
        colors = pixels.shape[-1] - mode.endswith("A")  # alpha says nothing about the object
        pixels = pixels[..., :colors].max(axis=-1)
    return (pixels > 0).astype(np.uint8)


def write_mask(path: str | Path, ids: Pixels, palette: Sequence[int] | None = None) -> None:
    """Write ids uint8 [H, W] as a palette PNG, atomically.

    Args:
        palette: up to 768 values of its colors; PASCAL VOC's without it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.ascontiguousarray(ids, np.uint8), mode="P")
    image.putpalette(PALETTE.tobytes() if palette is None else palette)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        image.save(unfinished, format="PNG")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _voc_palette() -> Pixels:
    """PASCAL VOC's 256 label colors [256, 3]: an id's bits, three at a time, fill R, G, B from the top."""
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for channel in range(3):
        for step in range(8):
            palette[:, channel] |= ((ids >> (3 * step + channel) & 1) << (7 - step)).astype(np.uint8)
    return palette


PALETTE = _voc_palette()


def _decode_mask(path: Path) -> tuple[str, npt.NDArray]:
    """PIL mode and values of a mask; DataError for a truncated or damaged file."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        stored = png.read_stored(path.read_bytes())
        if stored is not None:
            return stored
        with Image.open(path) as image:
            return image.mode, np.array(image)
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error) as error:
        raise DataError(
            f"{path}: unreadable mask ({error}): the file is truncated or damaged, copy it again"
        ) from error
