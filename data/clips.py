"""A user's clip as a stream of frames: a video file, a folder of pictures, or an animated picture."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from data import DataError
from data.arrays import Pixels
from data.clip_sources import (
    PictureFolder,
    Source,
    check_is_clip,
    is_animated,
    open_animation,
    open_folder,
)
from data.video_file import open_video_file

CLIP_SUFFIXES = frozenset(
    {
        *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"),
        *(
            ".ts",
            ".mts",
            ".m2ts",
            ".m2v",
            ".vob",
            ".wmv",
            ".asf",
            ".flv",
            ".f4v",
            ".3gp",
            ".3g2",
            ".ogv",
            ".ogg",
            ".mxf",
        ),
        *(".mjpeg", ".mjpg", ".h264", ".h265", ".hevc", ".av1", ".ivf", ".qt", ".divx", ".mpv"),
    }
)
"""File suffixes, in any case, to offer for a user's clip; `open_clip` accepts others too."""


BACKWARD_BYTES = 128 * 2**20  # of the frames in memory when a clip is read backward


class ClipFrame(NamedTuple):
    """One frame of a clip."""

    name: str
    """Its number in the source (five or more digits), or its file's name without suffix."""
    seconds: float
    """Display time; 0 for the first frame."""
    rgb: Pixels
    """[H, W, 3]."""


@dataclass(frozen=True)
class Clip:
    """A selection of the frames of a source.

    Attributes:
        source: the source.
        every: use every n-th frame.
        max_frames: use at most this many frames.
    """

    source: Source
    every: int = 1
    max_frames: int | None = field(default=None)

    @property
    def path(self) -> Path:
        """The file or folder."""
        return self.source.path

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as displayed, pixels."""
        return self.source.size

    @property
    def name(self) -> str:
        """Name of the file or folder, without suffix."""
        return self.path.name if isinstance(self.source, PictureFolder) else self.path.stem

    @property
    def pictures(self) -> tuple[Path, ...]:
        """The files of a folder; empty for other sources."""
        return self.source.pictures if isinstance(self.source, PictureFolder) else ()

    @property
    def indices(self) -> range:
        """Indices of the selected frames in the source."""
        indices = range(0, len(self.source.seconds), self.every)
        return indices if self.max_frames is None else indices[: self.max_frames]

    def __len__(self) -> int:
        return len(self.indices)

    def frame_name(self, index: int) -> str:
        """Name of a frame of the source."""
        return self.source.name(index)

    @property
    def shown_rate(self) -> Fraction:
        """Frames per second of the selection, with the duration of the source."""
        return self.source.rate / self.every

    def __iter__(self) -> Iterator[ClipFrame]:
        """Yield the frames in order; only the current frame is in memory.

        Raises:
            DataError: a frame cannot be decoded, or differs in size from the first.
        """
        return self.frames(self.indices)

    def frames(self, indices: range) -> Iterator[ClipFrame]:
        """Yield the frames of some indices of the source, ascending or descending.

        Descending frames are read forward in blocks of `BACKWARD_BYTES`. A video that cannot be sought is decoded from
        its start for each block.

        Raises:
            DataError: as for `__iter__`.
        """
        if indices.step < 0:
            block = max(1, BACKWARD_BYTES // (3 * self.size[0] * self.size[1]))
            for start in range(0, len(indices), block):
                yield from reversed(list(self.frames(indices[start : start + block][::-1])))
            return
        if not indices:
            return
        seconds = self.source.seconds
        for index, rgb in zip(indices, self.source.read(indices), strict=True):
            if rgb.shape[:2] != self.size:
                raise DataError(
                    f"{self.source.label(index)}: {rgb.shape[0]}x{rgb.shape[1]} pixels (height x width), but the first "
                    f"frame has {self.size[0]}x{self.size[1]}; all frames must have one size"
                )
            yield ClipFrame(self.source.name(index), seconds[index], rgb)


def open_clip(path: Path | str, *, every: int = 1, max_frames: int | None = None) -> Clip:
    """Open a video file, an animated picture, or a folder of frames (pictures in natural order of their names).

    Args:
        every: use every n-th frame; the rate falls accordingly, so the duration is the same.
        max_frames: use at most this many frames.

    Raises:
        FileNotFoundError: no such file or folder.
        DataError: the file is no video, or has no picture stream or no frames; or the folder has no pictures, or two
            pictures of the same name.
        ValueError: `every` or `max_frames` below 1.
    """
    path = named(path)
    for name, value in (("every", every), ("max_frames", max_frames)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}: expected 1 or more")
    if path.is_dir():
        return Clip(open_folder(path), every, max_frames)
    if is_animated(path):
        return Clip(open_animation(path), every, max_frames)
    check_is_clip(path)
    return Clip(open_video_file(path), every, max_frames)


def named(path: Path | str) -> Path:
    """The path; resolved if it is `.` or `..`, so that its last part is a name."""
    path = Path(path)
    return path if path.name not in ("", "..") else path.resolve()


def is_video(path: Path) -> bool:
    """Whether a file has a video's suffix, or is an animated picture."""
    return path.suffix.lower() in CLIP_SUFFIXES or is_animated(path)
