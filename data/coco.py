"""COCO annotation files: images, their objects and their files.

Ids are numbers in COCO's own files. Other tools write texts, and may mix 7 and "7".
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from data import DataError
from data.files import IMAGE_SUFFIXES, FilesByStem, natural_key, read_by_stem
from data.lists import read_list
from data.notices import say

Id = int | str
Entry = dict[str, Any]

ANNOTATION_FILES = ("_annotations.coco.json", "*/_annotations.coco.json", "annotations/*.json")
"""Usual paths of annotation files (Roboflow, COCO, CVAT), in the order of the search."""


@dataclass(frozen=True)
class CocoFile:
    """The content of an annotation file."""

    path: Path
    images: dict[Id, Entry]
    """Images by id, in the order of the file."""
    objects: dict[Id, list[Entry]]
    """Annotations of each image, including crowds."""


def read(path: Path) -> CocoFile:
    """Read an annotation file, in UTF-8 or the encoding of its byte order mark.

    Raises:
        DataError: the file is missing, is no annotation file, has no images, or has duplicate image ids.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected COCO's instances_*.json")
    try:
        record = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError too
        raise DataError(f"{path}: not a COCO annotation file ({type(error).__name__}: {error})") from None
    if not isinstance(record, dict):
        raise DataError(f"{path}: not a COCO annotation file (it holds a {type(record).__name__}, expected an object)")
    listed, annotations = _entries(path, record, "images"), _entries(path, record, "annotations")
    images: dict[Id, Entry] = {}
    for entry in listed:
        identity, name = _whole(entry.get("id")), entry.get("file_name")
        if not isinstance(identity, int | str):
            raise DataError(f"{path}: an image ({name!r}) has id {identity!r}; expected a number or a text")
        if not isinstance(name, str) or not name:
            raise DataError(f"{path}: image {identity} has file_name {name!r}; expected a text")
        if images.setdefault(identity, entry) is not entry:
            raise DataError(f"{path}: two images with the id {identity!r}. Give each its own")
    return CocoFile(path, images, _by_image(path, images, annotations))


def _entries(path: Path, record: Entry, key: str) -> list[Entry]:
    entries = record.get(key)
    if not isinstance(entries, list) or (key == "images" and not entries):
        raise DataError(f"{path}: no images or no annotations in it; expected COCO's instances_*.json")
    if not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path}: not a COCO annotation file ({key} holds more than objects)")
    return entries


def _by_image(path: Path, images: dict[Id, Entry], annotations: Sequence[Entry]) -> dict[Id, list[Entry]]:
    """Annotations by the id of their image. 7 and "7" are the same id if this is unambiguous."""
    objects: dict[Id, list[Entry]] = {identity: [] for identity in images}
    by_number = _by_number(images)
    strange: list[Any] = []
    for entry in annotations:
        identity = _whole(entry.get("image_id"))
        if not (isinstance(identity, int | str) and identity in objects):
            identity = by_number.get(_number(identity))
        if identity is None:
            strange.append(entry.get("image_id"))
        else:
            objects[identity].append(entry)
    if strange and len(strange) == len(annotations):
        raise DataError(
            f"{path}: no annotation is of a listed image: image_id {strange[0]!r}, ..., but ids of images are "
            f"{', '.join(repr(identity) for identity in list(images)[:3])}, .... Are these two parts of one data set?"
        )
    if strange:
        say(f"{path}: {len(strange)} annotations are of images that it does not list (image_id {strange[0]!r}, ...).")
    return objects


def _by_number(identities: Iterable[Id]) -> dict[str, Id]:
    """Integer text -> id, without integers that match several ids."""
    by_number: dict[str, Id] = {}
    twice = set()
    for identity in identities:
        number = _number(identity)
        if by_number.setdefault(number, identity) != identity:
            twice.add(number)
    return {number: identity for number, identity in by_number.items() if number not in twice}


def _whole(identity: Any) -> Any:
    """7 for 7.0, which tables write; other values unchanged."""
    return int(identity) if isinstance(identity, float) and identity.is_integer() else identity


def _number(identity: object) -> str:
    """An id that is an integer, as text; for any other id a text that is no number."""
    text = str(identity).strip()
    return str(int(text)) if text.isdecimal() else f"not a number: {text}"


def is_crowd(entry: Entry) -> bool:
    """Whether an annotation is a crowd region."""
    return str(entry.get("iscrowd") or 0).lower() not in ("0", "0.0", "false", "")


