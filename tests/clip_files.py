"""Videos made here, of every kind that people have."""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

MILLISECOND = Fraction(1, 1000)


def moving_disc(index: int, size: tuple[int, int]) -> np.ndarray:
    """Frame `index` RGB [H, W, 3]: a bright square that moves right, on a ground that is darker below."""
    height, width = size
    frame = np.zeros((height, width, 3), np.uint8)
    frame[:] = np.linspace(120, 20, height, dtype=np.uint8)[:, None, None]
    frame[moving_mask(index, size) > 0] = (230, 200, 40)
    return frame


def moving_mask(index: int, size: tuple[int, int]) -> np.ndarray:
    """Ids [H, W] of the square, object 1."""
    side = min(size) // 3
    left = 4 + 2 * index
    ids = np.zeros(size, np.uint8)
    ids[side : 2 * side, left : left + side] = 1
    return ids


def write_clip(
    path: Path,
    length: int = 8,
    size: tuple[int, int] = (48, 64),
    rate: int | Fraction = 10,
    times: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
) -> Path:
    """A video, of H.264 where nothing else is asked for; `times` (milliseconds) make its frame rate vary."""
    tick = MILLISECOND if times else 1 / Fraction(rate)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = tick
        for index in range(length):
            frame = av.VideoFrame.from_ndarray(moving_disc(index, size), format="rgb24")
            frame.pts, frame.time_base = times[index] if times else index, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """A file of sound alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        stream.layout = "mono"
        for index in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, 1024 * index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


QUARTER_TURN = (0, 1, -1, 0)  # clockwise, as a phone held upright tells it


def turn(path: Path, orientation: tuple[int, int, int, int] = QUARTER_TURN) -> Path:
    """Say in an mp4 that pixel (x, y) is shown at (a x + c y, b x + d y), for (a, b, c, d) (ISO 14496-12, tkhd)."""
    a, b, c, d = (0x10000 * value for value in orientation)
    old = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    new = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 0x40000000)
    data = path.read_bytes()
    place = data.index(old, data.index(b"tkhd"))
    path.write_bytes(data[:place] + new + data[place + len(old) :])
    return path


def facts(path: Path) -> tuple[int, tuple[int, int], Fraction | None, str]:
    """Frames (decoded), (height, width), frame rate and codec of a video, as FFmpeg tells them."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(stream))
        return frames, (stream.height, stream.width), stream.average_rate, stream.codec_context.codec.canonical_name
