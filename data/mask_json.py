"""Masks drawn as shapes, in JSON of labelme or COCO."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from data import DataError
from data.arrays import Pixels
from data.rle import decode_mask

MOST_OBJECTS = 254  # 255 is void


def is_json(path: Path) -> bool:
    """Whether a file has the suffix of JSON."""
    return path.suffix.lower() == ".json"


def read_json_mask(path: Path, frame: str = "") -> tuple[Pixels, list[str]]:
    """Ids uint8 [H, W] of the shapes in a file, and the names of the ids 1, 2, ...

    In labelme an object is a shape, or all shapes with the same `group_id` and label. In COCO it is a category if no
    image has two annotations of the same category, so that an object keeps its id from frame to frame; else it is an
    annotation. Of overlapping objects the later is on top.

    Args:
        frame: for COCO with several images: the name of the image's file, with or without suffix and folders.

    Raises:
        DataError: the file is no JSON of labelme or COCO, has no such image, or has a shape that is no region.
    """
    content = _load(path)
    if isinstance(content, dict) and "shapes" in content:
        drawn = _labelme(path, content)
    elif isinstance(content, dict) and "annotations" in content:
        drawn = _coco(path, content, frame)
    else:
        raise DataError(f"{path}: JSON that is neither labelme's (shapes) nor COCO's (annotations).")
    size, shapes, names = drawn
    if len(names) > MOST_OBJECTS:
        raise DataError(f"{path}: {len(names)} objects; expected at most {MOST_OBJECTS}.")
    ids = np.zeros(size, np.uint8)
    for name, mask in shapes:
        ids[mask > 0] = names.index(name) + 1
    return ids, names


def json_frames(path: Path) -> list[str]:
    """Names of the annotated images in a COCO file with several images; [] for one image, or for labelme."""
    content = _load(path)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list) or len(content["images"]) < 2:
        return []
    used = {annotation.get("image_id") for annotation in content.get("annotations", [])}
    return [str(image.get("file_name")) for image in content["images"] if image.get("id") in used]


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: not JSON that can be read ({error}). Replace it.") from None


Drawn = tuple[tuple[int, int], list[tuple[str, Pixels]], list[str]]  # size; name and mask of each shape; all names


def _labelme(path: Path, content: dict[str, Any]) -> Drawn:
    try:
        size = int(content["imageHeight"]), int(content["imageWidth"])
        shapes = []
        for number, shape in enumerate(content["shapes"], 1):
            group = shape.get("group_id")
            name = f"{shape['label']} {number}" if group is None else f"{shape['label']} of group {group}"
            shapes.append((name, _labelme_shape(shape, size)))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: labelme's JSON, but {error!r}. Expected shapes, imageHeight, imageWidth.") from None
    return size, shapes, list(dict.fromkeys(name for name, _ in shapes))


def _labelme_shape(shape: dict[str, Any], size: tuple[int, int]) -> Pixels:
    """A filled shape as in labelme (labelme/utils/shape.py: PIL's polygon, rectangle and ellipse)."""
    canvas = Image.new("L", (size[1], size[0]))
    draw = ImageDraw.Draw(canvas)
    points = [(float(x), float(y)) for x, y in shape["points"]]
    kind = shape.get("shape_type") or "polygon"
    if kind == "polygon" and len(points) > 2:
        draw.polygon(points, outline=1, fill=1)
    elif kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        draw.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=1, fill=1)
    elif kind == "circle" and len(points) == 2:
        (x, y), (u, v) = points
        radius = float(np.hypot(u - x, v - y))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=1, fill=1)
    else:
        raise ValueError(f"a {kind} of {len(points)} points is no region: draw a polygon, a rectangle or a circle")
    return np.array(canvas)


def _coco(path: Path, content: dict[str, Any], frame: str) -> Drawn:
    try:
        image = _coco_image(path, content["images"], frame)
        size = int(image["height"]), int(image["width"])
        categories = {item["id"]: str(item["name"]) for item in content.get("categories", [])}
        pairs = [(item["image_id"], item.get("category_id")) for item in content["annotations"]]
        by_category = len(set(pairs)) == len(pairs)
        names = [f"{categories.get(key, 'category')} {key}" for key in sorted({key for _, key in pairs})]
        shapes: list[tuple[str, Pixels]] = []
        for item in content["annotations"]:
            if item["image_id"] == image["id"]:
                key = item.get("category_id")
                name = f"{categories.get(key, 'category')} {key if by_category else len(shapes) + 1}"
                shapes.append((name, _coco_shape(item["segmentation"], size)))
    except DataError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: COCO's JSON, but {error!r}. Expected images, annotations, segmentation.") from None
    return size, shapes, names if by_category else [name for name, _ in shapes]


def _coco_image(path: Path, images: Sequence[dict[str, Any]], frame: str) -> dict[str, Any]:
    named = [image for image in images if _same_name(Path(str(image.get("file_name"))).stem, frame)]
    if len(images) == 1:
        return images[0]
    if len(named) != 1:
        raise DataError(
            f"{path}: {len(images)} images, of which {len(named)} are named as the frame {frame!r}; expected one."
        )
    return named[0]


def _same_name(one: str, other: str) -> bool:
    """Whether two names of a frame are equal; numbers may differ in leading zeros."""
    return one == other or (one.isdecimal() and other.isdecimal() and int(one) == int(other))


def _coco_shape(segmentation: Any, size: tuple[int, int]) -> Pixels:
    """Polygons or run lengths -> mask [H, W]."""
    if isinstance(segmentation, list):
        if not segmentation or any(len(polygon) < 6 for polygon in segmentation):
            raise ValueError("a segmentation without polygons of three points or more")
        parts = coco_mask.frPyObjects(segmentation, *size)
        return decode_mask(coco_mask.merge(parts))
    counts = segmentation["counts"]
    if list(segmentation["size"]) != list(size):
        raise ValueError(f"run lengths of {segmentation['size']}, an image of {list(size)}")
    if isinstance(counts, list):
        return decode_mask(coco_mask.frPyObjects(segmentation, *size))
    return decode_mask(segmentation)
