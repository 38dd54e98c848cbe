"""Image files: list them, read them, and read folders with one sub-folder for each class."""

import difflib
import hashlib
import io
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from data import DataError, jpeg
from data.arrays import Pixels
from data.files import (
    COMMON_SUFFIXES,
    IMAGE_SUFFIXES,
    FilesByStem,
    check_folder,
    files_and_rest,
    folders_in,
    list_files,
    say_left_out,
)
from data.notices import say

WIDE_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N", "F"})
"""PIL modes with more than 8 bits per channel; PIL would clip them to white when converting to RGB."""

TRAIN_FOLDERS = ("train", "training")
"""Names of the training split, in any case."""

VAL_FOLDERS = ("val", "valid", "validation", "test", "testing")
"""Names of the evaluation split, in any case, in the order of the search."""


def list_images(root: Path | str) -> list[Path]:
    """Image files below `root`, nested or flat, in natural order.

    Raises:
        FileNotFoundError: no such path.
        DataError: a file, or a folder without images.
    """
    paths = list_files(root, IMAGE_SUFFIXES)
    if not paths:
        raise DataError(f"{root}: no images in it{_no_images(Path(root))}")
    return paths


def images_in(folder: Path) -> list[Path]:
    """Image files of a folder, not of its subfolders, in natural order."""
    return [path for paths in FilesByStem(folder).paths.values() for path in paths]


def _no_images(folder: Path) -> str:
    """The end of a message about a folder without images."""
    other = files_and_rest(folder, IMAGE_SUFFIXES)[1]
    endings = ", ".join(f"{count} {ending}" for ending, count in other.most_common(8)) or "nothing"
    return f". Expected files ending in {', '.join(COMMON_SUFFIXES)} or another that Pillow reads; found {endings}."


def read_rgb(path: Path | str, encoded: bytes | None = None) -> Image.Image:
    """The whole picture as 8-bit RGB, of a file, or of its content.

    Raises:
        FileNotFoundError: no such file.
        DataError: the file is truncated, damaged, no image, or has more than 8 bits per channel.
    """
    with _opened(path, encoded) as image:
        if image.mode in WIDE_MODES:
            raise DataError(f"{path}: {image.mode} pixels, expected 8 bits a channel. Convert it to 8 bits first.")
        return image.convert("RGB")


def image_size(path: Path | str) -> tuple[int, int]:
    """(height, width) in pixels as stored, from the file's header; raises the errors of `read_rgb`."""
    with _opened(path) as image:
        return image.height, image.width


def read_upright(path: Path | str) -> npt.NDArray[np.uint8]:
    """A user's picture as displayed, RGB [H, W, 3].

    Rotated by its EXIF tag, 16-bit gray scaled to 8 bits, transparency over white. Data sets are read by `read_rgb`,
    without these changes: published numbers and masks refer to pixels as stored.

    Raises the errors of `read_rgb`, and DataError for 32-bit pixels, which do not define white.
    """
    with _opened(path) as image:
        return upright_rgb(image, path)


