"""Videos with point tracks in TAP-Vid's pickles (arXiv 2211.03726): DAVIS' dict of videos, RGB-Stacking's list.

A video is a record of three arrays::

    video       uint8 [T, H, W, 3], or T frames as encoded images (Kinetics)
    points      float [N, T, 2]: x, y in shares of width and height
    occluded    bool [N, T]

A pickle is a program; it is read without running it (`plain_pickle`).
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data import DataError
from data.arrays import Floats, Mask, Pixels
from data.plain_pickle import StoredArray, read_plain_pickle

KEYS = ("video", "points", "occluded")
EDGE = 1 / 256  # of a side: how far outside its frame a visible point may lie, by rounding


@dataclass(frozen=True)
class TrackedVideo:
    """A video with its tracks."""

    name: str
    frames: Pixels | Sequence[bytes] = field(repr=False)
    """[T, H, W, 3], or encoded images."""
    points: Floats = field(repr=False)
    """[N, T, 2]: x, y in shares of the sides; a visible one lies in its frame."""
    occluded: Mask = field(repr=False)
    """[N, T]"""

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, index: int, side: int) -> Pixels:
        """Frame RGB resized to [side, side, 3] by Lanczos, as TAP-Vid's reader does; DataError if it is no image."""
        frame = self.frames[index]
        try:
            with Image.open(io.BytesIO(frame)) if isinstance(frame, bytes) else Image.fromarray(frame) as image:
                return np.asarray(image.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), np.uint8)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"frame {index} of video {self.name!r} cannot be read ({error}).") from None


def find_pickle(path: Path | str) -> Path:
    """The file itself, or the only .pkl in a folder.

    Raises:
        FileNotFoundError: no such path.
        DataError: a folder with none or several.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder. Check the path.")
    if path.is_file():
        return path
    files = sorted(path.glob("*.pkl"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise DataError(f"{path}: expected one .pkl file, found {names}. Name the file.")
    return files[0]


def load_tracks(path: Path | str) -> list[TrackedVideo]:
    """The videos of a pickle, in its order.

    Raises:
        FileNotFoundError: no such file.
        DataError: it is damaged, holds code, or a record does not fit together.
    """
    file = find_pickle(path)
    content = read_plain_pickle(file)
    if isinstance(content, list):
        content = {f"{number:05d}": record for number, record in enumerate(content)}
    if not isinstance(content, dict) or not content:
        raise DataError(f"{file}: expected a dict of videos or a list of them, found {type(content).__name__}.")
    return [_video(f"{file}: video {str(name)!r}", str(name), record) for name, record in content.items()]


def _video(where: str, name: str, record: Any) -> TrackedVideo:
    if not isinstance(record, dict) or any(key not in record for key in KEYS):
        held = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise DataError(f"{where}: expected {', '.join(KEYS)}, found {held}.")
    frames, points, occluded = _frames(where, record["video"]), *(_array(where, record, key) for key in KEYS[1:])
    if points.ndim != 3 or points.shape[2] != 2 or points.dtype.kind != "f" or points.shape[:2] != occluded.shape:
        raise DataError(
            f"{where}: points {points.dtype} {points.shape} and occluded {occluded.shape}; expected float [N, T, 2] "
            "and [N, T]."
        )
    if points.shape[1] != len(frames):
        raise DataError(
            f"{where}: tracks of {points.shape[1]} frames, but the video has {len(frames)}. Get the file anew."
        )
    hidden: Mask = occluded.astype(bool)
    seen = points[~hidden].astype(np.float64)
    if not len(seen):
        raise DataError(f"{where}: none of {len(points)} tracks is visible in any frame.")
    if not (np.isfinite(seen).all() and seen.min() >= -EDGE and seen.max() <= 1 + EDGE):
        raise DataError(
            f"{where}: visible points go from {seen.min():.4g} to {seen.max():.4g}; expected shares of the "
            "frame's sides, 0 to 1."
        )
    placed = np.where(hidden[..., None], points, points.clip(0, 1)).astype(np.float64)
    return TrackedVideo(name, frames, placed, hidden)


def _frames(where: str, value: Any) -> Pixels | list[bytes]:
    if isinstance(value, StoredArray) and value.values is not None:
        pixels = value.values
        if pixels.ndim == 4 and pixels.shape[-1] == 3 and pixels.dtype == np.uint8 and pixels.size:
            return pixels
        raise DataError(f"{where}: frames {pixels.dtype} {pixels.shape}; expected uint8 [T, H, W, 3].")
    if isinstance(value, list) and value and all(isinstance(frame, bytes) for frame in value):
        return value
    raise DataError(f"{where}: expected frames as uint8 [T, H, W, 3] or encoded images, found {type(value).__name__}.")


def _array(where: str, record: dict[str, Any], key: str) -> Any:
    value = record[key]
    if not isinstance(value, StoredArray) or value.values is None or not value.values.size:
        raise DataError(f"{where}: expected an array under {key!r}, found {type(value).__name__}.")
    return value.values
