"""INRIA Copydays (Douze et al. 2009): photographs, and copies of them altered by known attacks.

    <root>/original/*.jpg          157 photographs
    <root>/strong/*.jpg            229 copies: print and scan, blur, paint, perspective, ...
    <root>/crops/PERCENT/*.jpg     10 15 20 30 40 50 60 70 80 percent of the surface cut away
    <root>/jpegqual/QUALITY/*.jpg  3 5 8 10 15 20 30 50 75

A copy and its original share the first four characters of their names (200001.jpg is a copy of 200000.jpg). In other
data sets these characters may be ambiguous (IMG_0001.jpg, IMG_0002.jpg): then a copy's name must begin with its
original's name (IMG_0001_blur.jpg, IMG_000101.jpg).
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data import DataError
from data.files import natural_key
from data.images import list_images

ORIGINAL, STRONG = "original", "strong"
FAMILIES = ("crops", "jpegqual")
KEY_LENGTH = 4  # first characters of a name that identify the photograph
NAME_LENGTH = 6  # characters of a published name without suffix
PUBLISHED_SIZES = {ORIGINAL: 157, STRONG: 229}


@dataclass(frozen=True)
class Copy:
    """One attacked image."""

    path: Path
    attack: str
    """strong, crops/PERCENT or jpegqual/QUALITY."""
    originals: list[int]
    """Indices of the photographs that it shows."""


@dataclass(frozen=True)
class Copydays:
    """Photographs, and copies in the order of the attacks: strong, crops, jpegqual."""

    root: Path
    originals: list[Path]
    copies: list[Copy]

    @property
    def is_complete(self) -> bool:
        """Whether the numbers of photographs and strong copies are the published numbers."""
        strong = sum(copy.attack == STRONG for copy in self.copies)
        return {ORIGINAL: len(self.originals), STRONG: strong} == PUBLISHED_SIZES


def load_copydays(root: Path | str) -> Copydays:
    """Find the photographs and all folders of copies.

    Raises:
        FileNotFoundError: no such folder, or no folder of photographs.
        DataError: no copies, a folder without images, a copy without photograph (named), or names that do not
            identify the photograph of a copy.
    """
    root = Path(root)
    originals = list_images(root / ORIGINAL)
    folders = {folder: list_images(folder) for folder in _attack_folders(root)}
    by_key = _by_key(originals, [copy for copies in folders.values() for copy in copies])
    copies = []
    for folder, paths in folders.items():
        shown = [by_key[path.name[:KEY_LENGTH]] for path in paths] if by_key else _by_whole_names(originals, paths)
        attack = folder.relative_to(root).as_posix()
        copies += [Copy(path, attack, indices) for path, indices in zip(paths, shown, strict=True)]
    return Copydays(root, originals, copies)


def _by_key(originals: Sequence[Path], copies: Sequence[Path]) -> Mapping[str, list[int]] | None:
    """Indices of the originals by the first characters of their names; None if these are ambiguous."""
    by_key: dict[str, list[int]] = defaultdict(list)
    for index, path in enumerate(originals):
        by_key[path.name[:KEY_LENGTH]].append(index)
    stems = [path.stem for path in [*originals, *copies]]
    if min(map(len, stems)) < KEY_LENGTH or not (max(map(len, by_key.values())) == 1 or _twice(originals, copies)):
        return None
    unknown = [path for path in copies if path.name[:KEY_LENGTH] not in by_key]
    if unknown:
        raise DataError(
            f"{unknown[0]}: its original is missing. No image in {originals[0].parent} begins with "
            f"{unknown[0].name[:KEY_LENGTH]!r}."
        )
    return by_key


def _twice(originals: Sequence[Path], copies: Sequence[Path]) -> bool:
    """Whether all names have the published form (photograph and picture number), at most two originals for each key."""
    named = {path.stem for path in originals}
    stems = named | {path.stem for path in copies}
    if not all(len(stem) == NAME_LENGTH and stem.isdecimal() for stem in stems):
        return False
    same_names = all(path.stem in named for path in copies)
    return not same_names and max(Counter(stem[:KEY_LENGTH] for stem in named).values()) <= 2


def _by_whole_names(originals: Sequence[Path], copies: Sequence[Path]) -> list[list[int]]:
    """The original of each copy in a folder: the longest original name that the copy's name begins with.

    The match must not end within a number. If all matches do (IMG_0001 and IMG_000101), the remainder must have the
    same length in every such copy.

    Raises:
        DataError: copies have no original, or more than one; the message names three.
    """
    indices = {path.stem: index for index, path in enumerate(originals)}
    names = [[path.stem[:end] for end in range(len(path.stem), 0, -1) if path.stem[:end] in indices] for path in copies]
    pairs = list(zip([path.stem for path in copies], names, strict=True))
    uncut = [[name for name in some if not _cuts_number(stem, name)] for stem, some in pairs]
    tails = [
        {len(stem) - len(name) for name in some} for (stem, some), fine in zip(pairs, uncut, strict=True) if not fine
    ]
    tail = set.intersection(*tails) if tails else set()
    shown: list[list[int]] = []
    unclear: list[str] = []
    for path, some, fine in zip(copies, names, uncut, strict=True):
        name = fine[0] if fine else path.stem[: len(path.stem) - min(tail)] if len(tail) == 1 else None
        if name is None:
            unclear.append(f"{path.name} ({' or '.join(some) or 'begins with the name of no original'})")
        shown.append([indices[name]] if name is not None else [])
    if unclear:
        raise DataError(
            f"{copies[0].parent}: {len(unclear)} of {len(copies)} copies do not say which image of "
            f"{originals[0].parent} they show: {', '.join(unclear[:3])}. Expected the name of the original, then more "
            "(cat.jpg, cat_blur.jpg)."
        )
    return shown


def _cuts_number(name: str, start: str) -> bool:
    """Whether `start` ends within a number of `name`."""
    return start[-1:].isdigit() and name[len(start) : len(start) + 1].isdigit()


def is_copydays(root: Path) -> bool:
    """Whether a folder has the layout of this set."""
    return (root / ORIGINAL).is_dir()


def _attack_folders(root: Path) -> list[Path]:
    strong = [root / STRONG] if (root / STRONG).is_dir() else []
    levels = [path for family in FAMILIES for path in (root / family).glob("*") if path.is_dir()]
    folders = strong + sorted(levels, key=natural_key)
    if not folders:
        raise DataError(
            f"{root}: no copies. Expected {STRONG}/, crops/PERCENT/ or jpegqual/QUALITY/ next to {ORIGINAL}/."
        )
    return folders
