"""Images with a mask of what is in them: saliency sets, VOC segmentation, DAVIS frames.

Layouts, as the sets ship::

    ECSSD/       images/*.jpg               ground_truth_mask/*.png
    DUTS-TE/     DUTS-TE-Image/*.jpg        DUTS-TE-Mask/*.png
    DUT-OMRON/   DUT-OMRON-image/*.jpg      pixelwiseGT-new-PNG/*.png
    any/         images/*                   masks/*
    VOC2012/     JPEGImages/*.jpg           SegmentationObject/*.png    ImageSets/Segmentation/val.txt
    DAVIS/       see `data.davis`
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from data import DataError
from data.arrays import Pixels
from data.davis import load_davis
from data.files import IMAGE_SUFFIXES, is_hidden
from data.images import list_images, read_rgb
from data.masks import ID_SUFFIXES, VOID_ID, read_foreground, read_ids
from data.voc import voc_entries

Layout = Literal["auto", "pairs", "voc", "davis"]


FOLDER_PAIRS = (
    ("images", "ground_truth_mask"),
    ("DUTS-TE-Image", "DUTS-TE-Mask"),
    ("DUT-OMRON-image", "pixelwiseGT-new-PNG"),
    ("images", "masks"),
)
"""Names of the image and the mask folder of known sets."""


DEPTH = 2  # folders below the root that are looked into


MASK_MODES = frozenset({"1", "L", "P", "LA", "I;16"})  # PIL modes that are no colour photograph's


@dataclass(frozen=True)
class MaskedImage:
    """An image file and the mask file that belongs to it."""

    name: str
    """Unique in its set."""
    image: Path
    mask: Path
    has_ids: bool = False
    """Whether mask values are object ids with 255 as void; else any value above 0 is the one object."""

    def read(self) -> tuple[Pixels, Pixels]:
        """RGB [H, W, 3], and ids [H, W]: 0 background, 1 and up objects, 255 void (only with `has_ids`).

        Raises:
            DataError: a file is missing or unreadable, or their sizes differ.
        """
        rgb = np.asarray(read_rgb(self.image))
        ids = read_ids(self.mask) if self.has_ids else read_foreground(self.mask)
        if ids.shape != rgb.shape[:2]:
            raise DataError(
                f"{self.mask}: {ids.shape[0]}x{ids.shape[1]} pixels (height x width), but {self.image} has "
                f"{rgb.shape[0]}x{rgb.shape[1]}; an image and its mask must have one size"
            )
        return rgb, ids


def load_saliency(
    root: str | Path,
    layout: Layout = "auto",
    *,
    split: str = "val",
    year: int = 2016,
    sequences: Sequence[str] | None = None,
) -> list[MaskedImage]:
    """The images of a set, in natural order (or in that of its list).

    Args:
        root: its folder.
        layout: which of the layouts above; "auto" looks.
        split: list under ImageSets (voc: ImageSets/Segmentation; davis: ImageSets/YEAR).
        year: of davis: 2016 (one foreground) or 2017 (ids).
        sequences: of davis: only these.

    Raises:
        DataError: no such folder, folders that are not found, images without masks or masks without images.
    """
    root = Path(root)
    layout = detect_layout(root) if layout == "auto" else layout
    if sequences is not None and layout != "davis":
        raise DataError(f"{root}: sequences were named, but this is no DAVIS tree (layout {layout})")
    if layout == "voc":
        return load_voc_object_masks(root, split)
    if layout == "davis":
        return load_davis_frames(root, split, year, sequences)
    return load_pairs(root)


def detect_layout(root: Path) -> Literal["pairs", "voc", "davis"]:
    """Which layout a folder has; DataError if there is no such folder."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected images and masks in two folders, a VOC or a DAVIS tree")
    if (root / "SegmentationObject").is_dir():
        return "voc"
    return "davis" if (root / "JPEGImages").is_dir() and (root / "Annotations").is_dir() else "pairs"