def upright_rgb(image: Image.Image, path: Path | str) -> npt.NDArray[np.uint8]:
    """The current frame of an opened picture, as from `read_upright`."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        gray = (np.asarray(upright).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if upright.mode in WIDE_MODES:
        raise DataError(f"{path}: {image.mode} pixels, expected 8 or 16 bits. Convert it to 8 bits first.")
    if upright.has_transparency_data:
        seen = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return np.array(upright.convert("RGB"))


@contextmanager
def _opened(path: Path | str, encoded: bytes | None = None) -> Iterator[Image.Image]:
    """Open an image file, or its content; every error becomes a DataError that names the file."""
    try:
        with Image.open(path if encoded is None else io.BytesIO(encoded)) as image:
            yield image
    except FileNotFoundError:
        gone = "a broken link" if Path(path).is_symlink() else "no such file, or removed since it was listed"
        raise FileNotFoundError(f"{path}: {gone}. Restore it, or take it out of the data.") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: not an image that can be read. Replace or remove it.") from None
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read whole ({error}). Replace or remove it.") from None


class DecodedPicture:
    """A picture that is decoded already."""

    reductions: tuple[int, ...] = (1,)

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        height, width = self.pixels.shape[:2]
        return height, width

    def decode(self, reduction: int = 1) -> Pixels:
        """RGB uint8 [H, W, 3]. Raises ValueError for a reduction other than 1."""
        if reduction not in self.reductions:
            raise ValueError(f"reduction is {reduction}, expected one of {self.reductions}")
        return self.pixels


class JpegPicture:
    """A JPEG file in memory, decoded by OpenCV on request, at full, 1/2, 1/4 or 1/8 size.

    Args:
        path: for errors.
        encoded: a whole JPEG of 1 or 3 channels.
        header: its size.
    """

    reductions: tuple[int, ...] = (1, 2, 4, 8)
    """libjpeg decodes the whole picture at 1 / r of height and width (rounded up), from the DCT coefficients."""

    def __init__(self, path: Path, encoded: bytes, header: jpeg.Header) -> None:
        self.path, self.encoded, self.header = path, encoded, header

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels, at reduction 1. Orientation tags are ignored, as in `read_rgb`."""
        return self.header.height, self.header.width

    def decode(self, reduction: int = 1) -> Pixels:
        """RGB uint8 [ceil(H / reduction), ceil(W / reduction), 3].

        Raises:
            DataError: the file is damaged.
            ValueError: the reduction is not among `reductions`.
        """
        if reduction not in self.reductions:
            raise ValueError(f"reduction is {reduction}, expected one of {self.reductions}")
        flags = _REDUCED[reduction] | cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        try:
            pixels = cv2.imdecode(np.frombuffer(self.encoded, np.uint8), flags)
        except cv2.error as error:  # more pixels than OpenCV reads
            raise DataError(f"{self.path}: cannot be read whole ({error.err}). Replace or remove it.") from None
        expected = tuple(-(-side // reduction) for side in self.size)
        if pixels is None or pixels.shape[:2] != expected:
            raise DataError(f"{self.path}: cannot be read whole (damaged JPEG). Replace or remove it.")
        return pixels


_REDUCED = {  # OpenCV's flags without the bit for BGR order, which excludes the RGB flag
    1: 0,
    2: cv2.IMREAD_REDUCED_COLOR_2 & ~cv2.IMREAD_COLOR,
    4: cv2.IMREAD_REDUCED_COLOR_4 & ~cv2.IMREAD_COLOR,
    8: cv2.IMREAD_REDUCED_COLOR_8 & ~cv2.IMREAD_COLOR,
}


def open_picture(path: Path) -> JpegPicture | DecodedPicture:
    """Open a picture file so that its size is known before decoding.

    Pixels equal those of `read_rgb`. Ordinary JPEGs are decoded later by OpenCV; all other files, including CMYK
    JPEGs, are decoded by `read_rgb` here.

    Raises the errors of `read_rgb` (damage inside a JPEG's data shows in `decode`).
    """
    return picture_of(path.read_bytes(), path)


def picture_of(encoded: bytes, path: Path) -> JpegPicture | DecodedPicture:
    """`open_picture` for the content of a file that is read already; `path` names it in errors."""
    header = jpeg.read_header(encoded)
    if header and header.height * header.width > 2 * (Image.MAX_IMAGE_PIXELS or math.inf):  # PIL's limit
        raise DataError(
            f"{path}: cannot be read whole ({header.height}x{header.width} pixels are more than memory should be given "
            "to). Replace or remove it."
        )
    if header and header.channels in (1, 3) and jpeg.is_whole(encoded):
        return JpegPicture(path, encoded, header)
    return DecodedPicture(np.array(read_rgb(path, encoded)))


def names_fingerprint(names: Iterable[str]) -> str:
    """Number of names and a hash of them, in order: "1000 files 1f2e...". Contents are not read."""
    names = list(names)
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()
    return f"{len(names)} files {digest[:16]}"


class UnlabeledImages(Sequence[Image.Image]):
    """Image files, read as RGB when indexed, with the errors of `read_rgb`."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]
        return read_rgb(self.paths[index])


class LabeledImages(NamedTuple):
    """Images and their classes."""

    paths: list[Path]
    labels: list[int]
    """For each path, an index into class_names."""
    class_names: list[str]


def class_folders(root: Path | str, class_names: Sequence[str] | None = None) -> LabeledImages:
    """Images of a folder with one sub-folder per class.

    Args:
        root: the folder of one split.
        class_names: the classes to index into, for an evaluation split that may lack some classes of the training
            split; default: the sub-folders of `root`, two or more.

    Raises:
        FileNotFoundError: no such path.
        DataError: no class folders, only one class, a class folder without images, or (with `class_names`) a folder
            that is not among them.
    """
    root = check_folder(root)
    folders = folders_in(root)
    if not folders:
        flat = len(images_in(root))
        lie = f" Its {flat} images lie in it directly: move them there." if flat else ""
        raise DataError(f"{root}: no class folders in it. Expected one sub-folder of images per class.{lie}")
    _check_distinct(folders)
    names = [folder.name for folder in folders] if class_names is None else list(class_names)
    if len(names) < 2:
        raise DataError(f"{root}: only one class ({names[0]}). Expected two or more sub-folders, one per class.")
    paths: list[Path] = []
    labels: list[int] = []
    left_out = Counter[str]()
    for folder in folders:
        label = _class_index(folder, names)
        images, other = files_and_rest(folder, IMAGE_SUFFIXES)
        if not images:
            raise DataError(f"{folder}: no images in it{_no_images(folder)}")
        paths += images
        labels += [label] * len(images)
        left_out += other
    say_left_out(root, left_out)
    if beside := images_in(root):
        say(f"{root}: {len(beside)} images are skipped, since they are not in a class folder ({beside[0].name}, ...).")
    return LabeledImages(paths, labels, names)


def _check_distinct(folders: Sequence[Path]) -> None:
    """Raise DataError if two class folders are the same folder, by a link."""
    by_target: dict[Path, Path] = {}
    for folder in folders:
        other = by_target.setdefault(folder.resolve(), folder)
        if other is not folder:
            raise DataError(f"{folder}: the same folder as {other}, by a link. Each class needs images of its own.")


def _class_index(folder: Path, names: list[str]) -> int:
    if folder.name in names:
        return names.index(folder.name)
    near = difflib.get_close_matches(folder.name, names, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise DataError(f"{folder}: a class that the training split does not have.{hint} It has {_some(names)}.")


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def split_folder(root: Path, names: Sequence[str]) -> Path | None:
    """The folder of a split: the first of these names (in any case) that exists; None without one."""
    folders = {folder.name.lower(): folder for folder in folders_in(root)}
    return next((folders[name] for name in names if name in folders), None)


def labeled_splits(root: Path | str) -> tuple[LabeledImages, LabeledImages]:
    """ROOT/train and ROOT/val (or another of VAL_FOLDERS), each a folder of class folders, with train's classes.

    Raises FileNotFoundError for a missing split, and the errors of `class_folders`.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder. Check the path.")
    train_folder, val_folder = (split_folder(root, names) for names in (TRAIN_FOLDERS, VAL_FOLDERS))
    if train_folder is None or val_folder is None:
        there = _some(sorted(path.name for path in root.iterdir())) or "nothing"
        raise FileNotFoundError(
            f"{root}: expected {TRAIN_FOLDERS[0]}/ and {' or '.join(VAL_FOLDERS)}/ in it, found {there}."
        )
    train = class_folders(train_folder)
    return train, class_folders(val_folder, train.class_names)
