"""Published data sets: how many images of which classes or names they have."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.davis import VAL_2017
from data.images import image_size
from data.jhmdb import PoseVideo
from data.keypoints import PASCAL_CLASSES, KeypointPair
from data.notices import say
from data.tracks import TrackedVideo
from data.vip import ParsedVideo

SAMPLED = 20  # images of each split whose sizes are looked at


@dataclass(frozen=True)
class KnownClasses:
    """A published data set of labeled images. Many others have as many classes and images."""

    name: str
    class_names: str = ""
    """SHA-256 of its class names, sorted, one a line; "" if copies of the set have different names."""
    pattern: str = ""
    """Pattern of each whole class name, if there is no digest. Names may also be the numbers 0 to K - 1 or 1 to K."""
    side: int | None = None
    """Width and height of every image, pixels; None where images have sizes of their own, as photographs do."""

    def has_classes(self, names: Sequence[str]) -> bool:
        """Whether these are the names of its classes."""
        if self.class_names:
            return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest() == self.class_names
        if all(name.isdecimal() for name in names):
            return sorted(map(int, names)) in (list(range(len(names))), list(range(1, len(names) + 1)))
        return bool(self.pattern) and all(re.fullmatch(self.pattern, name) for name in names)

    def has_sizes(self, images: Sequence[Path]) -> bool:
        """Whether some of the images have the sizes that its images have: copies of one size were resized."""
        return _sizes(images) == {(self.side, self.side)} if self.side else sizes_vary(images)


CLASSIFICATION_SETS = {
    # classes, training and test images
    (1000, 1_281_167, 50_000): KnownClasses(
        "ImageNet-1k", class_names="385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
    ),
    # Names, not numbers: ten numbered classes of 50,000 and 10,000 squares of 32 pixels may be digits.
    (10, 50_000, 10_000): KnownClasses(
        "CIFAR-10", class_names="bb3914949cecedee6d1257f7f5fdb8f43fa3b2c8095fd1763161caf1b873fe59", side=32
    ),
    (100, 50_000, 10_000): KnownClasses(
        "CIFAR-100", class_names="fbe8ad23bbaf24969898a386833b49c3aaf6ad1119d43f7b41cdea1b3416d578", side=32
    ),
    (102, 2_040, 6_149): KnownClasses("Flowers-102"),
    (196, 8_144, 8_041): KnownClasses("Stanford Cars", pattern=r".* (19|20)\d\d"),  # a class is make, model and year
    (8142, 437_513, 24_426): KnownClasses("iNaturalist 2018"),
    (1010, 265_213, 3_030): KnownClasses("iNaturalist 2019"),
}
SALIENCY_SETS = {"ECSSD": 1000, "DUTS-TE": 5019, "DUT-OMRON": 5168}
"""Images."""
VOC12_SEGMENTATION_VAL = 1449
"""Images."""
VOC07_NAME, VOC12_NAME = r"00\d{4}", r"20\d\d_\d{6}"
"""Pattern of the name of an image, without ending."""


@dataclass(frozen=True)
class KnownBoxes:
    """A published set of images with boxes."""

    layout: str
    listed: bool
    """Whether a list of images is given."""
    images: int
    pattern: str
    """Pattern of the name of each image, without ending."""


DISCOVERY_SETS = {
    "VOC07 trainval": KnownBoxes("voc", False, 5011, VOC07_NAME),
    "VOC12 trainval": KnownBoxes("voc", False, 11540, VOC12_NAME),
    "COCO20k": KnownBoxes("coco", True, 19817, r"COCO_train2014_\d{12}"),
}
ADE20K_VAL, CITYSCAPES_VAL, VOC12_TRAINAUG = 2000, 500, 10_582
"""Images."""
LISTED_PARTS = {
    "VOC12 segmentation val, trainaug": {1320: 8, 160: 64, 80: 128},
    "ADE20K val": {2550: 8, 300: 64, 150: 128},
}
"""Data set -> training images in a published list of a part -> the part: 8 for an eighth (open-hummingbird-eval,
file_sets/)."""
PART_LISTS = 5
"""Lists of each part."""
ADE20K_NAME, CITYSCAPES_NAME = r"ADE_val_\d{8}", r"[a-z-]+_\d{6}_\d{6}(_leftImg8bit)?"
CITYSCAPES_SIZE = (1024, 2048)
"""Height and width of every image."""
SPAIR_PAIRS = 12_234
"""Pairs of its test split, which all have a common point."""
SPAIR_CATEGORIES = frozenset(PASCAL_CLASSES) - {"diningtable", "sofa"}
TRACKING_VIDEOS = {"TAP-Vid DAVIS": 30, "TAP-Vid RGB-Stacking": 50}
RGB_STACKING = (250, 256, 256, 3)
"""Frames of each video of RGB-Stacking, and their height, width and channels (arXiv 2211.03726)."""
JHMDB_TEST = 268
"""Videos of split 1's test list."""
JHMDB_ACTIONS = frozenset(
    [
        *("brush_hair", "catch", "clap", "climb_stairs", "golf", "jump", "kick_ball", "pick", "pour", "pullup", "push"),
        *("run", "shoot_ball", "shoot_bow", "shoot_gun", "sit", "stand", "swing_baseball", "throw", "walk", "wave"),
    ]
)
JHMDB_SIZE = (240, 320)
"""Height and width of every frame."""
VIP_VAL = 50
"""Videos."""
VIP_NAME = r"videos?\d+"


