"""Images with object masks: saliency sets, VOC segmentation, DAVIS frames.

Layouts::

    ECSSD/       images/*.jpg               ground_truth_mask/*.png
    DUTS-TE/     DUTS-TE-Image/*.jpg        DUTS-TE-Mask/*.png
    DUT-OMRON/   DUT-OMRON-image/*.jpg      pixelwiseGT-new-PNG/*.png
    any/         images/*                   masks/*                     (or img, gt, ...: by name or by content)
    VOC2012/     JPEGImages/*.jpg           SegmentationObject/*.png    ImageSets/Segmentation/val.txt
    DAVIS/       see `data.davis`
"""

import itertools
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
from data.files import IMAGE_SUFFIXES, is_hidden, is_system, natural_key
from data.foreground import ForegroundRule, foreground_rule
from data.images import list_images, read_rgb
from data.known_sets import SALIENCY_SETS
from data.masks import ID_SUFFIXES, VOID_ID, read_foreground, read_ids
from data.voc import voc_entries

Layout = Literal["auto", "pairs", "voc", "davis"]


PUBLISHED_PAIRS = {
    ("images", "ground_truth_mask"): "ECSSD",
    ("DUTS-TE-Image", "DUTS-TE-Mask"): "DUTS-TE",
    ("DUT-OMRON-image", "pixelwiseGT-new-PNG"): "DUT-OMRON",
}
"""Names of the image and the mask folder of published sets, in which any value above 0 is object."""

FOLDER_PAIRS = (*PUBLISHED_PAIRS, ("images", "masks"))
"""Names of the image and the mask folder of known sets."""

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages", "photos", "rgb")
MASK_FOLDERS = (
    "masks",
    "mask",
    "gt",
    "gts",
    "ground_truth",
    "groundtruth",
    "ground_truth_mask",
    "labels",
    "annotations",
)
"""Names, in lower case, of folders of other people's sets."""

DEPTH = 2  # levels of folders below the root to search


MASK_MODES = frozenset({"1", "L", "P", "LA", "I;16"})  # PIL modes that are no color photograph's
MASK_COLORS = 0.9  # smallest share of the two most frequent colors in a mask stored in color, without noise


@dataclass(frozen=True)
class MaskedImage:
    """An image file and its mask file."""

    name: str
    """Unique in its set."""
    image: Path
    mask: Path
    has_ids: bool = False
    """Whether mask values are object ids with 255 as void; else there is one object."""
    rule: ForegroundRule | None = None
    """The rule for the foreground; None for any value above 0 (published sets)."""
    video: str = ""
    """Name of the video of a frame; "" for a single image."""

    def read(self) -> tuple[Pixels, Pixels]:
        """RGB [H, W, 3], and ids [H, W]: 0 background, objects from 1 on, 255 void (only with `has_ids`).

        Raises:
            DataError: a file is missing or unreadable, or their sizes differ.
        """
        rgb = np.asarray(read_rgb(self.image))
        ids = self._read_ids()
        if ids.shape != rgb.shape[:2]:
            raise DataError(
                f"{self.mask}: {ids.shape[0]}x{ids.shape[1]} pixels (height x width), but {self.image} has "
                f"{rgb.shape[0]}x{rgb.shape[1]}; an image and its mask must have one size"
            )
        return rgb, ids

    def _read_ids(self) -> Pixels:
        if self.has_ids:
            return read_ids(self.mask)
        return self.rule.read(self.mask) if self.rule else read_foreground(self.mask)


def load_saliency(
    root: str | Path,
    layout: Layout = "auto",
    *,
    split: str = "val",
    year: int = 2016,
    sequences: Sequence[str] | None = None,
) -> list[MaskedImage]:
    """The images of a set, in natural order or the order of its list.

    Args:
        root: its folder.
        layout: one of the layouts above, or "auto" to detect it.
        split: list under ImageSets (voc: ImageSets/Segmentation; davis: ImageSets/YEAR).
        year: davis only: 2016 (one foreground) or 2017 (ids).
        sequences: davis only: use only these.

    Raises:
        DataError: a folder is missing, or an image has no mask, or a mask no image.
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
    """The layout of a folder; DataError if there is no such folder."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected images and masks in two folders, a VOC or a DAVIS tree")
    if (root / "SegmentationObject").is_dir():
        return "voc"
    return "davis" if (root / "JPEGImages").is_dir() and (root / "Annotations").is_dir() else "pairs"


