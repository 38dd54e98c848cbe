"""Images with boxes around their objects, from VOC annotations, COCO annotations or masks.

A box is (x0, y0, x1, y1) in pixels from the upper left corner of the image, ends not included.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import scipy.ndimage

from data import DataError, coco
from data.arrays import Box
from data.images import image_size
from data.lists import encoding_of
from data.notices import say
from data.saliency import MaskedImage, object_masks
from data.voc import voc_entries

SMALLEST_PIECE = 1e-3  # share of the image; smaller components of a mask are specks, not objects
EIGHT_NEIGHBORS = np.ones((3, 3), int)

SLACK, SLACK_PIXELS = 0.05, 2.0
"""Tolerance for boxes that exceed their image: a share of the side, and pixels; the larger counts."""

FRACTIONS_END = 1.001
"""Largest corner that may be a fraction; the part above 1 allows for rounding."""

XML_ENCODING = re.compile(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
WIDE_XML = {b"<\0?\0": "utf-16-le", b"\0<\0?": "utf-16-be", b"<\0a\0": "utf-16-le", b"\0<\0a": "utf-16-be"}
"""First bytes of XML in UTF-16 without a byte order mark."""


@dataclass(frozen=True)
class BoxedImage:
    """An image file and the boxes of its objects."""

    name: str
    """Unique in its set."""
    image: Path
    boxes: tuple[Box, ...]
    number: int
    """Number of the image in its set: COCO's ids if all are numbers, else counted from 1."""
    annotation: Path | None = None
    """The image's own annotation file, or None."""
    video: str = ""
    """Name of the video of a frame; "" for a single image."""


def load_voc_boxes(root: str | Path, split: str = "trainval", *, hard: bool = True) -> list[BoxedImage]:
    """The images of a VOC tree: ImageSets/Main/SPLIT.txt, Annotations/*.xml, JPEGImages/*.jpg.

    VOC counts pixels from 1 and its boxes include their ends, so 1 is subtracted from xmin and ymin only.

    Args:
        root: the folder VOC2007 or VOC2012.
        split: name of the list.
        hard: whether to include objects flagged difficult or truncated.

    Raises:
        DataError: no such list, a listed file is missing, or an annotation is unusable.
    """
    root = Path(root)
    boxed = []
    for number, entry in enumerate(voc_entries(root, "Main", split, "Annotations", (".xml",)), start=1):
        boxes = tuple(_read_voc_boxes(entry.other, hard))
        size = image_size(entry.image)
        for box in boxes:
            _check_inside(entry.other, entry.image, size, box)
        boxed.append(BoxedImage(entry.name, entry.image, boxes, number, entry.other))
    _check_units(root / "Annotations", (box for image in boxed for box in image.boxes))
    return boxed


def load_coco_boxes(annotations: str | Path, images: str | Path, only: str | Path | None = None) -> list[BoxedImage]:
    """The images of a COCO annotation file, in the order of the file.

    Crowd regions are ignored; corners are rounded to pixels (LOST, datasets.py). An image file that is listed more
    than once is one image.

    Args:
        annotations: the JSON file (instances_train2014.json).
        images: folder of the image files.
        only: text file with the names or ids of the images to use, one on each line (COCO-20k).

    Raises:
        DataError: a file is missing or unusable, boxes are not in pixels of their image, or `only` names an unknown
            image.
    """
    annotations, images = Path(annotations), Path(images)
    dataset = coco.read(annotations)
    chosen = coco.chosen(dataset, Path(only)) if only else list(dataset.images)
    paths = coco.find_files(dataset, images, chosen)
    boxes: dict[Path, list[Box]] = {}
    numbers: dict[Path, int | str] = {}
    for identity in chosen:
        numbers.setdefault(paths[identity], identity)
        boxes.setdefault(paths[identity], []).extend(_coco_boxes(annotations, dataset.objects[identity]))
    if len(boxes) < len(chosen):
        say(f"{annotations}: lists {len(chosen) - len(boxes)} images more than once; their boxes are merged.")
    _check_units(annotations, (box for corners in boxes.values() for box in corners))
    has_numbers = all(isinstance(identity_number, int) for identity_number in numbers.values())
    names = _unique_names(list(boxes), images)
    return [
        BoxedImage(
            names[path],
            path,
            tuple(_checked_within(annotations, path, corners)),
            int(numbers[path]) if has_numbers else number,
        )
        for number, (path, corners) in enumerate(boxes.items(), start=1)
    ]


def boxes_of_masks(images: Sequence[MaskedImage]) -> list[BoxedImage]:
    """Boxes around the objects of masks. In a mask without ids, each 8-connected component is an object."""
    boxed = []
    for number, image in enumerate(images, start=1):
        ids = image.read()[1]
        pieces = object_masks(ids) if image.has_ids else _pieces(ids)
        boxed.append(
            BoxedImage(image.name, image.image, tuple(_around(piece) for piece in pieces), number, video=image.video)
        )
    return boxed


