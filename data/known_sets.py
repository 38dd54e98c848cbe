"""Published data sets: how many images of which classes or names they have."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.images import image_size
from data.notices import say

SAMPLED = 20  # images of each split whose sizes are looked at


@dataclass(frozen=True)
class KnownClasses:
    """A published data set of labeled images. Many others have as many classes and images."""

    name: str
    class_names: str = ""
    """SHA-256 of its class names, sorted, one a line; "" where they are not the same everywhere."""
    pattern: str = ""
    """What each class name matches entirely, where there is no digest; classes of numbers alone are 0 to K - 1, or 1 to
    K."""
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
        sizes = {image_size(images[index]) for index in range(0, len(images), max(1, len(images) // SAMPLED))}
        return sizes == {(self.side, self.side)} if self.side else len(sizes) > 1


CLASSIFICATION_SETS = {
    # classes, training and test images
    (1000, 1_281_167, 50_000): KnownClasses(
        "ImageNet-1k", class_names="385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
    ),
    (10, 50_000, 10_000): KnownClasses(
        "CIFAR-10", pattern="airplane|automobile|bird|cat|deer|dog|frog|horse|ship|truck", side=32
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
"""Of an image, without ending."""


@dataclass(frozen=True)
class KnownBoxes:
    """A published set of images with boxes."""

    layout: str
    listed: bool
    """Whether a list of images is given."""
    images: int
    pattern: str
    """What the name of each image's file matches, without ending."""


DISCOVERY_SETS = {
    "VOC07 trainval": KnownBoxes("voc", False, 5011, VOC07_NAME),
    "VOC12 trainval": KnownBoxes("voc", False, 11540, VOC12_NAME),
    "COCO20k": KnownBoxes("coco", True, 19817, r"COCO_train2014_\d{12}"),
}
KEYPOINT_SETS = {
    # categories, pairs with a common point
    (18, 12_234): "SPair-71k test",
}
TRACKING_SETS = {
    # videos, name of the file
    (30, "tapvid_davis"): "TAP-Vid DAVIS",
    (50, "tapvid_rgb_stacking"): "TAP-Vid RGB-Stacking",
}
JHMDB_TEST = 268
"""Videos of split 1's test list."""
VIP_VAL = 50
"""Videos."""


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
