"""PNG files read past Pillow: the same values, and never a value from a file that Pillow would not read."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.arrays import Pixels
from data.masks import PALETTE, write_mask
from data.png import SIGNATURE, read_stored


def encoded(values: np.ndarray, mode: str, **options: object) -> bytes:
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette(PALETTE.tobytes())
    assert image.mode == mode
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def ids(seed: int = 0, size: tuple[int, int] = (37, 53), top: int = 256) -> Pixels:
    return np.random.default_rng(seed).integers(0, top, size, dtype=np.uint8)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def filtered(values: Pixels, color: int) -> bytes:
    """A PNG whose rows take the five filters in turn (PNG specification, section 9.2)."""
    height, width = values.shape
    lines = []
    for row in range(height):
        now = values[row].astype(int)
        above = values[row - 1].astype(int) if row else np.zeros(width, int)
        left, corner = np.r_[0, now[:-1]], np.r_[0, above[:-1]]
        guess = left + above - corner
        near = np.abs(np.stack([left, above, corner]) - guess).argmin(axis=0)
        paeth = np.choose(near, [left, above, corner])
        kind = row % 5
        predicted = [0 * now, left, above, (left + above) // 2, paeth][kind]
        lines.append(bytes([kind]) + ((now - predicted) % 256).astype(np.uint8).tobytes())
    header = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    palette = [chunk(b"PLTE", PALETTE.tobytes())] if color == 3 else []
    data = zlib.compress(b"".join(lines))
    parts = [chunk(b"IDAT", part) for part in (data[:100], data[100:])]
    return b"".join([SIGNATURE, chunk(b"IHDR", header), *palette, *parts, chunk(b"IEND", b"")])


@given(st.integers(0, 99), st.sampled_from(["P", "L"]), st.tuples(st.integers(1, 40), st.integers(1, 40)))
@settings(max_examples=60, deadline=None)
def test_the_values_are_those_that_were_written(seed: int, mode: str, size: tuple[int, int]):
    values = ids(seed, size)
    stored = read_stored(encoded(values, mode))
    assert stored is not None
    assert stored.mode == mode
    np.testing.assert_array_equal(stored.values, values)


@pytest.mark.parametrize("color", [0, 3])
def test_every_filter_is_undone(color: int):
    values = ids(1)
    data = filtered(values, color)
    stored = read_stored(data)
    assert stored is not None
    np.testing.assert_array_equal(stored.values, values)
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(data))), values)


def test_our_own_masks_are_read(tmp_path):
    write_mask(tmp_path / "a.png", ids(2, top=4))
    stored = read_stored((tmp_path / "a.png").read_bytes())
    assert stored is not None
    assert stored.mode == "P"
    np.testing.assert_array_equal(stored.values, ids(2, top=4))


def test_transparency_and_gamma_change_no_value():
    values = ids(3)
    whole = encoded(values, "P", transparency=0)
    header = len(SIGNATURE) + 25
    stored = read_stored(whole[:header] + chunk(b"gAMA", struct.pack(">I", 20000)) + whole[header:])
    assert stored is not None
    np.testing.assert_array_equal(stored.values, values)


@pytest.mark.parametrize(
    "other",
    [
        encoded(ids(size=(8, 24)).reshape(8, 8, 3), "RGB"),
        encoded((ids() > 99), "1"),
        encoded(ids(top=4), "P", bits=2),
        encoded(ids().astype(np.uint16) * 200, "I;16"),
        b"",
        SIGNATURE,
        b"GIF89a",
        SIGNATURE + chunk(b"IEND", b""),
        SIGNATURE + chunk(b"IHDR", b"short") + chunk(b"IEND", b""),
    ],
    ids=["color", "bits", "two bits", "16 bits", "empty", "signature", "gif", "no header", "short header"],
)
def test_other_files_are_left_to_pillow(other: bytes):
    assert read_stored(other) is None


def test_a_cut_file_is_left_to_pillow():
    whole = encoded(ids(), "P")
    for length in range(0, len(whole), 7):
        assert read_stored(whole[:length]) is None
    assert read_stored(whole + b"what follows does not matter") is not None


@given(st.integers(0, 10**6), st.integers(0, 7))
@settings(max_examples=200, deadline=None)
def test_a_changed_bit_gives_no_other_value(place: int, bit: int):
    values = ids(4, (9, 11), top=3)
    whole = bytearray(encoded(values, "P"))
    whole[place % len(whole)] ^= 1 << bit
    stored = read_stored(bytes(whole))
    assert stored is None or (stored.values == values).all()


def test_a_stream_that_ends_early_is_left_to_pillow():
    """Checksums are right, rows are missing: what a program writes that died."""
    values = ids(5)
    height, width = values.shape
    lines = b"".join(b"\0" + row.tobytes() for row in values[:20])
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    for data in (zlib.compress(lines), zlib.compress(lines)[:-9]):
        parts = [(b"IHDR", header), (b"PLTE", PALETTE.tobytes()), (b"IDAT", data), (b"IEND", b"")]
        assert read_stored(SIGNATURE + b"".join(chunk(*part) for part in parts)) is None