def _read_voc_boxes(path: Path, hard: bool) -> Iterable[Box]:
    for entry in _parse_xml(path).iter("object"):
        if not hard and "1" in (entry.findtext("difficult"), entry.findtext("truncated")):
            continue
        # Objects may have parts with boxes: only the direct child is the box of the object.
        corners = [entry.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x0, y0, x1, y1 = (float(corner or "") for corner in corners)
        except ValueError:
            raise DataError(
                f"{path}: an object whose bndbox has xmin, ymin, xmax, ymax = {corners}; expected four numbers"
            ) from None
        yield _checked(path, (x0 - 1, y0 - 1, x1, y1))


def _parse_xml(path: Path) -> ElementTree.Element:
    """The root of an annotation in its declared encoding. Refuses entities, which could expand without limit."""
    try:
        # Decoded here, so that no encoding hides an entity declaration.
        text = _decode_xml(path.read_bytes())
        if "<!ENTITY" in text:
            raise DataError(
                f"{path}: has a document type declaration with entities, which no VOC annotation needs. Remove it"
            )
        return ElementTree.fromstring(text)
    except (UnicodeError, LookupError, ElementTree.ParseError) as error:
        raise DataError(
            f"{path}: not a readable XML annotation ({error}). Copy it again, or declare its encoding in the first line"
        ) from None


def _decode_xml(encoded: bytes) -> str:
    """The text of an XML file: decoded by its byte order mark, else by its declaration, else as UTF-8."""
    marked = encoding_of(encoded)
    if marked != "utf-8":
        return encoded.decode(marked)
    wide = WIDE_XML.get(encoded[:4])
    declared = XML_ENCODING.match(encoded)
    return encoded.decode(wide or (declared.group(1).decode("ascii") if declared else "utf-8"))


def _coco_boxes(path: Path, entries: Iterable[coco.Entry]) -> Iterable[Box]:
    return (_coco_box(path, entry) for entry in entries if not coco.is_crowd(entry))


def _coco_box(path: Path, entry: coco.Entry) -> Box:
    """Corners in pixels, not rounded."""
    try:
        x, y, width, height = map(float, entry["bbox"])
        if not all(map(math.isfinite, (x, y, width, height))):
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{path}: annotation {entry.get('id')} has bbox {entry.get('bbox')}; expected [x, y, width, height]"
        ) from None
    return (x, y, x + width, y + height)


def _check_units(path: Path, boxes: Iterable[Box]) -> None:
    """Raise DataError if all corners lie in 0..1: they are fractions of the image, not pixels."""
    ends = [max(box) for box in boxes]
    if ends and max(ends) <= FRACTIONS_END:
        raise DataError(
            f"{path}: all boxes lie between 0 and 1: fractions of the image, not pixels. Multiply x and width by the "
            "width of each image, y and height by its height"
        )


def _checked_within(path: Path, image: Path, boxes: Iterable[Box]) -> Iterator[Box]:
    """Boxes rounded to pixels; DataError for a box outside of its image."""
    size = image_size(image)
    for box in boxes:
        _check_inside(path, image, size, box)
        x0, y0, x1, y1 = box
        yield _checked(path, (round(x0), round(y0), round(x1), round(y1)), may_be_flat=True)


def _check_inside(path: Path, image: Path, size: tuple[int, int], box: Box) -> None:
    """Raise DataError if a box exceeds the image (height, width) by more than the tolerance."""
    height, width = size
    slack_x, slack_y = (max(SLACK_PIXELS, SLACK * side) for side in (width, height))
    x0, y0, x1, y1 = box
    if min(x0 + slack_x, y0 + slack_y) < 0 or x1 > width + slack_x or y1 > height + slack_y:
        raise DataError(
            f"{path}: a box from ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}), but {image} has only {width}x{height} pixels "
            "(width x height). Was the image resized? Is the box stated as the format wants it (COCO: x, y, width, "
            "height; VOC: xmin, ymin, xmax, ymax)?"
        )


def _unique_names(paths: Sequence[Path], folder: Path) -> dict[Path, str]:
    """File names without suffix if they are unique, else with their folders."""
    stems = Counter(path.stem for path in paths)
    if len(stems) == len(paths):
        return {path: path.stem for path in paths}
    named = {
        path: (path.relative_to(folder) if path.is_relative_to(folder) else path).with_suffix("").as_posix()
        for path in paths
    }
    return named if len(set(named.values())) == len(paths) else {path: path.as_posix() for path in paths}


def _checked(path: Path, box: Box, *, may_be_flat: bool = False) -> Box:
    """The box; DataError if its corners are not in order. With `may_be_flat`, sides may be 0 (COCO has such boxes)."""
    x0, y0, x1, y1 = box
    if not (x0 <= x1 and y0 <= y1 and (may_be_flat or (x0 < x1 and y0 < y1))):
        raise DataError(f"{path}: a box from ({x0}, {y0}) to ({x1}, {y1}), pixels; expected the smaller ends first")
    return box


def _pieces(foreground: np.ndarray) -> list[np.ndarray]:
    """The 8-connected components of a mask [H, W], without specks."""
    pieces, _ = scipy.ndimage.label(foreground, EIGHT_NEIGHBORS)
    sizes = np.bincount(pieces.ravel())[1:]
    return [pieces == 1 + index for index in np.flatnonzero(sizes >= SMALLEST_PIECE * foreground.size)]


def _around(mask: np.ndarray) -> Box:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
