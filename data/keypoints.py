"""Pairs of images with points that mean the same: SPair-71k, AP-10K, PF-PASCAL and PF-WILLOW.

Layouts::

    spair       ROOT/JPEGImages/CATEGORY/*.jpg, ImageAnnotation/CATEGORY/*.json, PairAnnotation/SPLIT/*:CATEGORY.json
    ap10k       ROOT/JPEGImages/..., ImageAnnotation/FAMILY/SPECIES/*.json, PairAnnotation/SPLIT/*:NAME.json
                (as GeoAware-SC prepares AP-10K)
    pfpascal    ROOT/SPLIT_pairs_pf_pascal.csv: two images, class number, XA, YA, XB, YB (numbers joined by ;)
    pfwillow    ROOT/SPLIT_pairs.csv: two images, then ten X and ten Y of each

Points are (x, y) in pixels of the image as stored; points that only one image of a pair has are left out.
"""

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from data import DataError
from data.files import natural_key
from data.images import image_size
from data.notices import say

Point = tuple[float, float]
Layout = Literal["auto", "spair", "ap10k", "pfpascal", "pfwillow"]
PASCAL_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
WILLOW_POINTS = 10
LEVELS = 3
"""Levels of variation of a pair: 0 easy, 1 medium, 2 hard."""


@dataclass(frozen=True)
class KeypointPair:
    """Two images of one category, and the points that both have, in one order."""

    name: str
    category: str
    source: Path
    target: Path
    source_points: tuple[Point, ...]
    target_points: tuple[Point, ...]
    point_ids: tuple[str, ...]
    source_size: tuple[int, int]
    """(height, width), pixels."""
    target_size: tuple[int, int]
    """(height, width), pixels."""
    limit: float
    """The length that a distance is compared with, pixels of the target: the longer side of the object's box (of the
    image in PF-PASCAL, of the box around the points in PF-WILLOW)."""
    viewpoint: int | None = None
    """Difference of the view, 0 to 2 (SPair-71k)."""
    scale: int | None = None
    """Difference of the size, 0 to 2 (SPair-71k)."""


def load_pairs(
    root: Path | str, layout: Layout = "auto", split: str = "test", categories: Sequence[str] | None = None
) -> list[KeypointPair]:
    """The pairs of a split, by category and name; pairs without a common point are left out, and a line says so.

    Args:
        categories: only these; None takes all.

    Raises:
        FileNotFoundError: no such folder.
        DataError: no known layout, an unreadable annotation, a missing image, images of two categories in one pair, or
            a point outside its image.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder. Check the path.")
    kind = detect_layout(root) if layout == "auto" else layout
    pairs = list(_READERS[kind](root, split))
    known = sorted({pair.category for pair in pairs})
    if unknown := [name for name in categories or () if name not in known]:
        raise DataError(f"{root}: no category {unknown[0]!r} in split {split!r}; there are {', '.join(known)}.")
    pairs = [pair for pair in pairs if categories is None or pair.category in categories]
    whole = [pair for pair in pairs if pair.source_points]
    if len(whole) < len(pairs):
        say(f"{root}: {len(pairs) - len(whole)} of {len(pairs)} pairs have no common point and are left out.")
    if not whole:
        raise DataError(f"{root}: no pair with a common point in split {split!r}.")
    sizes: dict[Path, tuple[int, int]] = {}
    for pair in whole:
        _check_points(pair)
        _check_sizes(pair, sizes)
    return sorted(whole, key=lambda pair: (pair.category, natural_key(Path(pair.name))))


def detect_layout(root: Path) -> Layout:
    """Which layout a folder has; DataError if it has none."""
    if any(root.glob("*_pairs_pf_pascal.csv")):
        return "pfpascal"
    if any(root.glob("*_pairs.csv")):
        return "pfwillow"
    if (root / "PairAnnotation").is_dir():
        nested = any(path.is_dir() for path in (root / "ImageAnnotation").glob("*/*"))
        return "ap10k" if nested else "spair"
    names = ", ".join(get_args(Layout)[1:])
    raise DataError(
        f"{root}: none of the layouts {names}; expected PairAnnotation/SPLIT/*.json, *_pairs_pf_pascal.csv or "
        "*_pairs.csv. A release that was unpacked has them in its top folder."
    )


# --- SPair-71k ---------------------------------------------------------------------------------------------


def _spair(root: Path, split: str) -> Iterator[KeypointPair]:
    categories: dict[str, str] = {}
    for file, note in _pair_notes(root, split):
        category = _field(file, note, "category", str)
        stem, _, named = file.stem.partition(":")
        if named != category:
            raise DataError(f"{file}: the category is {category!r}, but its name says {named!r}. Get the file anew.")
        names = [_field(file, note, f"{end}_imname", str) for end in ("src", "trg")]
        for name in names:
            _check_category(root, file, category, name, categories)
        paths = [_image(file, root / "JPEGImages" / category / name) for name in names]
        points = [_points(file, note, f"{end}_kps") for end in ("src", "trg")]
        ids = tuple(map(str, _field(file, note, "kps_ids", list)))
        if not len(points[0]) == len(points[1]) == len(ids):
            counts = f"{len(points[0])} and {len(points[1])} points, {len(ids)} kps_ids"
            raise DataError(f"{file}: {counts}; expected as many of each. Get the file anew.")
        yield KeypointPair(
            name=stem,
            category=category,
            source=paths[0],
            target=paths[1],
            source_points=points[0],
            target_points=points[1],
            point_ids=ids,
            source_size=_size(file, note, "src_imsize"),
            target_size=_size(file, note, "trg_imsize"),
            limit=_longer_side(file, note, "trg_bndbox"),
            viewpoint=_level(file, note, "viewpoint_variation"),
            scale=_level(file, note, "scale_variation"),
        )


def _check_category(root: Path, file: Path, category: str, name: str, known: dict[str, str]) -> None:
    """DataError where an image of a pair is annotated as another category's."""
    note_file = root / "ImageAnnotation" / category / f"{Path(name).stem}.json"
    key = f"{category}/{name}"
    if key not in known:
        if not note_file.is_file():
            raise DataError(f"{file}: {name} is no image of {category!r}: no {note_file}. A pair has one category.")
        known[key] = _field(note_file, _read_json(note_file), "category", str)
    if known[key] != category:
        raise DataError(
            f"{file}: a pair of the category {category!r}, but {note_file} says {known[key]!r}. A pair has one "
            "category: leave it out."
        )


