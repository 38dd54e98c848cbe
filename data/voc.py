"""Lists of a VOC tree."""

from pathlib import Path

from data import DataError
from data.lists import read_list


def read_voc_list(root: Path, task: str, split: str) -> list[str]:
    """Names in ImageSets/TASK/SPLIT.txt of a VOC tree, the first word a line.

    Raises:
        DataError: the list is not there or empty, or holds a path: results are written under these names.
    """
    listed = root / "ImageSets" / task / f"{split}.txt"
    if not listed.is_file():
        there = sorted(path.stem for path in listed.parent.glob("*.txt"))
        nested = sorted(path.parent.relative_to(root).as_posix() for path in root.glob("*/ImageSets"))
        advice = f"; did you mean {root / nested[0]}?" if nested else ""
        raise DataError(f"{listed}: no such list; there are {', '.join(there[:8]) or 'none'}{advice}")
    names = [line.split()[0] for line in read_list(listed) if line.strip()]
    if not names:
        raise DataError(f"{listed}: the list is empty")
    paths = [name for name in names if "/" in name or "\\" in name or name in (".", "..")]
    if paths:
        raise DataError(f"{listed}: {paths[0]!r} is a path; expected names of images without folder and ending")
    return list(dict.fromkeys(names))
