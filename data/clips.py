"""A person's own video: read as a stream, frame after frame, and written as an mp4 that browsers play.

Nothing here grows with the length of a video but lists of numbers.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import decord
import numpy as np

from data import DataError
from data.arrays import Pixels
from data.files import IMAGE_SUFFIXES
from data.images import list_images, read_upright
from data.video import VIDEO_SUFFIXES, open_video, reason_of, rgb_of
from data.video_writer import LARGEST_DENOMINATOR

FOLDER_RATE = Fraction(24)
"""Frames a second of a folder of frames, which has none of its own (DAVIS shows its videos at 24)."""


SEEK_FROM = 50
"""Frames further apart than this are sought, not decoded one after another."""


class ClipFrame(NamedTuple):
    """One frame of a clip."""

    name: str
    """Its number in the source, five digits or more, or the name of its file without ending."""
    seconds: float
    """When it is shown."""
    rgb: Pixels
    """[H, W, 3]."""


@dataclass(frozen=True)
class Clip:
    """A video file, or a folder of pictures in the order of their names.

    Attributes:
        path: the file or folder.
        size: (height, width) in pixels, as shown.
        rate: frames a second; the mean, where it varies.
        n_frames: how many there are, before `every` and `max_frames`.
        every: only every n-th frame.
        max_frames: at most this many of those.
        pictures: the files, where it is a folder.
    """

    path: Path
    size: tuple[int, int]
    rate: Fraction
    n_frames: int
    every: int = 1
    max_frames: int | None = None
    pictures: tuple[Path, ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """Of the file or folder, without ending."""
        return self.path.name if self.pictures else self.path.stem

    @property
    def places(self) -> range:
        """Which frames of the source are read."""
        places = range(0, self.n_frames, self.every)
        return places if self.max_frames is None else places[: self.max_frames]

    def __len__(self) -> int:
        return len(self.places)

    def frame_name(self, place: int) -> str:
        """Name of the frame at a place of the source."""
        return self.pictures[place].stem if self.pictures else f"{place:05d}"

    @property
    def shown_rate(self) -> Fraction:
        """Frames a second of what is read, so that it lasts as long as the source."""
        return self.rate / self.every

    def __iter__(self) -> Iterator[ClipFrame]:
        """The frames, in order; only the current one is held.

        Raises:
            DataError: a frame that cannot be decoded, or of another size than the first.
        """
        read = self._read_pictures() if self.pictures else self._decode()
        for place, seconds, rgb in read:
            if rgb.shape[:2] != self.size:
                raise DataError(
                    f"{self._where(place)}: {rgb.shape[0]}x{rgb.shape[1]} pixels (height x width), but the first "
                    f"frame has {self.size[0]}x{self.size[1]}; all frames must have one size"
                )
            yield ClipFrame(self.frame_name(place), seconds, rgb)

    def _where(self, place: int) -> str:
        return str(self.pictures[place]) if self.pictures else f"{self.path}, frame {place}"

    def _read_pictures(self) -> Iterator[tuple[int, float, Pixels]]:
        for place in self.places:
            yield place, float(place / self.rate), read_upright(self.pictures[place])

    def _decode(self) -> Iterator[tuple[int, float, Pixels]]:
        """In order, by PyAV, one at a time: decord reads on while one waits, and may hold a whole film decoded.

        decord has the times, and the frames that lie far apart, where it seeks; also those that PyAV does not come to,
        as in a damaged file, of which it says more.
        """
        reader = open_video(self.path)
        places, done = list(self.places), -1
        if self.every < SEEK_FROM:
            for place, rgb in zip(places, video_stream(self.path, self.every), strict=False):
                yield place, float(reader.get_frame_timestamp(place)[0]), rgb
                done = place
            places = [place for place in places if place > done]
        for place in places:
            try:
                seconds, rgb = float(reader.get_frame_timestamp(place)[0]), rgb_of(reader[place])
            except (decord.DECORDError, IndexError, RuntimeError) as error:
                raise DataError(
                    f"{self.path}: frame {place} of {self.n_frames} cannot be decoded ({reason_of(error)}). The file "
                    "is cut short or damaged: copy it again, or take only the frames before (--max-frames)."
                ) from None
            yield place, seconds, rgb


def video_stream(path: Path, every: int) -> Iterator[Pixels]:
    """Every n-th frame of a video as RGB [H, W, 3], upright, until its end or one that cannot be decoded."""
    with contextlib.suppress(av.FFmpegError), av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index % every == 0:
                yield np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


def open_clip(path: Path | str, *, every: int = 1, max_frames: int | None = None) -> Clip:
    """A video file, or a folder of frames (pictures in natural order of their names).

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
        pictures = tuple(list_images(path))
        _check_names(pictures)
        height, width = read_upright(pictures[0]).shape[:2]
        return Clip(path, (height, width), FOLDER_RATE, len(pictures), every, max_frames, pictures)
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        raise DataError(f"{path}: a picture, expected a video or a folder of frames.")
    reader = open_video(path)
    try:
        height, width = rgb_of(reader[0]).shape[:2]
    except (decord.DECORDError, IndexError, RuntimeError) as error:
        raise DataError(
            f"{path}: its first frame cannot be decoded ({reason_of(error)}). Replace or remove it."
        ) from None
    rate = Fraction(reader.get_avg_fps()).limit_denominator(LARGEST_DENOMINATOR)
    return Clip(path, (height, width), rate or FOLDER_RATE, len(reader), every, max_frames)


def named(path: Path | str) -> Path:
    """The path; that of a folder given as `.` or `..`, which is no name, in full."""
    path = Path(path)
    return path if path.name not in ("", "..") else path.resolve()


def _check_names(pictures: Sequence[Path]) -> None:
    """DataError for two frames of one name: their masks would be one file."""
    by_stem: dict[str, Path] = {}
    for picture in pictures:
        other = by_stem.setdefault(picture.stem, picture)
        if other is not picture:
            raise DataError(
                f"{other} and {picture}: two frames of one name. Expected the frames of one clip, each with its own "
                "name, and nothing else in the folder: no masks, and no second clip."
            )


def is_video(path: Path) -> bool:
    """Whether a file's name ends as a video's does."""
    return path.suffix.lower() in VIDEO_SUFFIXES
