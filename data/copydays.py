"""INRIA Copydays (Douze et al. 2009): photographs and copies of them after known attacks.

    <root>/original/*.jpg          157 photographs
    <root>/strong/*.jpg            229 copies: print and scan, blur, paint, perspective, ...
    <root>/crops/PERCENT/*.jpg     10 15 20 30 40 50 60 70 80 percent of the surface cut away
    <root>/jpegqual/QUALITY/*.jpg  3 5 8 10 15 20 30 50 75

A copy and its original share the first four characters of their names (200001.jpg is a copy of 200000.jpg).
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from data import DataError
from data.images import list_images, natural_key

ORIGINAL, STRONG = "original", "strong"
FAMILIES = ("crops", "jpegqual")
KEY_LENGTH = 4  # characters of a name that say which photograph it is
PUBLISHED_SIZES = {ORIGINAL: 157, STRONG: 229}


@dataclass(frozen=True)
class Copy:
    """One attacked image."""

    path: Path
    attack: str
    """strong, crops/PERCENT or jpegqual/QUALITY."""
    originals: list[int]
    """Indices of the photographs it shows."""


@dataclass(frozen=True)
class Copydays:
    """Photographs, and copies in the order of the attacks: strong, crops, jpegqual."""

    root: Path
    originals: list[Path]
    copies: list[Copy]

    @property
    def is_complete(self) -> bool:
        """Whether the photographs and the strong copies are the published ones, by number."""
        strong = sum(copy.attack == STRONG for copy in self.copies)
        return {ORIGINAL: len(self.originals), STRONG: strong} == PUBLISHED_SIZES


def load_copydays(root: Path | str) -> Copydays:
    """Find the photographs and every folder of copies that there is.

    Raises:
        FileNotFoundError: no such folder, or none of photographs.
        DataError: no copies, a folder without images, a copy of no photograph (named).
    """
    root = Path(root)
    originals = list_images(root / ORIGINAL)
    by_key: dict[str, list[int]] = defaultdict(list)
    for index, path in enumerate(originals):
        by_key[path.name[:KEY_LENGTH]].append(index)
    copies = []
    for folder in _attack_folders(root):
        for path in list_images(folder):
            if path.name[:KEY_LENGTH] not in by_key:
                raise DataError(
                    f"{path}: a copy of what? No image in {root / ORIGINAL} begins with {path.name[:KEY_LENGTH]!r}."
                )
            attack = folder.relative_to(root).as_posix()
            copies.append(Copy(path, attack, by_key[path.name[:KEY_LENGTH]]))
    return Copydays(root, originals, copies)


def is_copydays(root: Path) -> bool:
    """Whether a folder looks like this set."""
    return (root / ORIGINAL).is_dir()


def _attack_folders(root: Path) -> list[Path]:
    strong = [root / STRONG] if (root / STRONG).is_dir() else []
    levels = [path for family in FAMILIES for path in (root / family).glob("*") if path.is_dir()]
    folders = strong + sorted(levels, key=natural_key)
    if not folders:
        raise DataError(
            f"{root}: no copies. Expected {STRONG}/, crops/PERCENT/ or jpegqual/QUALITY/ beside {ORIGINAL}/."
        )
    return folders
