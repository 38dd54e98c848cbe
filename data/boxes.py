"""Images with boxes around their objects: VOC and COCO annotations, and masks.

A box is (x0, y0, x1, y1) in pixels from the upper left corner of the image, ends not included.
"""

import contextlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import scipy.ndimage
from pycocotools.coco import COCO

from data import DataError
from data.arrays import Box
from data.saliency import MaskedImage, object_masks
from data.voc import voc_entries

SMALLEST_PIECE = 1e-3  # of the image: smaller pieces of a mask are specks of its edge, not objects
EIGHT_NEIGHBOURS = np.ones((3, 3), int)


@dataclass(frozen=True)
class BoxedImage:
    """An image file and the boxes of its objects."""

    name: str
    """Unique in its set."""
    image: Path
    boxes: tuple[Box, ...]
    number: int
    """Of the image in its set: COCO's id where it has one, else counted from 1."""


def load_voc_boxes(root: str | Path, split: str = "trainval", *, hard: bool = True) -> list[BoxedImage]:
    """The images of a VOC tree: ImageSets/Main/SPLIT.txt, Annotations/*.xml, JPEGImages/*.jpg.

    VOC counts pixels from 1 and its boxes include their ends, so that 1 is taken off xmin and ymin only.

    Args:
        root: the folder VOC2007 or VOC2012.
        split: name of the list.
        hard: whether objects marked difficult or truncated count too.

    Raises:
        DataError: no such list, a listed file is missing, or an annotation cannot be used.
    """
    root = Path(root)
    entries = voc_entries(root, "Main", split, "Annotations", (".xml",))
    return [
        BoxedImage(entry.name, entry.image, tuple(_read_voc_boxes(entry.other, hard)), number)
        for number, entry in enumerate(entries, start=1)
    ]


def load_coco_boxes(annotations: str | Path, images: str | Path, only: str | Path | None = None) -> list[BoxedImage]:
    """The images of a COCO annotation file, in its order.

    Crowd regions are no objects; corners are rounded to pixels (LOST, datasets.py).

    Args:
        annotations: the JSON file (instances_train2014.json).
        images: folder of the image files it names.
        only: text file with the image file names, or ids, to take: one a line (COCO-20k).

    Raises:
        DataError: a file is missing or cannot be used, or `only` names an image that is not there.
    """
    annotations, images = Path(annotations), Path(images)
    dataset = _open_coco(annotations)
    found = []
    for number in _chosen(dataset, Path(only)) if only else dataset.imgs:
        path = images / Path(dataset.imgs[number]["file_name"]).name
        if not path.is_file():
            raise DataError(f"{path}: no such file, but {annotations} lists it as image {number}")
        boxes = (_coco_box(annotations, entry) for entry in dataset.imgToAnns[number] if not entry.get("iscrowd"))
        found.append(BoxedImage(path.stem, path, tuple(boxes), int(number)))
    if not found:
        raise DataError(f"{annotations}: no image in it")
    return found


def boxes_of_masks(images: Sequence[MaskedImage]) -> list[BoxedImage]:
    """Boxes around the objects of masks; a mask without ids has an object for each 8-connected piece."""
    boxed = []
    for number, image in enumerate(images, start=1):
        ids = image.read()[1]
        pieces = object_masks(ids) if image.has_ids else _pieces(ids)
        boxed.append(BoxedImage(image.name, image.image, tuple(_around(piece) for piece in pieces), number))
    return boxed


def _read_voc_boxes(path: Path, hard: bool) -> Iterable[Box]:
    for entry in _parse_xml(path).iter("object"):
        if not hard and "1" in (entry.findtext("difficult"), entry.findtext("truncated")):
            continue
        # Objects may have parts with boxes of their own: only the direct child is the object's.
        corners = [entry.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x0, y0, x1, y1 = (float(corner or "") for corner in corners)
        except ValueError:
            raise DataError(
                f"{path}: an object whose bndbox has xmin, ymin, xmax, ymax = {corners}; expected four numbers"
            ) from None
        yield _checked(path, (x0 - 1, y0 - 1, x1, y1))


def _parse_xml(path: Path) -> ElementTree.Element:
    """The root of an annotation; a document type is refused, since it could define entities that grow without end."""
    try:
        # Decoded here, so that no other encoding hides a document type.
        text = path.read_bytes().decode("utf-8-sig")
        if "<!DOCTYPE" in text:
            raise DataError(f"{path}: has a document type declaration, which no VOC annotation needs. Remove it")
        return ElementTree.fromstring(text)
    except (UnicodeDecodeError, ElementTree.ParseError) as error:
        raise DataError(f"{path}: not a readable XML annotation ({error}). Copy it again") from None


def _open_coco(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected COCO's instances_*.json")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            dataset = COCO(str(path))
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise DataError(f"{path}: not a COCO annotation file ({type(error).__name__}: {error})") from None
    if not dataset.imgs or "annotations" not in dataset.dataset:
        raise DataError(f"{path}: no images or no annotations in it; expected COCO's instances_*.json")
    for number, entry in dataset.imgs.items():
        if not isinstance(entry.get("file_name"), str):
            raise DataError(f"{path}: image {number} has file_name {entry.get('file_name')!r}; expected a text")
    return dataset


def _chosen(dataset: Any, path: Path) -> list[int]:
    """Image ids that a list of file names or ids names."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a list of image file names or ids, one a line")
    by_name = {Path(entry["file_name"]).stem: number for number, entry in dataset.imgs.items()}
    chosen: list[int] = []
    for line in filter(None, map(str.strip, path.read_text().splitlines())):
        number = by_name.get(Path(line).stem, int(line) if line.isdecimal() else -1)
        if number not in dataset.imgs:
            raise DataError(f"{path}: {line!r} is no image of the annotation file, by file name or by id")
        chosen.append(number)
    return list(dict.fromkeys(chosen))


def _coco_box(path: Path, entry: dict[str, Any]) -> Box:
    try:
        x, y, width, height = map(float, entry["bbox"])
        box = (round(x), round(y), round(x + width), round(y + height))
    except (KeyError, TypeError, ValueError, OverflowError):  # round() refuses what is not finite
        raise DataError(
            f"{path}: annotation {entry.get('id')} has bbox {entry.get('bbox')}; expected [x, y, width, height]"
        ) from None
    return _checked(path, box, may_be_flat=True)


def _checked(path: Path, box: Box, *, may_be_flat: bool = False) -> Box:
    """The box; DataError where its ends are not in order. COCO has objects that round to no width."""
    x0, y0, x1, y1 = box
    if not (x0 <= x1 and y0 <= y1 and (may_be_flat or (x0 < x1 and y0 < y1))):
        raise DataError(f"{path}: a box from ({x0}, {y0}) to ({x1}, {y1}), pixels; expected the smaller ends first")
    return box


def _pieces(foreground: np.ndarray) -> list[np.ndarray]:
    """The 8-connected pieces of a mask [H, W] but for specks."""
    pieces, _ = scipy.ndimage.label(foreground, EIGHT_NEIGHBOURS)
    sizes = np.bincount(pieces.ravel())[1:]
    return [pieces == 1 + index for index in np.flatnonzero(sizes >= SMALLEST_PIECE * foreground.size)]


def _around(mask: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
