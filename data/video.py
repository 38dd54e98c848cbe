"""Random frames of video files, by decord, for pretraining."""

import contextlib
import math
import os
import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import av
import decord
import numpy as np
import numpy.typing as npt

from data import DataError
from data.images import DecodedPicture
from data.video_file import Orientation, orientation, turned

VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"})
"""Suffixes of video files, in any case."""


OPEN_VIDEOS = 4
"""Files kept open in each process: an open decoder takes tens of MB."""


def open_video(path: Path | str) -> decord.VideoReader:
    """A decoder with random access to RGB frames; single-threaded, since loaders run in several processes.

    Raises:
        FileNotFoundError: no such file.
        DataError: no frame can be decoded.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such video. Check the path.")
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
    except (decord.DECORDError, RuntimeError) as error:
        reason = _lacking_decoder(path) or reason_of(error)
        raise DataError(f"{path}: not a video that can be decoded ({reason}). Replace or remove it.") from None
    if len(reader) == 0:
        raise DataError(f"{path}: a video without frames. Replace or remove it.")
    return reader


def _lacking_decoder(path: Path | str) -> str:
    """Advice for a picture stream that FFmpeg decodes and decord does not; "" without one."""
    with contextlib.suppress(av.FFmpegError), av.open(str(path)) as container:
        for stream in container.streams.video:
            codec = stream.codec_context.codec.canonical_name
            return f"decord has no decoder for its {codec} pictures: convert it to H.264, as ffmpeg does"
    return ""


def mirrored_orientation(path: Path | str) -> Orientation | None:
    """The orientation of a mirrored video; None for any other, which decord displays correctly."""
    with contextlib.suppress(av.FFmpegError, StopIteration), av.open(str(path)) as container:
        a, b, c, d = orientation(next(container.decode(video=0)))
        return (a, b, c, d) if a * d - b * c < 0 else None
    return None


def unmirrored(rgb: npt.NDArray[np.uint8], shown: Orientation) -> npt.NDArray[np.uint8]:
    """A frame of a mirrored video as displayed: decord only rotates it, by the angle of the matrix's first row."""
    a, b, _, _ = shown
    quarters = round(math.atan2(b, a) / (math.pi / 2))  # clockwise
    return turned(np.rot90(rgb, quarters), shown)


def reason_of(error: Exception) -> str:
    """The first line of decord's message, without its source position."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    reason = re.sub(r"^\[[\d:]+\] \S+: (Check failed: .*? (?=ERROR|Error))?", "", line)
    return "no picture stream: audio only?" if "cannot find video stream" in reason else reason


def rgb_of(frame: decord.ndarray.NDArray) -> npt.NDArray[np.uint8]:
    """A decoded frame as RGB [H, W, 3].

    decord 0.6 pads the rows of some narrow videos (16, 24, 48 pixels), and reports more channels than there are.
    """
    pixels: npt.NDArray[np.uint8] = frame.asnumpy()
    height, width, channels = pixels.shape
    if channels == 3:
        return pixels
    return pixels.reshape(height, -1)[:, : 3 * width].reshape(height, width, 3)


def sampled_frames(n_frames: int, stride: int = 1, count: int | None = None) -> list[int]:
    """Indices of every `stride`-th frame, or of `count` evenly spaced frames (all if there are fewer)."""
    if count is None:
        return list(range(0, n_frames, stride))
    return sorted(set(np.linspace(0, n_frames - 1, min(count, n_frames)).round().astype(int).tolist()))


class VideoFrames(Sequence[DecodedPicture]):
    """Sampled frames of video files, RGB.

    Each process opens the files on first use: a decoder does not survive a fork. A frame is decoded from the key frame
    before it, so random access decodes some tens of frames.

    Args:
        paths: video files.
        frame_stride: use every n-th frame.
        frames_per_video: instead, use this many evenly spaced frames of each file.

    Raises the errors of `open_video`, for any of the files.
    """

    def __init__(self, paths: Sequence[Path], frame_stride: int = 1, frames_per_video: int | None = None) -> None:
        self.paths = list(paths)
        self.frames = [
            (video, frame)
            for video, path in enumerate(self.paths)
            for frame in sampled_frames(len(open_video(path)), frame_stride, frames_per_video)
        ]
        self._readers: OrderedDict[tuple[int, int], tuple[decord.VideoReader, Orientation | None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> DecodedPicture:  # type: ignore[override]
        video, frame = self.frames[index]
        try:
            reader, mirrored = self._reader(video)
            rgb = rgb_of(reader[frame])
            return DecodedPicture(rgb if mirrored is None else unmirrored(rgb, mirrored))
        except decord.DECORDError as error:
            raise DataError(
                f"{self.paths[video]}: frame {frame} cannot be decoded ({reason_of(error)}). Replace or remove it."
            ) from None

    def __getstate__(self) -> dict[str, object]:
        """The state without open files, for another process."""
        return {**self.__dict__, "_readers": OrderedDict()}

    def name(self, index: int, root: Path) -> str:
        """Name of a frame, relative to `root`: FILE#NUMBER."""
        video, frame = self.frames[index]
        return f"{self.paths[video].relative_to(root).as_posix()}#{frame}"

    def names(self, root: Path) -> list[str]:
        """A name for each frame, relative to `root`."""
        return [self.name(index, root) for index in range(len(self))]

    def _reader(self, video: int) -> tuple[decord.VideoReader, Orientation | None]:
        key = (os.getpid(), video)
        if key not in self._readers:
            self._readers[key] = open_video(self.paths[video]), mirrored_orientation(self.paths[video])
            while len(self._readers) > OPEN_VIDEOS:
                self._readers.popitem(last=False)
        self._readers.move_to_end(key)
        return self._readers[key]