def load_pairs(root: Path) -> list[MaskedImage]:
    """Images and masks with the same names in two folders below `root`; masks may share an affix (a_mask.png).

    A complete published set is read by its own rule. For other sets, all masks decide the rule (`foreground_rule`).
    """
    folders = _pair_of_folders(root)
    images, masks = (_by_stem(folder) for folder in folders)
    if images.keys() != masks.keys():
        images, masks = _without_common_words(images, masks)
    alone = sorted(set(images) ^ set(masks))
    if alone:
        lacking = [f"{len(set(a) - set(b))} of {len(a)}" for a, b in ((images, masks), (masks, images))]
        raise DataError(
            f"{root}: {lacking[0]} images in {folders[0].name} have no mask of their name, {lacking[1]} masks in "
            f"{folders[1].name} no image: {', '.join(alone[:5])}{', ...' if len(alone) > 5 else ''}. Copy what is "
            "missing, or take the others out"
        )
    published = PUBLISHED_PAIRS.get((folders[0].name, folders[1].name))
    is_published = published is not None and SALIENCY_SETS[published] == len(images)
    rule = None if is_published else foreground_rule([masks[stem] for stem in images])
    return [MaskedImage(images[stem].stem, images[stem], masks[stem], rule=rule) for stem in images]


def _without_common_words(images: dict[str, Path], masks: dict[str, Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Both dicts without the common prefix and suffix of the names in a folder, if the names are then equal."""
    cut_images, cut_masks = _cut(images), _cut(masks)
    if len(images) > 1 and cut_images.keys() == cut_masks.keys() and len(cut_images) == len(images):
        return cut_images, {stem: cut_masks[stem] for stem in cut_images}
    return images, masks


def _cut(files: dict[str, Path]) -> dict[str, Path]:
    names = list(files)
    start = _same_characters(names)
    end = _same_characters([name[start:][::-1] for name in names])
    return {name[start : len(name) - end]: files[name] for name in names}


def _same_characters(names: Sequence[str]) -> int:
    """Length of the common prefix of all names."""
    return sum(1 for _ in itertools.takewhile(lambda row: len(set(row)) == 1, zip(*names, strict=False)))


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
            frames.append(MaskedImage(f"{sequence.name}/{image.stem}", image, mask, year != 2016, video=sequence.name))
    return frames


def object_masks(ids: Pixels) -> list[npt.NDArray[np.bool_]]:
    """A mask [H, W] for each object of ids [H, W], without background and void."""
    return [ids == value for value in np.unique(ids) if value not in (0, VOID_ID)]


def _pair_of_folders(root: Path) -> tuple[Path, Path]:
    """The folders of images and masks: by known names, else by content."""
    below = [
        root,
        *(path for depth in range(1, DEPTH + 1) for path in sorted(root.glob("*/" * depth), key=natural_key)),
    ]
    parents = [path for path in below if path.is_dir() and not is_hidden(path, root)]
    for images, masks in FOLDER_PAIRS:
        for parent in parents:
            if (parent / images).is_dir() and (parent / masks).is_dir():
                return parent / images, parent / masks
    folders = [path for path in parents if any(_is_image(entry) for entry in path.iterdir())]
    named = _named_pair(folders)
    if named:
        return named
    gray = [path for path in folders if _looks_like_masks(path)]
    if len(folders) != 2 or len(gray) != 1:
        known = " or ".join(f"{images}/ and {masks}/" for images, masks in FOLDER_PAIRS)
        names = ", ".join(path.relative_to(root).as_posix() for path in folders) or "none"
        raise DataError(
            f"{root}: expected {known}, or one folder of color images and one of gray masks; found folders with "
            f"images: {names}, with gray ones: {len(gray)}"
        )
    return next(path for path in folders if path not in gray), gray[0]


def _named_pair(folders: Sequence[Path]) -> tuple[Path, Path] | None:
    """The only folder with a name for images, and the only folder with a name for masks."""
    images, masks = (
        [path for path in folders if path.name.lower() in names] for names in (IMAGE_FOLDERS, MASK_FOLDERS)
    )
    return (images[0], masks[0]) if len(images) == len(masks) == 1 else None


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not is_system(path.name) and path.is_file()


def _looks_like_masks(folder: Path) -> bool:
    """Whether the first file is no color image, or has almost only two colors."""
    first = next(path for path in sorted(folder.iterdir(), key=natural_key) if _is_image(path))
    try:
        with Image.open(first) as image:
            if image.mode in MASK_MODES:
                return True
            colors = np.array(image.convert("RGB")).reshape(-1, 3) // 32  # noise of lossy formats is smaller
    except OSError as error:
        raise DataError(f"{first}: not an image that can be read ({error}). Replace or remove it.") from None
    counts = np.sort(np.unique(colors, axis=0, return_counts=True)[1])
    return len(counts) > 1 and counts[-2:].sum() >= MASK_COLORS * len(colors)


def _by_stem(folder: Path) -> dict[str, Path]:
    """Images by stem; DataError if two have the same."""
    paths = list_images(folder)
    twice = [stem for stem, count in Counter(path.stem for path in paths).items() if count > 1]
    if twice:
        raise DataError(f"{folder}: more than one file named {twice[0]}; masks are found by name, so names are unique")
    return {path.stem: path for path in paths}
