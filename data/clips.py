"""A person's own clip, read as a stream, frame after frame: a video file, a folder of pictures, an animated picture."""

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
"""File name endings, in any case, that a person's clip may have; `open_clip` takes any other too."""


class ClipFrame(NamedTuple):
    """One frame of a clip."""

    name: str
    """Its number in the source, five digits or more, or the name of its file without ending."""
    seconds: float
    """When it is shown; the first at 0."""
    rgb: Pixels
    """[H, W, 3]."""


@dataclass(frozen=True)
class Clip:
    """The frames of a source that are read.

    Attributes:
        source: where they come from.
        every: only every n-th frame.
        max_frames: at most this many of those.
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
        """(height, width) in pixels, as shown."""
        return self.source.size

    @property
    def name(self) -> str:
        """Of the file or folder, without ending."""
        return self.path.name if isinstance(self.source, PictureFolder) else self.path.stem

    @property
    def pictures(self) -> tuple[Path, ...]:
        """The files, where it is a folder."""
        return self.source.pictures if isinstance(self.source, PictureFolder) else ()

    @property
    def indices(self) -> range:
        """Which frames of the source are read."""
        indices = range(0, len(self.source.seconds), self.every)
        return indices if self.max_frames is None else indices[: self.max_frames]

    def __len__(self) -> int:
        return len(self.indices)

    def frame_name(self, index: int) -> str:
        """Name of a frame of the source."""
        return self.source.name(index)

    @property
    def shown_rate(self) -> Fraction:
        """Frames a second of what is read, so that it lasts as long as the source."""
        return self.source.rate / self.every

    def __iter__(self) -> Iterator[ClipFrame]:
        """The frames, in order; only the current one is held.

        Raises:
            DataError: a frame that cannot be decoded, or of another size than the first.
        """
        seconds = self.source.seconds
        for index, rgb in zip(self.indices, self.source.read(self.indices), strict=True):
            if rgb.shape[:2] != self.size:
                raise DataError(
                    f"{self.source.label(index)}: {rgb.shape[0]}x{rgb.shape[1]} pixels (height x width), but the first "
                    f"frame has {self.size[0]}x{self.size[1]}; all frames must have one size"
                )
            yield ClipFrame(self.source.name(index), seconds[index], rgb)


def open_clip(path: Path | str, *, every: int = 1, max_frames: int | None = None) -> Clip:
    """A video file, an animated picture, or a folder of frames (pictures in natural order of their names).

    Args:
        every: only every n-th frame; the rate falls with it, so that it lasts as long.
        max_frames: at most this many.

    Raises:
        FileNotFoundError: no such file or folder.
        DataError: a file that is no video, has no picture stream or no frames, or a folder without pictures or with
            two of one name.
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
    """The path; that of a folder given as `.` or `..`, which is no name, in full."""
    path = Path(path)
    return path if path.name not in ("", "..") else path.resolve()


def is_video(path: Path) -> bool:
    """Whether a file's name ends as a video's does, or it is an animated picture."""
    return path.suffix.lower() in CLIP_SUFFIXES or is_animated(path)