# --- AP-10K ------------------------------------------------------------------------------------------------


def _ap10k(root: Path, split: str) -> Iterator[KeypointPair]:
    for file, note in _pair_notes(root, split):
        stem, _, category = file.stem.partition(":")
        ends = [_ap10k_image(root, file, note, end) for end in ("src", "trg")]
        (source, source_points, source_note), (target, target_points, target_note) = ends
        common = sorted(source_points.keys() & target_points.keys())
        box = _numbers(file, target_note, "bbox", 4)
        yield KeypointPair(
            name=stem,
            category=category,
            source=source,
            target=target,
            source_points=tuple(source_points[index] for index in common),
            target_points=tuple(target_points[index] for index in common),
            point_ids=tuple(map(str, common)),
            source_size=_sides(file, source_note),
            target_size=_sides(file, target_note),
            limit=max(box[2:]),
        )


def _ap10k_image(root: Path, file: Path, note: Mapping[str, Any], end: str) -> tuple[Path, dict[int, Point], dict]:
    """An image, its visible points by number, and its annotation (x, y, width and height of the box)."""
    parts = PurePosixPath(_field(file, note, f"{end}_json_path", str)).parts
    if "ImageAnnotation" not in parts:
        raise DataError(f"{file}: {end}_json_path is {'/'.join(parts)!r}; expected a file below ImageAnnotation.")
    inside = Path(*parts[parts.index("ImageAnnotation") + 1 :])
    described = root / "ImageAnnotation" / inside
    if ".." in inside.parts or not described.is_file():
        raise DataError(f"{file}: no {described}. Unpack the annotations there.")
    image_note = _read_json(described)
    values = _numbers(described, image_note, "keypoints")
    if len(values) % 3:
        raise DataError(f"{described}: {len(values)} numbers under 'keypoints'; expected x, y and visibility of each.")
    triples = enumerate(zip(values[::3], values[1::3], values[2::3], strict=True))
    points = {index: (x, y) for index, (x, y, seen) in triples if seen > 0}
    return _image(file, (root / "JPEGImages" / inside).with_suffix(".jpg")), points, image_note


