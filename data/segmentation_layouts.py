"""Images with a class for every pixel, in the layout that each data set ships.

voc         JPEGImages/*.jpg  SegmentationClass/*.png  ImageSets/Segmentation/SPLIT.txt (SegmentationClassAug for
            lists whose name ends in "aug", where it is there)
ade20k      images/{training,validation}/*.jpg  annotations/{training,validation}/*.png (0 is "other")
cityscapes  leftImg8bit/SPLIT/CITY/*_leftImg8bit.png  gtFine/SPLIT/CITY/*_gtFine_{labelTrainIds,labelIds}.png
coco        {train,val}2017/*.jpg (or below images/)  stuffthingmaps/{train,val}2017/*.png (or annotations/)
camvid      SPLIT/*.png  SPLITannot/*.png (11 is void)
folder      images/SPLIT/*  masks/SPLIT/*, or SPLIT/images/*  SPLIT/masks/*: class ids, 255 is void
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data import DataError
from data.files import IMAGE_SUFFIXES, list_files, read_by_stem
from data.segmentation import VOID, LabeledPixels, load_voc_class_masks

Layout = Literal["auto", "voc", "ade20k", "cityscapes", "coco", "camvid", "folder"]
CocoClasses = Literal["fine", "coarse", "things", "stuff"]

MASK_FOLDERS = ("masks", "annotations", "labels", "gt", "SegmentationClass")
"""Names of the folder of masks in the layout `folder`, tried in this order."""
SPLIT_NAMES = {"ade20k": {"train": "training", "val": "validation"}, "coco": {"train": "train2017", "val": "val2017"}}
"""Layout -> split as people call it -> the folder's name."""