def load_pairs(root: Path) -> list[MaskedImage]:
    """Images and masks of the same names in two folders below `root`."""
    folders = _pair_of_folders(root)
    images, masks = (_by_stem(folder) for folder in folders)
    alone = sorted(set(images) ^ set(masks))
    if alone:
        lacking = [f"{len(set(a) - set(b))} of {len(a)}" for a, b in ((images, masks), (masks, images))]
        raise DataError(
            f"{root}: {lacking[0]} images in {folders[0].name} have no mask of their name, {lacking[1]} masks in "
            f"{folders[1].name} no image: {', '.join(alone[:5])}{', ...' if len(alone) > 5 else ''}. Copy what is "
            "missing, or take the others out"
        )
    return [MaskedImage(stem, images[stem], masks[stem]) for stem in images]


def load_voc_object_masks(root: Path, split: str = "val") -> list[MaskedImage]:
    """The images of a VOC segmentation list, with their object masks."""
    entries = voc_entries(root, "Segmentation", split, "SegmentationObject", ID_SUFFIXES)
    return [MaskedImage(entry.name, entry.image, entry.other, has_ids=True) for entry in entries]


def load_davis_frames(root: Path, split: str, year: int, sequences: Sequence[str] | None = None) -> list[MaskedImage]:
    """Every frame of a DAVIS split, with its mask."""
    frames = []
    for sequence in load_davis(root, year, split, sequences):
        for image, mask in zip(sequence.frames, sequence.masks, strict=True):
            if mask is None:
                raise DataError(f"{image}: no mask for this frame; every frame of a saliency set needs one")
            frames.append(MaskedImage(f"{sequence.name}/{image.stem}", image, mask, has_ids=year != 2016))
    return frames


def object_masks(ids: Pixels) -> list[npt.NDArray[np.bool_]]:
    """A mask [H, W] for each object of ids [H, W]; background and void are none."""
    return [ids == value for value in np.unique(ids) if value not in (0, VOID_ID)]


def _pair_of_folders(root: Path) -> tuple[Path, Path]:
    """Where the images are, and where the masks: by known names, else by what is in them."""
    below = [root, *(path for depth in range(1, DEPTH + 1) for path in sorted(root.glob("*/" * depth)))]
    parents = [path for path in below if path.is_dir() and not is_hidden(path, root)]
    for images, masks in FOLDER_PAIRS:
        for parent in parents:
            if (parent / images).is_dir() and (parent / masks).is_dir():
                return parent / images, parent / masks
    folders = [path for path in parents if any(_is_image(entry) for entry in path.iterdir())]
    grey = [path for path in folders if _looks_like_masks(path)]
    if len(folders) != 2 or len(grey) != 1:
        known = " or ".join(f"{images}/ and {masks}/" for images, masks in FOLDER_PAIRS)
        found = ", ".join(path.relative_to(root).as_posix() for path in folders) or "none"
        raise DataError(
            f"{root}: expected {known}, or one folder of colour images and one of grey masks; found folders with "
            f"images: {found}, with grey ones: {len(grey)}"
        )
    return next(path for path in folders if path not in grey), grey[0]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def _looks_like_masks(folder: Path) -> bool:
    """Whether the first file is no colour image."""
    first = next(path for path in sorted(folder.iterdir()) if _is_image(path))
    try:
        with Image.open(first) as image:
            return image.mode in MASK_MODES
    except OSError as error:
        raise DataError(f"{first}: not an image that can be read ({error}). Replace or remove it.") from None


def _by_stem(folder: Path) -> dict[str, Path]:
    """Images by name without ending; DataError where two have the same."""
    paths = list_images(folder)
    twice = [stem for stem, count in Counter(path.stem for path in paths).items() if count > 1]
    if twice:
        raise DataError(f"{folder}: more than one file named {twice[0]}; masks are found by name, so names are unique")
    return {path.stem: path for path in paths}