# --- PF-PASCAL and PF-WILLOW -------------------------------------------------------------------------------


def _pf_pascal(root: Path, split: str) -> Iterator[KeypointPair]:
    file = root / f"{split}_pairs_pf_pascal.csv"
    for number, row in _rows(file, 7):
        where = f"{file}, line {number}"
        if not row[2].strip().isdecimal() or not 1 <= int(row[2]) <= len(PASCAL_CLASSES):
            raise DataError(f"{where}: class {row[2]!r}; expected 1 to {len(PASCAL_CLASSES)}.")
        points = [_joined(where, row[3 + 2 * end], row[4 + 2 * end]) for end in (0, 1)]
        paths = [_listed_image(root, file, name) for name in row[:2]]
        size = image_size(paths[1])
        yield _of_csv(where, row, PASCAL_CLASSES[int(row[2]) - 1], paths, points, float(max(size)))


def _pf_willow(root: Path, split: str) -> Iterator[KeypointPair]:
    file = root / f"{split}_pairs.csv"
    for number, row in _rows(file, 2 + 4 * WILLOW_POINTS):
        where = f"{file}, line {number}"
        columns = [row[2 + k * WILLOW_POINTS : 2 + (k + 1) * WILLOW_POINTS] for k in range(4)]
        points = [_joined(where, ";".join(columns[2 * end]), ";".join(columns[2 * end + 1])) for end in (0, 1)]
        paths = [_listed_image(root, file, name) for name in row[:2]]
        kinds = [PurePosixPath(name).parent.name for name in row[:2]]
        if kinds[0] != kinds[1]:
            raise DataError(f"{where}: images of {kinds[0]!r} and {kinds[1]!r}. A pair has one category: leave it out.")
        spans = [max(axis) - min(axis) for axis in zip(*points[1], strict=True)]
        yield _of_csv(where, row, kinds[0], paths, points, max(spans))


def _of_csv(
    where: str, row: list[str], category: str, paths: list[Path], points: list[tuple[Point, ...]], limit: float
) -> KeypointPair:
    if len(points[0]) != len(points[1]):
        raise DataError(f"{where}: {len(points[0])} and {len(points[1])} points; expected as many in both images.")
    kept = [k for k, (a, b) in enumerate(zip(*points, strict=True)) if all(map(math.isfinite, (*a, *b)))]
    source, target = (tuple(ends[k] for k in kept) for ends in points)
    return KeypointPair(
        name="-".join(Path(name).stem for name in row[:2]),
        category=category,
        source=paths[0],
        target=paths[1],
        source_points=source,
        target_points=target,
        point_ids=tuple(map(str, kept)),
        source_size=image_size(paths[0]),
        target_size=image_size(paths[1]),
        limit=limit,
    )