ADE20K_CLASSES = 150
CITYSCAPES_CLASSES = (
    *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation"),
    *("terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
CITYSCAPES_SCORED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Label ids of the 19 classes that are scored, in their order (cityscapesScripts, `helpers/labels.py`)."""
CITYSCAPES_LABELS = 34
CAMVID_CLASSES = (
    *("sky", "building", "pole", "road", "sidewalk", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
)
COCO_THINGS = (
    *("electronic", "appliance", "food", "furniture", "indoor", "kitchen", "accessory", "animal", "outdoor", "person"),
    *("sports", "vehicle"),
)
COCO_STUFF = (
    *("ceiling", "floor", "food-stuff", "furniture-stuff", "raw material", "textile", "wall", "window", "building"),
    *("ground", "plant", "sky", "solid", "structural", "water"),
)
COCO_COARSE = (
    *(9, *[11] * 8, *[8] * 6, *[7] * 10, *[6] * 8, *[10] * 10, *[5] * 8, *[2] * 10, *[3] * 10, *[0] * 6, *[1] * 6),
    *([4] * 8),
    *(17, 17, 22, 20, 20, 22, 15, 25, 16, 13, 12, 12, 17, 17, 23, 15, 15, 17, 15, 21, 15, 25, 13, 13, 13, 13, 13, 22),
    *(26, 14, 14, 15, 22, 21, 21, 24, 20, 22, 15, 17, 16, 15, 22, 24, 21, 17, 25, 16, 21, 17, 22, 16, 21, 21, 25, 21),
    *(26, 21, 24, 20, 17, 14, 21, 26, 15, 23, 20, 21, 24, 15, 24, 22, 25, 15, 20, 17, 17, 22, 14, *[18] * 7, 26, 26),
    *(19, 19, 24),
)
"""The supercategory, in COCO_THINGS + COCO_STUFF, of each of the 182 ids of COCO-Stuff's maps (its label hierarchy)."""

NO_CLASS = -1
"""In a table of ids: an id that no mask of the layout has."""


@dataclass(frozen=True)
class LabeledList:
    """The images of a split, and what their ids mean."""

    pairs: list[LabeledPixels]
    class_names: tuple[str, ...] | None = None
    """None where only the masks say how many classes there are."""
    has_other: bool = False
    """Whether class 0 is "other", pixels that are labeled and not scored (ADE20K)."""


def open_labeled(
    root: Path | str, split: str, layout: Layout = "auto", *, classes: CocoClasses = "fine", zero_is_void: bool = False
) -> LabeledList:
    """The images of a split with their masks.

    Args:
        split: the name of its list or folder; `train` and `val` are understood in every layout.
        classes: of COCO: the 182 ids of its maps, 27 supercategories, or 12 of things or 15 of stuff alone, the others
            void.
        zero_is_void: of ADE20K: leave out its 0, so that ids begin with the first class (`reduce_zero_label`).

    Raises:
        DataError: the folder is in no known layout, or an image, a mask or a list is missing.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected images with a class for every pixel")
    name = layout if layout != "auto" else layout_of(root)
    folder = SPLIT_NAMES.get(name, {}).get(split, split)
    if name == "ade20k":
        return _ade20k(root, folder, zero_is_void)
    if name == "coco":
        return _coco(root, folder, classes)
    readers: dict[str, Callable[[Path, str], LabeledList]] = {
        "voc": _voc,
        "cityscapes": _cityscapes,
        "camvid": _camvid,
        "folder": _folder,
    }
    return readers[name](root, folder)


def layout_of(root: Path) -> Layout:
    """The layout of a folder, by the names in it.

    Raises:
        DataError: it is none of them.
    """
    if (root / "JPEGImages").is_dir():
        return "voc"
    if (root / "leftImg8bit").is_dir():
        return "cityscapes"
    if (root / "ADEChallengeData2016").is_dir() or (root / "annotations" / "training").is_dir():
        return "ade20k"
    if any((root / name).is_dir() for name in ("stuffthingmaps", "annotations/train2017", "annotations/val2017")):
        return "coco"
    if any(path.is_dir() for path in root.glob("*annot")):
        return "camvid"
    if _mask_folder(root) or any(_mask_folder(path) for path in root.glob("*/")):
        return "folder"
    there = sorted(path.name for path in root.iterdir())[:8]
    raise DataError(
        f"{root}: in no layout that is known; expected JPEGImages with ImageSets/Segmentation (voc), leftImg8bit "
        "(cityscapes), annotations/training (ade20k), stuffthingmaps (coco), trainannot (camvid), or images and masks "
        f"(folder); there are {', '.join(there) or 'no files'}"
    )


def _voc(root: Path, split: str) -> LabeledList:
    augmented = split.endswith("aug") and (root / "SegmentationClassAug").is_dir()
    return LabeledList(load_voc_class_masks(root, split, "SegmentationClassAug" if augmented else "SegmentationClass"))


def _ade20k(root: Path, split: str, zero_is_void: bool) -> LabeledList:
    inner = root / "ADEChallengeData2016"
    root = inner if inner.is_dir() else root
    names = tuple(f"class {index}" for index in range(1, ADE20K_CLASSES + 1))
    table = (VOID, *range(ADE20K_CLASSES)) if zero_is_void else tuple(range(ADE20K_CLASSES + 1))
    pairs = _paired(root / "images" / split, root / "annotations" / split, table=table)
    return LabeledList(pairs, names if zero_is_void else ("other", *names), has_other=not zero_is_void)


def _cityscapes(root: Path, split: str) -> LabeledList:
    images, masks = root / "leftImg8bit" / split, root / "gtFine" / split
    kind = "labelTrainIds" if next(masks.glob("*/*_labelTrainIds.png"), None) else "labelIds"
    classes = range(len(CITYSCAPES_CLASSES))
    of_label = dict(zip(CITYSCAPES_SCORED, classes, strict=True))
    table = (
        tuple(classes) if kind == "labelTrainIds" else tuple(of_label.get(i, VOID) for i in range(CITYSCAPES_LABELS))
    )
    pairs = _paired(images, masks, lambda name: name.replace("_leftImg8bit", f"_gtFine_{kind}"), table=table)
    return LabeledList(pairs, CITYSCAPES_CLASSES)


def _coco(root: Path, split: str, classes: CocoClasses) -> LabeledList:
    images = next((root / p / split for p in (".", "images") if (root / p / split).is_dir()), root / "images" / split)
    masks = next((root / p / split for p in ("stuffthingmaps", "annotations") if (root / p / split).is_dir()), None)
    pairs_of = {
        "fine": (tuple(range(len(COCO_COARSE))), tuple(f"class {index}" for index in range(len(COCO_COARSE)))),
        "coarse": (COCO_COARSE, COCO_THINGS + COCO_STUFF),
        "things": (tuple(c if c < len(COCO_THINGS) else VOID for c in COCO_COARSE), COCO_THINGS),
        "stuff": (
            tuple(c - len(COCO_THINGS) if c >= len(COCO_THINGS) else VOID for c in COCO_COARSE),
            COCO_STUFF,
        ),
    }
    table, names = pairs_of[classes]
    return LabeledList(_paired(images, masks or root / "stuffthingmaps" / split, table=table), names)


def _camvid(root: Path, split: str) -> LabeledList:
    table = (*range(len(CAMVID_CLASSES)), VOID)
    return LabeledList(_paired(root / split, root / f"{split}annot", table=table), CAMVID_CLASSES)


def _folder(root: Path, split: str) -> LabeledList:
    for outer, inner in ((root, split), (root / split, ".")):
        masks = _mask_folder(outer)
        if masks and (outer / "images" / inner).is_dir():
            return LabeledList(_paired(outer / "images" / inner, masks / inner))
    there = sorted(path.name for path in (root / "images").glob("*/")) or sorted(path.name for path in root.glob("*/"))
    raise DataError(
        f"{root / 'images' / split}: no such split; expected images/{split} with masks/{split}, or {split}/images with "
        f"{split}/masks; there are {', '.join(there[:8]) or 'none'}. Name another split than {split!r}"
    )


def _mask_folder(root: Path) -> Path | None:
    """The folder of masks beside images/, if both are there."""
    if not (root / "images").is_dir():
        return None
    return next((root / name for name in MASK_FOLDERS if (root / name).is_dir()), None)


def _paired(
    images: Path, masks: Path, mask_name: Callable[[str], str] = str, *, table: tuple[int, ...] | None = None
) -> list[LabeledPixels]:
    """Every image below a folder with the mask of the same name (or `mask_name` of it) below another."""
    for folder in (images, masks):
        if not folder.is_dir():
            there = sorted(path.name for path in folder.parent.glob("*/"))
            raise DataError(f"{folder}: no such folder; beside it are {', '.join(there[:8]) or 'none'}")
    find, pairs, seen = read_by_stem(masks), list[LabeledPixels](), dict[str, Path]()
    for image in list_files(images, IMAGE_SUFFIXES):
        name = mask_name(str(image.relative_to(images).with_suffix("")))
        mask = find(name)
        if mask is None:
            raise DataError(f"{masks / name}.png: no such file, but there is {image}; every image needs its mask")
        if image.stem in seen:
            raise DataError(f"{image} and {seen[image.stem]}: two images of one name. Rename one, with its mask")
        seen[image.stem] = image
        pairs.append(LabeledPixels(image, mask, table=table))
    if not pairs:
        raise DataError(f"{images}: no image in it")
    return pairs
