"""Sources of the frames of a user's clip: a folder of pictures, or an animated picture.

Each source has the size, times and names of its frames, and reads frames in order, one at a time. Only lists of numbers
grow with the length of a clip. Video files are in `data/video_file.py`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from PIL import Image, UnidentifiedImageError

from data import DataError
from data.arrays import Pixels
from data.files import IMAGE_SUFFIXES
from data.images import list_images, read_upright, upright_rgb

FOLDER_RATE = Fraction(24)
"""Frames per second of pictures without times (DAVIS shows its videos at 24)."""

LARGEST_DENOMINATOR = 1001  # in a frame rate: 30000/1001 (NTSC)
ANIMATED_SUFFIXES = frozenset({".gif", ".png", ".apng", ".webp", ".tif", ".tiff", ".avif"})
"""Pictures that may hold several frames."""


class Source(Protocol):
    """The frames of a clip."""

    @property
    def path(self) -> Path:
        """The file or folder."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the first frame as displayed, pixels."""
        ...

    @property
    def rate(self) -> Fraction:
        """Frames per second; the mean of a variable rate."""
        ...

    @property
    def seconds(self) -> Sequence[float]:
        """Display time of each frame; 0 for the first."""
        ...

    def name(self, index: int) -> str:
        """Name of a frame: its number, or its file's name without suffix."""
        ...

    def label(self, index: int) -> str:
        """Name of a frame in errors."""
        ...

    def read(self, indices: range) -> Iterator[Pixels]:
        """Yield the frames of ascending indices, RGB uint8 [H, W, 3], upright.

        Raises:
            DataError: a frame cannot be decoded.
        """
        ...


# ---- pictures


@dataclass(frozen=True)
class PictureFolder:
    """A folder of pictures, in natural order of their names."""

    path: Path
    pictures: tuple[Path, ...] = field(repr=False)
    size: tuple[int, int]
    rate: Fraction = FOLDER_RATE

    @property
    def seconds(self) -> Sequence[float]:
        return [float(index / self.rate) for index in range(len(self.pictures))]

    def name(self, index: int) -> str:
        return self.pictures[index].stem

    def label(self, index: int) -> str:
        return str(self.pictures[index])

    def read(self, indices: range) -> Iterator[Pixels]:
        for index in indices:
            yield read_upright(self.pictures[index])


def open_folder(path: Path) -> PictureFolder:
    """Open a folder of frames.

    Raises:
        DataError: no pictures, pictures of several folders, or two of the same name (their masks would collide).
    """
    pictures = tuple(list_images(path))
    counts = Counter(picture.parent for picture in pictures)
    if len(counts) > 1:
        some = ", ".join(f"{folder} ({count} pictures)" for folder, count in list(counts.items())[:8])
        raise DataError(
            f"{path}: {len(counts)} folders with pictures: {some}{', ...' if len(counts) > 8 else ''}. Expected one "
            "clip. Which of them is it? Give that folder."
        )
    by_stem: dict[str, Path] = {}
    for picture in pictures:
        other = by_stem.setdefault(picture.stem, picture)
        if other is not picture:
            raise DataError(
                f"{other} and {picture}: two frames of one name. Expected the frames of one clip, each with its own "
                "name, and nothing else in the folder: no masks, and no second clip."
            )
    height, width = read_upright(pictures[0]).shape[:2]
    return PictureFolder(path, pictures, (height, width))


@dataclass(frozen=True)
class Animation:
    """A picture with several frames: GIF, PNG, WebP, AVIF; or the pages of a TIFF, which have no times."""

    path: Path
    size: tuple[int, int]
    rate: Fraction
    seconds: Sequence[float] = field(repr=False)

    def name(self, index: int) -> str:
        return f"{index:05d}"

    def label(self, index: int) -> str:
        return f"{self.path}, frame {index}"

    def read(self, indices: range) -> Iterator[Pixels]:
        with _picture(self.path) as image:
            for index in indices:
                image.seek(index)
                yield upright_rgb(image, self.path)


def is_animated(path: Path) -> bool:
    """Whether a file is a picture with more than one frame."""
    if path.suffix.lower() not in ANIMATED_SUFFIXES or not path.is_file():
        return False
    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1) > 1
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError):
        return False


def open_animation(path: Path) -> Animation:
    """Open an animated picture; DataError if a frame is unreadable."""
    seconds, elapsed = [], 0.0
    with _picture(path) as image:
        height, width = upright_rgb(image, path).shape[:2]
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            image.load()
            seconds.append(elapsed)
            elapsed += float(image.info.get("duration", 0)) / 1000 or float(1 / FOLDER_RATE)
    rate = Fraction(len(seconds) / elapsed).limit_denominator(LARGEST_DENOMINATOR)
    return Animation(path, (height, width), rate or FOLDER_RATE, seconds)


@contextmanager
def _picture(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, EOFError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read whole ({error}). Replace it.") from None


def check_is_clip(path: Path) -> None:
    """Raise DataError for a picture with one frame."""
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES | ANIMATED_SUFFIXES:
        raise DataError(f"{path}: a picture, expected a video or a folder of frames.")
