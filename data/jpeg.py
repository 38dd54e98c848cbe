"""Inspect JPEG files without decoding: their size, and whether they are complete (ITU-T T.81).

OpenCV fills the missing part of a truncated file with gray and only warns on stderr, so completeness is checked first.
"""

from collections.abc import Iterator
from typing import NamedTuple

START_OF_IMAGE, END_OF_IMAGE = b"\xff\xd8", b"\xff\xd9"
_START_OF_SCAN, _ADOBE = 0xDA, 0xEE
_HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive (table B.1)


class Header(NamedTuple):
    """The frame header (section B.2.2)."""

    height: int
    width: int
    channels: int
    """1 gray, 3 color, 4 CMYK and similar."""


def read_header(encoded: bytes) -> Header | None:
    """The size of an 8-bit Huffman-coded JPEG, which is nearly every JPEG; None for any other file."""
    for marker, position in _segments(encoded):
        if marker in _HUFFMAN_FRAMES:
            segment = encoded[position + 4 : position + 10]  # precision, height, width, number of components
            if len(segment) < 6 or segment[0] != 8:
                return None
            return Header(int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big"), segment[5])
    return None


def is_whole(encoded: bytes) -> bool:
    """Whether a JPEG has its end marker.

    Header segments are skipped, so that the end marker of an embedded thumbnail does not count. Data after the marker
    (some cameras append data) are ignored.
    """
    for marker, position in _segments(encoded):
        if marker == _START_OF_SCAN:
            # Most files end with the marker: checking the end first avoids a search through the whole file.
            return encoded.endswith(END_OF_IMAGE) or encoded.find(END_OF_IMAGE, position) != -1
    return False


def is_marked_rgb(encoded: bytes) -> bool:
    """Whether Adobe's marker says that the channels are not transformed (ITU-T T.872): RGB, or CMYK."""
    for marker, position in _segments(encoded):
        segment = encoded[position + 4 : position + 16]  # "Adobe", version, two words of flags, transform
        if marker == _ADOBE and segment.startswith(b"Adobe"):
            return len(segment) == 12 and segment[11] == 0
    return False


def _segments(encoded: bytes) -> Iterator[tuple[int, int]]:
    """Marker and position of each header segment, up to the first scan (section B.1.1)."""
    if not encoded.startswith(START_OF_IMAGE):
        return
    position = len(START_OF_IMAGE)
    while position + 4 <= len(encoded) and encoded[position] == 0xFF:
        marker = encoded[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        yield marker, position
        if marker == _START_OF_SCAN:
            return
        position += 2 + int.from_bytes(encoded[position + 2 : position + 4], "big")
