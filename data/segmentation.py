"""Images with a class for every pixel, in the layout of PASCAL VOC.

<root>/JPEGImages/<name>.jpg            or any other picture
<root>/SegmentationClass/<name>.png     palette or grayscale: class ids, 255 is void
<root>/ImageSets/Segmentation/<split>.txt
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from data import DataError
from data.files import natural_key
from data.images import read_rgb
from data.masks import ID_SUFFIXES, read_foreground, read_ids
from data.notices import say
from data.sample import SampleData
from data.voc import voc_entries

CLASS_ADVICE = ": the id of its class (0, 1, 2, ...; 255 is void)"
VOID = 255  # pixels without class: ignored in training and scores
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
VOC_NAME = re.compile(r"20\d\d_\d{6}")  # of its images, without ending
SPECK = 0.01  # of the void and of the ground: fewer pixels of other classes are specks, not classes
OBJECT_COUNTS = 4  # numbers of objects in masks; ids of classes are never nested 1, 2, ... so often
EMBEDDED_TRAIN = 40  # of the embedded pairs; the rest is for validation


@dataclass(frozen=True)
class LabeledPixels:
    """One image and the class of each of its pixels."""

    image: Path
    mask: Path
    is_binary: bool = False
    """Whether all values above 0 are class 1 (embedded pairs)."""
    table: tuple[int, ...] | None = None
    """Class of each id of the file, from 0 up, where they are not the same; 255 stays void."""

    @property
    def name(self) -> str:
        """The file name without suffix."""
        return self.image.stem

    def read(self) -> tuple[Image.Image, npt.NDArray[np.uint8]]:
        """RGB picture and class ids uint8 [H, W], 255 for void; DataError if the sizes differ."""
        picture = read_rgb(self.image)
        ids = self.read_ids()
        if ids.shape != picture.size[::-1]:
            raise DataError(
                f"{self.mask}: {ids.shape[0]}x{ids.shape[1]} pixels (height x width), but {self.image} has "
                f"{picture.height}x{picture.width}; a mask must have the size of its image"
            )
        return picture, ids

    def read_ids(self) -> npt.NDArray[np.uint8]:
        """Class ids uint8 [H, W]; DataError for an id that the table does not have."""
        if self.is_binary:
            return read_foreground(self.mask)
        ids = read_ids(self.mask, CLASS_ADVICE)
        if self.table is None:
            return ids
        top = int(ids[ids != VOID].max(initial=0))
        if top >= len(self.table):
            raise DataError(
                f"{self.mask}: id {top}, expected 0 to {len(self.table) - 1} or {VOID} for void. Are these masks of "
                "classes, not of objects, and of this data set (--layout)?"
            )
        table = np.full(VOID + 1, VOID, np.uint8)
        table[: len(self.table)] = self.table
        return table[ids]


def load_voc_class_masks(root: Path | str, split: str, folder: str = "SegmentationClass") -> list[LabeledPixels]:
    """The images of a split, in the order of its list; `folder` has the masks.

    Raises:
        DataError: no such tree or list, an empty list, or an image or mask that is missing.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected JPEGImages, SegmentationClass and ImageSets/Segmentation")
    entries = voc_entries(root, "Segmentation", split, folder, ID_SUFFIXES)
    return [LabeledPixels(entry.image, entry.other) for entry in entries]


def count_classes(train: Sequence[LabeledPixels], val: Sequence[LabeledPixels]) -> int:
    """The number of classes K: ids are 0 to K - 1 in the training masks. Reads every mask.

    Raises:
        DataError: training masks of one class, among them masks of 0 and 255, whose 255 is void here; masks of
            objects; a validation mask with a class that training never saw.
    """
    folder, pixels, ids_of = train[0].mask.parent, np.zeros(VOID + 1, np.int64), set[tuple[int, ...]]()
    for pair in train:
        counts = np.bincount(pair.read_ids().ravel(), minlength=VOID + 1)
        pixels += counts
        ids_of.add(tuple(np.flatnonzero(counts[:VOID]).tolist()))
    void, ground, objects = pixels[VOID], pixels[0], pixels[1:VOID].sum()
    if SPECK * void > objects and SPECK * ground > objects:
        raise DataError(
            f"{folder}: nearly all pixels of the training masks are 0 or {VOID} ({objects} of {pixels.sum()} are not), "
            f"and {VOID} is void here: pixels of no class, neither trained on nor scored. If {VOID} is the object, "
            "save it as 1 in all masks"
        )
    _refuse_objects(folder, ids_of)
    used = np.flatnonzero(pixels[:VOID])
    if used.max(initial=0) < 1:
        raise DataError(f"{folder}: the training masks hold one class only; expected two or more")
    highest = int(used[-1])
    for pair in val:
        ids = pair.read_ids()
        if (top := int(ids[ids != VOID].max(initial=0))) > highest:
            raise DataError(
                f"{pair.mask}: class id {top}, but the training masks have none above {highest}. Are these masks of "
                "classes (SegmentationClass), not of objects?"
            )
    if unused := highest + 1 - len(used):
        say(f"{folder}: of the ids 0 to {highest} the training masks have {len(used)}; {unused} are of no pixel.")
    return highest + 1


def _refuse_objects(folder: Path, ids_of: set[tuple[int, ...]]) -> None:
    """DataError where the ids of every mask are 0, 1, ..., n with many different n: numbers of objects.

    Args:
        ids_of: the sets of ids that masks have, 255 left out.
    """
    counted = {tuple(identity for identity in ids if identity) for ids in ids_of} - {()}
    if len(counted) >= OBJECT_COUNTS and all(ids == tuple(range(1, len(ids) + 1)) for ids in counted):
        raise DataError(
            f"{folder}: the ids of every mask count from 1 without a gap, up to {max(map(len, counted))}: these are "
            "masks of objects. Expected masks of classes (in VOC's trees SegmentationClass, not SegmentationObject)"
        )


def class_names(pairs: Sequence[LabeledPixels], count: int) -> tuple[str, ...]:
    """VOC's class names if number of classes and image names match VOC; else class 0, class 1, ..."""
    is_voc = count == len(VOC_CLASSES) and all(VOC_NAME.fullmatch(pair.name) for pair in pairs)
    return VOC_CLASSES if is_voc else tuple(f"class {index}" for index in range(count))


def embedded_segmentation(data: SampleData) -> tuple[list[LabeledPixels], list[LabeledPixels]]:
    """Training and validation pairs of the embedded set: class 0 is the ground, 1 any object."""
    pairs = [
        LabeledPixels(image, data.saliency / "masks" / f"{image.stem}.png", is_binary=True)
        for image in sorted((data.saliency / "images").glob("*.jpg"), key=natural_key)
    ]
    return pairs[:EMBEDDED_TRAIN], pairs[EMBEDDED_TRAIN:]