def chosen(dataset: CocoFile, path: Path) -> list[Id]:
    """Ids of the images in a list of file names or ids.

    Raises:
        DataError: no such list, a line names no image, or a name is ambiguous.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a list of image file names or ids, one a line")
    by_name: dict[str, list[Id]] = {}
    for identity, entry in dataset.images.items():
        for name in dict.fromkeys((_slashes(entry["file_name"]), _slashes(entry["file_name"]).rpartition("/")[2])):
            by_name.setdefault(_bare(name), []).append(identity)
    by_number = _by_number(dataset.images)
    taken: list[Id] = []
    for line in filter(None, map(str.strip, read_list(path))):
        named = by_name.get(_bare(_slashes(line))) or by_name.get(_bare(_slashes(line).rpartition("/")[2]), [])
        if len(named) > 1:
            raise DataError(f"{path}: {line!r} is the name of {len(named)} images. Name them with their folders")
        chosen = named[0] if named else line if line in dataset.images else by_number.get(_number(line))
        if chosen is None:
            raise DataError(f"{path}: {line!r} is no image of the annotation file, by file name or by id")
        taken.append(chosen)
    return list(dict.fromkeys(taken))


def _slashes(name: str) -> str:
    return name.replace("\\", "/")


def _bare(name: str) -> str:
    """A name without a picture suffix."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in IMAGE_SUFFIXES else name


def find_files(dataset: CocoFile, folder: Path, identities: Iterable[Id]) -> dict[Id, Path]:
    """Find the file of each image: its path below `folder`, else next to the annotations.

    A path from another machine is matched by its last parts, if they are unique in the annotation file.

    Raises:
        DataError: a file is missing.
    """
    folders = list(dict.fromkeys((folder, dataset.path.parent, folder.parent)))
    finders = [read_by_stem(parent) for parent in folders]
    paths, moved = {}, []
    for identity in identities:
        name = dataset.images[identity]["file_name"]
        path = _as_named(name, folders, finders)
        if path is None:
            path = _by_end(name, dataset, folder)
            moved.append(name)
        if path is None:
            raise DataError(_missing(dataset, identity, folder))
        paths[identity] = path
    if moved:
        say(
            f"{dataset.path}: {len(moved)} paths of another machine ({moved[0]}, ...) are read by their ends in "
            f"{folder}."
        )
    return paths


def _as_named(name: str, folders: Sequence[Path], finders: Sequence[Any]) -> Path | None:
    """The file with exactly this name, with backslashes replaced, or with another picture suffix."""
    for text in dict.fromkeys((name, _slashes(name))):
        for folder in folders:
            if (folder / text).is_file():
                return folder / text
    relative = _slashes(name)
    if _is_absolute(relative):
        return None
    return next((path for find in finders if (path := find(relative)) is not None), None)


def _is_absolute(name: str) -> bool:
    return name.startswith("/") or PureWindowsPath(name).is_absolute()


def _by_end(name: str, dataset: CocoFile, folder: Path) -> Path | None:
    parts = PurePosixPath(_slashes(name)).parts
    if not _is_absolute(_slashes(name)):
        return None
    for count in range(len(parts) - 1, 0, -1):
        end = "/".join(parts[-count:])
        if (folder / end).is_file():
            same = sum(f"/{_slashes(entry['file_name'])}".endswith(f"/{end}") for entry in dataset.images.values())
            return folder / end if same == 1 else None
    return None


def _missing(dataset: CocoFile, identity: Id, folder: Path) -> str:
    name = dataset.images[identity]["file_name"]
    last = PurePosixPath(_slashes(name)).name
    there = FilesByStem(folder).find(last)
    hint = f". {there} is there, but it has no folder in its path, and is perhaps another image" if there else ""
    return f"{folder / name}: no such file, but {dataset.path} lists it as image {identity}{hint}"


def find_annotations(root: Path) -> list[Path]:
    """Annotation files at the first of the usual paths below a folder that has any."""
    for pattern in ANNOTATION_FILES:
        files = sorted((path for path in root.glob(pattern) if _looks_like_coco(path)), key=natural_key)
        if files:
            return files
    return []


def _looks_like_coco(path: Path) -> bool:
    """Whether a file begins like an annotation file (whole files may have hundreds of MB)."""
    with path.open("rb") as stream:
        start = stream.read(1 << 16)
    return any(f'"{key}"'.encode() in start for key in ("images", "image_id"))


def find_images(annotations: Path, images: Path) -> Path:
    """The image folder of an annotation file: `images` if it exists, else the folder of the first image."""
    if images.is_dir():
        return images
    first = next(iter(read(annotations).images.values()))["file_name"]
    beside, above = annotations.parent, annotations.parent.parent
    split = annotations.stem.removeprefix("instances_")
    for folder in (beside, above, beside / "images", above / "images", above / "images" / split, above / split):
        if _as_named(first, [folder], [read_by_stem(folder)]) is not None:
            return folder
    return images
