"""Images with a class for every pixel, in the layout of PASCAL VOC.

<root>/JPEGImages/<name>.jpg            or any other picture
<root>/SegmentationClass/<name>.png     palette or greyscale: class ids, 255 is void
<root>/ImageSets/Segmentation/<split>.txt
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from data import DataError
from data.files import natural_key
from data.images import read_rgb
from data.masks import ID_SUFFIXES, read_foreground, read_ids
from data.sample import SampleData
from data.voc import voc_entries

VOID = 255  # pixels of no class: neither trained on nor scored
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
EMBEDDED_TRAIN = 40  # of the embedded pairs; the rest is for validation


@dataclass(frozen=True)
class LabelledPixels:
    """One image and the class of each of its pixels."""

    image: Path
    mask: Path
    is_binary: bool = False
    """Whether any value above 0 is class 1 (embedded pairs)."""

    @property
    def name(self) -> str:
        """The file name without its ending."""
        return self.image.stem

    def read(self) -> tuple[Image.Image, npt.NDArray[np.uint8]]:
        """RGB picture and class ids uint8 [H, W], 255 where there is none; DataError where the sizes differ."""
        picture = read_rgb(self.image)
        ids = self.read_ids()
        if ids.shape != picture.size[::-1]:
            raise DataError(
                f"{self.mask}: {ids.shape[0]}x{ids.shape[1]} pixels (height x width), but {self.image} has "
                f"{picture.height}x{picture.width}; a mask must have the size of its image"
            )
        return picture, ids

    def read_ids(self) -> npt.NDArray[np.uint8]:
        """Class ids uint8 [H, W]."""
        return read_foreground(self.mask) if self.is_binary else read_ids(self.mask)


def load_voc_class_masks(root: Path | str, split: str) -> list[LabelledPixels]:
    """The images of a split, in the order of its list.

    Raises:
        DataError: no such tree or list, an empty list, or an image or mask that is missing.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected JPEGImages, SegmentationClass and ImageSets/Segmentation")
    entries = voc_entries(root, "Segmentation", split, "SegmentationClass", ID_SUFFIXES)
    return [LabelledPixels(entry.image, entry.other) for entry in entries]


def embedded_segmentation(data: SampleData) -> tuple[list[LabelledPixels], list[LabelledPixels]]:
    """Training and validation pairs of the embedded set: class 0 is the ground, 1 any object."""
    pairs = [
        LabelledPixels(image, data.saliency / "masks" / f"{image.stem}.png", is_binary=True)
        for image in sorted((data.saliency / "images").glob("*.jpg"), key=natural_key)
    ]
    return pairs[:EMBEDDED_TRAIN], pairs[EMBEDDED_TRAIN:]