def _rows(file: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """Lines of a list after its first, with their numbers."""
    if not file.is_file():
        there = ", ".join(path.name for path in sorted(file.parent.glob("*.csv"))) or "no list"
        raise DataError(f"{file}: no such list; the folder has {there}.")
    with file.open(newline="") as stream:
        for number, row in enumerate(csv.reader(stream), start=1):
            if number == 1 or not row:
                continue
            if len(row) < columns:
                raise DataError(f"{file}, line {number}: {len(row)} columns, expected {columns}.")
            yield number, row


def _joined(where: str, xs: str, ys: str) -> tuple[Point, ...]:
    """Points of two lists of numbers joined by semicolons."""
    try:
        x, y = ([float(part) for part in text.split(";") if part.strip()] for text in (xs, ys))
    except ValueError as error:
        raise DataError(f"{where}: no coordinates ({error}).") from None
    if len(x) != len(y):
        raise DataError(f"{where}: {len(x)} x and {len(y)} y; expected as many of both.")
    return tuple(zip(x, y, strict=True))


def _listed_image(root: Path, file: Path, name: str) -> Path:
    """An image of a list whose paths begin with the name of the release's folder."""
    inside = Path(*PurePosixPath(name).parts[1:])
    if ".." in inside.parts:
        raise DataError(f"{file}: {name!r} leaves the folder.")
    return _image(file, root / inside)


# --- Shared by all layouts ----------------------------------------------------------------------------------

_READERS: dict[str, Callable[[Path, str], Iterator[KeypointPair]]] = {
    "spair": _spair,
    "ap10k": _ap10k,
    "pfpascal": _pf_pascal,
    "pfwillow": _pf_willow,
}


def _pair_notes(root: Path, split: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    folder = root / "PairAnnotation" / split
    files = sorted(folder.glob("*:*.json"), key=natural_key)
    if not files:
        there = ", ".join(sorted(path.name for path in folder.parent.iterdir())) if folder.parent.is_dir() else "none"
        raise DataError(f"{folder}: no annotations of pairs (NUMBER-SOURCE-TARGET:CATEGORY.json); splits: {there}.")
    for file in files:
        yield file, _read_json(file)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        note = json.loads(file.read_text())
    except ValueError as error:  # UnicodeDecodeError is one
        raise DataError(f"{file}: not JSON ({error}). Get the file anew.") from None
    if not isinstance(note, dict):
        raise DataError(f"{file}: expected an object, found {type(note).__name__}.")
    return note


def _field(file: Path, note: Mapping[str, Any], name: str, kind: type) -> Any:
    value = note.get(name)
    if not isinstance(value, kind):
        raise DataError(f"{file}: expected {kind.__name__} under {name!r}, found {type(value).__name__}.")
    return value


def _numbers(file: Path, note: Mapping[str, Any], name: str, count: int | None = None) -> list[float]:
    values = _field(file, note, name, list)
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values) or (
        count is not None and len(values) != count
    ):
        expected = "numbers" if count is None else f"{count} numbers"
        raise DataError(f"{file}: expected {expected} under {name!r}, found {values!r:.80}.")
    return [float(value) for value in values]


def _points(file: Path, note: Mapping[str, Any], name: str) -> tuple[Point, ...]:
    points = []
    for point in _field(file, note, name, list):
        x, y = _numbers(file, {name: point}, name, 2)
        points.append((x, y))
    return tuple(points)


def _size(file: Path, note: Mapping[str, Any], name: str) -> tuple[int, int]:
    """(height, width) of [width, height, channels]."""
    width, height = _numbers(file, {name: _field(file, note, name, list)[:2]}, name, 2)
    return int(height), int(width)


def _sides(file: Path, note: Mapping[str, Any]) -> tuple[int, int]:
    return _field(file, note, "height", int), _field(file, note, "width", int)


def _longer_side(file: Path, note: Mapping[str, Any], name: str) -> float:
    left, top, right, bottom = _numbers(file, note, name, 4)
    if not (left < right and top < bottom):
        raise DataError(f"{file}: {name} is {[left, top, right, bottom]}; expected left < right and top < bottom.")
    return max(right - left, bottom - top)


def _level(file: Path, note: Mapping[str, Any], name: str) -> int | None:
    value = note.get(name)
    if value is not None and value not in range(LEVELS):
        raise DataError(f"{file}: {name} is {value!r}; expected 0, 1 or 2.")
    return value


def _image(file: Path, path: Path) -> Path:
    if not path.is_file():
        raise DataError(f"{path}: no such image, which {file.name} names. Unpack the images there.")
    return path


def _check_points(pair: KeypointPair) -> None:
    """DataError for points outside their image."""
    ends = ((pair.source, pair.source_points, pair.source_size), (pair.target, pair.target_points, pair.target_size))
    for path, points, (height, width) in ends:
        for point_id, (x, y) in zip(pair.point_ids, points, strict=True):
            if not (0 <= x <= width and 0 <= y <= height):
                raise DataError(
                    f"{path}: keypoint {point_id} of pair {pair.name} is at ({x:g}, {y:g}), outside the image of "
                    f"{width}x{height} pixels (width x height). Were the images resized? Take the originals."
                )
    if not pair.limit > 0:
        raise DataError(f"{pair.target}: the points of pair {pair.name} span no length that distances compare with.")


def _check_sizes(pair: KeypointPair, known: dict[Path, tuple[int, int]]) -> None:
    """DataError for images of another size than their annotation says."""
    for path, size in ((pair.source, pair.source_size), (pair.target, pair.target_size)):
        if path not in known:
            known[path] = image_size(path)
        if known[path] != size:
            raise DataError(
                f"{path}: {known[path][0]}x{known[path][1]} pixels (height x width), but the annotation of pair "
                f"{pair.name} says {size[0]}x{size[1]}: points would lie elsewhere. Take the original image."
            )
