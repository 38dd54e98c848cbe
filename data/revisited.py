"""Revisited Oxford and Paris (Radenović et al. 2018, arXiv 1803.11285): queries and their relevant images.

    <root>/gnd_roxford5k.pkl    or gnd_rparis6k.pkl, or any gnd_NAME.pkl of the same form
    <root>/jpg/*.jpg            or another ending of pictures

The ground truth is a pickle, which can run code; it is read without (`plain_pickle`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from data import DataError
from data.arrays import Box
from data.files import read_by_stem
from data.plain_pickle import StoredArray, read_plain_pickle

Indices = npt.NDArray[np.int64]

LABELS = ("easy", "hard", "junk")
PUBLISHED_SIZES = {"roxford5k": (4993, 70), "rparis6k": (6322, 70)}
"""Database images and queries of the published sets (arXiv 1803.11285, sec. 3)."""


@dataclass(frozen=True)
class Revisited:
    """A database, queries, and for each query the indices of its easy, hard and junk database images."""

    name: str
    """roxford5k, rparis6k, or NAME of the ground-truth file gnd_NAME.pkl."""
    root: Path
    ground_truth: Path
    database: list[Path]
    queries: list[Path]
    boxes: list[Box]
    """The landmark of each query: left, top, right, bottom (pixels of the full image)."""
    labels: list[dict[str, Indices]]
    """For each query, indices under "easy", "hard" and "junk"."""

    @property
    def is_complete(self) -> bool:
        """Whether this is a complete published set."""
        return PUBLISHED_SIZES.get(self.name) == (len(self.database), len(self.queries))


def load_revisited(root: Path | str) -> Revisited:
    """Read the ground truth, and check that all images exist.

    Raises:
        FileNotFoundError: no such folder.
        DataError: no ground-truth file or more than one; the file is damaged, names other than plain data, or
            contradicts itself; or images are missing (the first are named).
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder. Check the path.")
    file = _ground_truth_file(root)
    record = _record(file)
    names = {key: _image_names(file, record, key) for key in ("imlist", "qimlist")}
    answers = record.get("gnd")
    if not isinstance(answers, list) or len(answers) != len(names["qimlist"]):
        content = len(answers) if isinstance(answers, list) else type(answers).__name__
        raise DataError(f"{file}: expected a gnd entry for each of {len(names['qimlist'])} queries, found {content}.")
    find = read_by_stem(root / "jpg")
    paths = {key: [find(name) or root / "jpg" / f"{name}.jpg" for name in listed] for key, listed in names.items()}
    _check_images(root, [*paths["imlist"], *paths["qimlist"]])
    places = [f"{file}: gnd[{number}]" for number in range(len(answers))]
    return Revisited(
        name=file.stem.removeprefix("gnd_"),
        root=root,
        ground_truth=file,
        database=paths["imlist"],
        queries=paths["qimlist"],
        boxes=[_box(where, answer) for where, answer in zip(places, answers, strict=True)],
        labels=[
            {label: _indices(where, answer, label, len(paths["imlist"])) for label in LABELS}
            for where, answer in zip(places, answers, strict=True)
        ],
    )


def is_revisited(root: Path) -> bool:
    """Whether a folder has the layout of these sets."""
    return any(root.glob("gnd_*.pkl"))


# --- What the file holds -----------------------------------------------------------------------------------


def _ground_truth_file(root: Path) -> Path:
    files = sorted(root.glob("gnd_*.pkl"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise DataError(f"{root}: expected one of gnd_roxford5k.pkl and gnd_rparis6k.pkl (and jpg/), found {names}.")
    return files[0]


def _image_names(file: Path, record: Mapping[str, Any], key: str) -> list[str]:
    """Names without suffix, all below jpg/."""
    names = record.get(key)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(f"{file}: expected a list of image names under {key!r}, found {_short(names)}.")
    for name in names:
        if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DataError(f"{file}: {key} has {name!r}, expected the name of an image in jpg/.")
    return names


def _check_images(root: Path, paths: Sequence[Path]) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        some = ", ".join(path.relative_to(root).as_posix() for path in missing[:3])
        more = ", ..." if len(missing) > 3 else ""
        raise DataError(f"{root}: {len(missing)} of {len(paths)} images are missing ({some}{more}). Unpack them there.")


def _indices(where: str, answer: Any, label: str, count: int) -> Indices:
    """Valid indices into the database."""
    value = answer.get(label) if isinstance(answer, dict) else None
    indices = _plain_array(value)
    if indices is None or indices.ndim != 1 or (indices.size and indices.dtype.kind not in "iu"):
        raise DataError(f"{where}: expected a list of indices under {label!r}, found {_short(value)}.")
    if indices.size and (indices.min() < 0 or indices.max() >= count):
        raise DataError(
            f"{where}: {label} goes from {indices.min()} to {indices.max()}, expected 0 to {count - 1} "
            "(the images of imlist)."
        )
    return indices.astype(np.int64)


def _box(where: str, answer: Any) -> Box:
    """The landmark of a query, pixels."""
    value = answer.get("bbx") if isinstance(answer, dict) else None
    corners = _plain_array(value)
    if corners is None or corners.shape != (4,) or corners.dtype.kind not in "iuf" or not np.isfinite(corners).all():
        raise DataError(f"{where}: expected four numbers under 'bbx', found {_short(value)}.")
    left, top, right, bottom = (float(side) for side in corners)
    if not (left < right and top < bottom):
        raise DataError(f"{where}: bbx is {corners.tolist()}, expected left < right and top < bottom.")
    return left, top, right, bottom


def _plain_array(value: Any) -> npt.NDArray[Any] | None:
    """An array of numbers from a list or a stand-in; None for anything else."""
    if isinstance(value, StoredArray):
        return value.values
    plain = isinstance(value, list | tuple) and all(type(item) in (int, float) for item in value)
    return np.array(value) if plain else None


def _short(value: Any) -> str:
    return repr(value)[:60] if isinstance(value, str | int | float | list | tuple) else type(value).__name__


def _record(file: Path) -> dict[str, Any]:
    """The dict in a ground-truth file; DataError for a file that holds none."""
    record = read_plain_pickle(file)
    if not isinstance(record, dict):
        raise DataError(f"{file}: expected a dict with imlist, qimlist and gnd, found {type(record).__name__}.")
    return record