def classification_set(
    root: Path, class_names: Sequence[str], train: Sequence[Path], test: Sequence[Path]
) -> str | None:
    """The published set that these labeled images are, by counts, class names and sizes; None for any other.

    A line tells the user where only the counts are a published set's. Corrupted copies that keep names and sizes
    cannot be told apart: for them there is the option `--benchmark none`.

    Raises:
        DataError: an image whose size is looked at cannot be read.
    """
    known = CLASSIFICATION_SETS.get((len(class_names), len(train), len(test)))
    if known is None:
        return None
    if not known.has_classes(class_names):
        differs = "other class names"
    elif not (known.has_sizes(train) and known.has_sizes(test)):
        differs = "images of other sizes"
    else:
        return known.name
    say(f"{root}: as many classes and images as {known.name}, but {differs}: other images, compared with no paper.")
    return None


def discovery_set(layout: str, listed: bool, images: Sequence[Path]) -> str | None:
    """The published set that these images with boxes are, by count and names; None for any other."""
    for name, known in DISCOVERY_SETS.items():
        same = (layout, listed, len(images)) == (known.layout, known.listed, known.images)
        if same and are_named(images, known.pattern):
            return name
    return None


def are_named(images: Sequence[Path], pattern: str) -> bool:
    """Whether each file's name, without its ending, matches entirely."""
    return all(re.fullmatch(pattern, image.stem) for image in images)


def pixel_set(val: Sequence[Path], train: Sequence[Path] | None = None) -> str | None:
    """The published set that images with a class at every pixel are, by count, names and sizes; None for any other.

    Args:
        train: the images that a method learns from; None where it learns from none.
    """
    count = len(val)
    if count == VOC12_SEGMENTATION_VAL and are_named(val, VOC12_NAME) and sizes_vary(val):
        training = ", trainaug" if train is not None and len(train) == VOC12_TRAINAUG else ", train" if train else ""
        return f"VOC12 segmentation val{training}"
    if count == ADE20K_VAL and are_named(val, ADE20K_NAME) and sizes_vary(val):
        return "ADE20K val"
    if count == CITYSCAPES_VAL and are_named(val, CITYSCAPES_NAME) and _sizes(val) == {CITYSCAPES_SIZE}:
        return "Cityscapes val"
    return None


def part_set(dataset: str | None, sizes: Sequence[int]) -> str | None:
    """The published set of which only lists of training images are used, by how many lists of how many images; None for
    any other.

    Args:
        dataset: the published set with all its training images.
        sizes: training images of each list.
    """
    parts = LISTED_PARTS.get(dataset or "", {})
    if len(sizes) != PART_LISTS or len(set(sizes)) > 1 or sizes[0] not in parts:
        return None
    return part_name(dataset, parts[sizes[0]])


def part_name(dataset: str | None, part: int) -> str | None:
    """Name of a published set with a part of its training images, 8 for an eighth; the set's own for other parts."""
    return f"{dataset}, 1/{part}" if part in LISTED_PARTS.get(dataset or "", {}).values() else dataset


def keypoint_set(pairs: Sequence[KeypointPair]) -> str | None:
    """The published set that these pairs are, by count, categories and sizes; None for any other."""
    same = len(pairs) == SPAIR_PAIRS and {pair.category for pair in pairs} == SPAIR_CATEGORIES
    return "SPair-71k test" if same and len({pair.source_size for pair in pairs}) > 1 else None


def tracking_set(file: Path, videos: Sequence[TrackedVideo]) -> str | None:
    """The published set that a pickle of videos is, by its name, and the names or sizes of its videos; None for any
    other."""
    name = {"tapvid_davis": "TAP-Vid DAVIS", "tapvid_rgb_stacking": "TAP-Vid RGB-Stacking"}.get(file.stem)
    if name is None or len(videos) != TRACKING_VIDEOS[name]:
        return None
    if name == "TAP-Vid DAVIS":
        return name if {video.name for video in videos} == VAL_2017 else None
    return name if all(getattr(video.frames, "shape", None) == RGB_STACKING for video in videos) else None


def pose_set(videos: Sequence[PoseVideo]) -> str | None:
    """The published set that these videos are, by count, actions and sizes; None for any other."""
    actions = frozenset(video.name.partition("/")[0] for video in videos)
    sizes = {video.size for video in videos}
    same = len(videos) == JHMDB_TEST and actions == JHMDB_ACTIONS and sizes == {JHMDB_SIZE}
    return "JHMDB split 1 test" if same else None


def parts_set(videos: Sequence[ParsedVideo]) -> str | None:
    """The published set that these videos are, by count and names; None for any other."""
    named = all(re.fullmatch(VIP_NAME, video.name) for video in videos)
    return "VIP val" if named and len(videos) == VIP_VAL else None


def sizes_vary(images: Sequence[Path]) -> bool:
    """Whether some of the images differ in size, as photographs do: copies of one size were resized."""
    return len(_sizes(images)) > 1


def _sizes(images: Sequence[Path]) -> set[tuple[int, int]]:
    """(height, width) of some of the images."""
    return {image_size(images[index]) for index in range(0, len(images), max(1, len(images) // SAMPLED))}
