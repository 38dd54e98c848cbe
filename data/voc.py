"""Lists of a VOC tree, and the listed files."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from data import DataError
from data.files import COMMON_SUFFIXES, IMAGE_SUFFIXES, FilesByStem, natural_key
from data.lists import read_list

FLAG = re.compile(r"\s+-?\d+$")
"""Flag in the list of a class: the class is present (1), absent (-1), or only in difficult objects (0)."""


class VocEntry(NamedTuple):
    """An image of a list, with its annotation or mask file."""

    name: str
    """Unique in its list; results are written under this name."""
    image: Path
    other: Path
    """Its annotation or mask."""


def read_voc_list(root: Path, task: str, split: str) -> list[str]:
    """The distinct lines of ImageSets/TASK/SPLIT.txt of a VOC tree, without class flags.

    Raises:
        DataError: the list is missing or empty, or has a path (results are written under these names).
    """
    listed = root / "ImageSets" / task / f"{split}.txt"
    if not listed.is_file():
        there = [path.stem for path in sorted(listed.parent.glob("*.txt"), key=natural_key)]
        nested = sorted(path.parent.relative_to(root).as_posix() for path in root.glob("*/ImageSets"))
        advice = f"; did you mean {root / nested[0]}?" if nested else f". Name another split than {split!r}"
        raise DataError(f"{listed}: no such list; there are {', '.join(there[:8]) or 'none'}{advice}")
    names = [FLAG.sub("", line.strip()) for line in read_list(listed) if line.strip()]
    if not names:
        raise DataError(f"{listed}: the list is empty")
    paths = [name for name in names if "/" in name or "\\" in name or name in (".", "..")]
    if paths:
        raise DataError(f"{listed}: {paths[0]!r} is a path; expected names of images without folder and ending")
    return list(dict.fromkeys(names))


def voc_entries(root: Path, task: str, split: str, folder: str, suffixes: Iterable[str]) -> list[VocEntry]:
    """The images of a list with their files in FOLDER, in the order of the list.

    Pictures may have any suffix that Pillow reads; names in the list may have a suffix.

    Args:
        task, split: ImageSets/TASK/SPLIT.txt.
        folder: folder of the other files, below `root`.
        suffixes: their suffixes; messages about a missing file use the first.

    Raises:
        DataError: as `read_voc_list`; or a file is missing, or two files have the same name.
    """
    endings = list(suffixes)
    pictures = FilesByStem(root / "JPEGImages")
    others = FilesByStem(root / folder, endings)
    entries: dict[str, VocEntry] = {}
    for listed in read_voc_list(root, task, split):
        where = f"but ImageSets/{task}/{split}.txt lists it"
        image = _first(pictures, listed)
        name = image.stem if image else _bare(listed, IMAGE_SUFFIXES)
        if image is None:
            raise DataError(f"{pictures.folder / name}.jpg: no such file, {where}{_instead(root, folder, name)}")
        other = others.find(name) or others.find(image.name)
        if other is None:
            raise DataError(f"{others.folder / name}{endings[0]}: no such file, {where}{_instead(root, folder, name)}")
        entries.setdefault(name, VocEntry(name, image, other))
    return list(entries.values())


def _first(pictures: FilesByStem, listed: str) -> Path | None:
    """The picture of a line: named by the whole line, or by its first word."""
    return pictures.find(listed) or pictures.find(listed.split()[0])


def _bare(name: str, suffixes: Iterable[str]) -> str:
    return Path(name).stem if Path(name).suffix.lower() in suffixes else name


def _instead(root: Path, folder: str, name: str) -> str:
    """The end of a message about a missing file: similar files that exist but do not count."""
    there = [path for parent in ("JPEGImages", folder) for path in _named(root / parent, name)]
    if not there:
        return f" (nor with another ending, such as {', '.join(COMMON_SUFFIXES[1:3])})"
    return f"; found {', '.join(path.relative_to(root).as_posix() for path in there)}"


def _named(folder: Path, name: str) -> Iterator[Path]:
    return (path for path in folder.glob("*") if path.stem == name) if folder.is_dir() else iter(())
