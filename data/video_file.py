"""Video files in any container and codec, by FFmpeg through PyAV.

Frames are decoded one at a time, upright. decord is not used here: it decodes ahead without limit, and may keep a whole
film in memory. Only lists of numbers grow with the length of a video.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.sidedata.sidedata import SideData

from data import DataError
from data.arrays import Pixels
from data.clip_sources import FOLDER_RATE, LARGEST_DENOMINATOR

SEEK_FROM = 50
"""Seek if selected frames are further apart than this, or from the start; else decode all frames between."""

FRAME_BY_PACKET = frozenset({"h264", "hevc", "vp9", "av1", "prores", "mjpeg"})
"""Codecs with one displayed frame in each packet, in MP4 and Matroska: frames are counted without decoding. VP8 has
packets without a displayed frame, MPEG-4 part 2 may pack two frames into a packet, transport streams have fields."""

INDEXED_FORMATS = frozenset({"mov", "mp4", "matroska", "webm"})
Orientation = tuple[int, int, int, int]
MOST_FRAMES_A_SECOND = 1000  # a higher rate is wrong: files without a rate may report their clock's


@dataclass(frozen=True)
class VideoFile:
    """The frames of a video file (a `data.clip_sources.Source`)."""

    path: Path
    size: tuple[int, int]
    rate: Fraction
    seconds: Sequence[float] = field(repr=False)
    ticks: Sequence[int] | None = field(repr=False)
    """Display time of each frame in the stream's time base; None if the file cannot be sought by time."""

    def name(self, index: int) -> str:
        """The number of a frame, five or more digits."""
        return f"{index:05d}"

    def label(self, index: int) -> str:
        """Name of a frame in errors."""
        return f"{self.path}, frame {index}"

    def read(self, indices: range) -> Iterator[Pixels]:
        """Yield the frames of ascending indices, RGB [H, W, 3], upright; DataError if a frame cannot be decoded."""
        sought = self.ticks is not None and indices.step > SEEK_FROM
        done, reason = 0, "the file ends before it"
        try:
            with closing(self._seek(indices) if sought else self._decode(indices)) as frames:
                for rgb in frames:
                    yield rgb
                    done += 1
        except av.FFmpegError as error:
            reason = str(error.strerror)
        if done < len(indices):
            raise DataError(
                f"{self.path}: frame {indices[done]} of {len(self.seconds)} cannot be decoded ({reason}). The file is "
                "cut short or damaged: copy it again, or take only the frames before (--max-frames)."
            )

    def _decode(self, indices: range) -> Generator[Pixels]:
        """Decode all frames from the first selected on; only selected frames are converted to pixels."""
        with _opened(self.path) as (container, stream):
            for index, frame in self._numbered(container, stream, indices[0]):
                if index in indices:
                    yield upright(frame)
                if index >= indices[-1]:
                    return

    def _numbered(
        self, container: av.container.InputContainer, stream: av.VideoStream, first: int
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """Frames with their numbers: from `first` on if it is far and can be sought, else from 0 on."""
        if self.ticks is None or first <= SEEK_FROM:
            yield from enumerate(container.decode(stream))
            return
        start = self.ticks[first]
        container.seek(start, stream=stream)
        yield from enumerate((frame for frame in container.decode(stream) if (frame.pts or 0) >= start), first)

    def _seek(self, indices: range) -> Generator[Pixels]:
        """Decode each selected frame from the key frame before it."""
        assert self.ticks is not None
        with _opened(self.path) as (container, stream):
            for index in indices:
                container.seek(self.ticks[index], stream=stream)
                later = (frame for frame in container.decode(stream) if (frame.pts or 0) >= self.ticks[index])
                frame = next(later, None)
                if frame is None:
                    return
                yield upright(frame)


def open_video_file(path: Path) -> VideoFile:
    """Open a video file and count its frames: by packets if this is reliable, else by decoding.

    Raises:
        FileNotFoundError: no such file.
        DataError: no video, no picture stream, no decoder, no frames, or a truncated or damaged frame.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video. Check the path.")
    with _opened(path) as (container, stream):
        counted = _ticks_of_packets(path, container, stream)
    with _opened(path) as (container, stream):
        unit = stream.time_base or Fraction(1, 90_000)
        told = stream.average_rate or stream.guessed_rate
        ticks = _ticks_of_frames(path, container, stream) if counted is None else counted
    if not ticks:
        raise DataError(f"{path}: a video without frames. Replace or remove it.")
    has_times = len(set(ticks)) == len(ticks)  # a raw stream has none
    rate = _rate(ticks if has_times else [], unit, told)
    seconds = [float((now - ticks[0]) * unit if has_times else index / rate) for index, now in enumerate(ticks)]
    return VideoFile(path, _first_size(path), rate, seconds, counted if has_times else None)


def _rate(ticks: Sequence[int], unit: Fraction, told: Fraction | None) -> Fraction:
    """Frames per second: as stated in the file, else from the times."""
    if told and 0 < told <= MOST_FRAMES_A_SECOND:
        return Fraction(told).limit_denominator(LARGEST_DENOMINATOR)
    span = (ticks[-1] - ticks[0]) * unit if ticks else 0
    return Fraction((len(ticks) - 1) / span).limit_denominator(LARGEST_DENOMINATOR) if span else FOLDER_RATE


def _ticks_of_packets(path: Path, container: av.container.InputContainer, stream: av.VideoStream) -> list[int] | None:
    """Ascending display times of the frames, without decoding; None if packets and frames do not match one to one.

    A packet with a display time before the file's first packet refers to pictures that a cut removed; decoders skip
    some of them.
    """
    formats = set(container.format.name.split(","))
    if stream.codec_context.codec.canonical_name not in FRAME_BY_PACKET or not formats & INDEXED_FORMATS:
        return None
    told = stream.frames
    ticks: list[int] = []
    certain = True
    for packet in container.demux(stream):
        if packet.size:
            certain &= packet.pts is not None and not packet.is_discard and (packet.is_keyframe or bool(ticks))
            ticks.append(packet.pts or 0)
    if 0 < len(ticks) < told:
        raise DataError(f"{path}: only {len(ticks)} of {told} frames are there. It is cut short: copy it again.")
    certain &= bool(ticks) and ticks[0] == min(ticks) and len(set(ticks)) == len(ticks)
    return sorted(ticks) if certain else None


def _ticks_of_frames(path: Path, container: av.container.InputContainer, stream: av.VideoStream) -> list[int]:
    """Display times of all frames, by decoding; 0 for a frame without a time."""
    ticks: list[int] = []
    try:
        for frame in container.decode(stream):
            ticks.append(frame.pts or 0)
    except av.FFmpegError as error:
        raise DataError(
            f"{path}: frame {len(ticks)} cannot be decoded ({error.strerror}). The file is cut short or damaged: copy "
            "it again."
        ) from None
    return ticks


def _first_size(path: Path) -> tuple[int, int]:
    try:
        with _opened(path) as (container, stream):
            height, width = upright(next(container.decode(stream))).shape[:2]
            return height, width
    except (av.FFmpegError, StopIteration) as error:
        raise DataError(f"{path}: its first frame cannot be decoded ({error}). Replace or remove it.") from None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """A container and its picture stream. Do not use them after the `with`: FFmpeg has freed them."""
    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        raise DataError(f"{path}: not a video that can be decoded ({error.strerror}). Replace or remove it.") from None
    with container:
        yield container, _picture_stream(path, container)


def _picture_stream(path: Path, container: av.container.InputContainer) -> av.VideoStream:
    """The first video stream, ignoring cover pictures."""
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:
            return stream
    kinds: list[str] = sorted({stream.type for stream in container.streams})
    raise DataError(f"{path}: no picture stream that can be decoded, only {', '.join(kinds) or 'nothing'}. Replace it.")


def upright(frame: av.VideoFrame) -> Pixels:
    """A decoded frame RGB [H, W, 3] as displayed: rotated and mirrored by its display matrix.

    The matrix (ISO 14496-12, 8.5) maps a pixel (x, y) to (a x + c y, b x + d y). Four of the eight orientations
    exchange rows and columns (a = d = 0).
    """
    return turned(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8), orientation(frame))


def orientation(frame: av.VideoFrame) -> Orientation:
    """The linear part (a, b, c, d) of a frame's display matrix; the identity without one."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(matrix, SideData):
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    return a, b, c, d


def turned(rgb: Pixels, orientation: Orientation) -> Pixels:
    """Stored pixels [H, W, 3] as displayed."""
    a, b, c, d = orientation
    if abs(b) + abs(c) > abs(a) + abs(d):
        rgb, a, d = rgb.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(rgb[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
