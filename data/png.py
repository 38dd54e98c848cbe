"""Stored values of an 8-bit gray or palette PNG (PNG specification, third edition, W3C 2025).

OpenCV decodes twice as fast as Pillow and releases Python's lock, but converts palette indices to colors. So the header
is changed to gray before decoding, which keeps the indices.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Literal, NamedTuple

import cv2
import numpy as np

from data.arrays import Pixels

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _PALETTE = 0, 3  # color types (table 12)
_FRAME = 12  # bytes of a chunk besides its data: length, type, checksum


class Stored(NamedTuple):
    """The stored values of a picture."""

    mode: Literal["P", "L"]
    """Palette indices or gray values, by Pillow's letters."""
    values: Pixels
    """[H, W]"""


def read_stored(encoded: bytes) -> Stored | None:
    """The values of a complete 8-bit gray or palette PNG; None for any other or damaged file."""
    chunks = list(_chunks(encoded))
    kinds = {kind for kind, _ in chunks}
    if (
        not chunks
        or chunks[0][0] != b"IHDR"
        or len(chunks[0][1]) != 13 + _FRAME
        or chunks[-1][0] != b"IEND"
        or b"acTL" in kinds
    ):
        return None
    width, height, depth, color, *methods = struct.unpack(">IIBBBBB", chunks[0][1][8:21])
    if depth != 8 or color not in (_GRAY, _PALETTE) or any(methods) or (color == _PALETTE) != (b"PLTE" in kinds):
        return None
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, _GRAY, 0, 0, 0)
    parts = [SIGNATURE, struct.pack(">I", 13), header, struct.pack(">I", zlib.crc32(header))]
    parts += [chunk for kind, chunk in chunks if kind in (b"IDAT", b"IEND")]
    try:
        values = cv2.imdecode(np.frombuffer(b"".join(parts), np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # too many pixels for OpenCV
        return None
    if values is None or values.shape != (height, width) or values.dtype != np.uint8:
        return None
    return Stored("P" if color == _PALETTE else "L", np.asarray(values, np.uint8))


def _chunks(encoded: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and bytes of each chunk, up to the end or to the first truncated or damaged chunk."""
    if not encoded.startswith(SIGNATURE):
        return
    position = len(SIGNATURE)
    while position + _FRAME <= len(encoded):
        (length,) = struct.unpack_from(">I", encoded, position)
        chunk = encoded[position : position + _FRAME + length]
        kind = chunk[4:8]
        if len(chunk) < _FRAME + length or zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
            return
        yield kind, chunk
        if kind == b"IEND":
            return
        position += len(chunk)
