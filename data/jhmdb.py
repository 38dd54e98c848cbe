"""JHMDB's videos with the joints of a body, as CRW lists them (videowalk `data/jhmdb.py`).

A list has a line a video: its folder of frames, then its `joint_positions.mat`; relative paths begin at the list's
folder. The file's field `pos_img` [2, K, T] holds x and y in pixels, counted from 1.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data import DataError
from data.arrays import Floats, Pixels
from data.files import FilesByStem
from data.images import image_size, read_rgb
from data.lists import read_list

LIST_NAMES = ("list.txt", "val_list.txt", "test_list.txt")
CLIP_NAME = re.compile(r"(?P<source>.+)_[a-z]_[a-z]{2}_np\d+_[a-z]{2}_[a-z]{3}_\d+")
"""HMDB's names of clips: title and action of the video, then visible body, camera, people, view, quality, number."""


@dataclass(frozen=True)
class PoseVideo:
    """A video and its joints in every frame."""

    name: str
    frames: tuple[Path, ...]
    size: tuple[int, int]
    """(height, width), pixels."""
    joints: Floats = field(repr=False)
    """[T, K, 2]: x, y in pixels, counted from 0; some lie outside the frame."""

    def read(self, index: int) -> Pixels:
        """Frame RGB [H, W, 3]; DataError if it is unreadable or of another size."""
        rgb = np.asarray(read_rgb(self.frames[index]))
        if rgb.shape[:2] != self.size:
            raise DataError(f"{self.frames[index]}: {rgb.shape[:2]} (height, width); the first frame has {self.size}.")
        return rgb


def load_jhmdb(path: Path | str) -> list[PoseVideo]:
    """The videos of a list, or of the list in a folder.

    Raises:
        FileNotFoundError: no such path.
        DataError: no list, a line that names nothing, an unreadable file, or joints of another length than the frames.
    """
    listed = _list_in(Path(path))
    lines = [line.split() for line in read_list(listed) if line.strip()]
    if not lines:
        raise DataError(f"{listed}: the list is empty.")
    videos = []
    for number, words in enumerate(lines, start=1):
        if len(words) != 2:
            raise DataError(f"{listed}, line {number}: expected a folder of frames and a .mat file, found {words}.")
        folder, file = (listed.parent / word for word in words)
        videos.append(_video(folder, file))
    joints = {video.joints.shape[1] for video in videos}
    if len(joints) > 1:
        raise DataError(f"{listed}: videos of {sorted(joints)} joints; expected as many in each.")
    return videos


def source_of(name: str) -> str:
    """The video that a clip was cut from, by the clip's name; the name itself where it is not of HMDB's form."""
    match = CLIP_NAME.fullmatch(name)
    return match["source"] if match else name


def _list_in(path: Path) -> Path:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such list or folder. Check the path.")
    if path.is_file():
        return path
    for name in LIST_NAMES:
        if (path / name).is_file():
            return path / name
    raise DataError(f"{path}: no list of videos ({', '.join(LIST_NAMES)}); name the file.")


def _video(folder: Path, file: Path) -> PoseVideo:
    frames = FilesByStem(folder).only()
    if not frames:
        raise DataError(f"{folder}: no frames of a video.")
    joints = _joints(file)
    if len(joints) != len(frames):
        raise DataError(f"{file}: joints of {len(joints)} frames, but {folder} has {len(frames)}. Get both anew.")
    if len(frames) < 2:
        raise DataError(f"{folder}: one frame; expected two or more, since the first is given.")
    return PoseVideo("/".join(folder.parts[-2:]), tuple(frames), image_size(frames[0]), joints)


def _joints(file: Path) -> Floats:
    """[T, K, 2], counted from 0."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    if not file.is_file():
        raise DataError(f"{file}: no such file of joints.")
    try:
        value: Any = loadmat(str(file), variable_names=["pos_img"]).get("pos_img")
    except (MatReadError, ValueError, TypeError, OSError, NotImplementedError, EOFError) as error:
        raise DataError(f"{file}: not a MATLAB file that can be read ({error}). Get it anew.") from None
    if not isinstance(value, np.ndarray) or value.ndim != 3 or value.shape[0] != 2 or value.dtype.kind not in "fiu":
        held = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise DataError(f"{file}: pos_img is {held}; expected numbers [2, K, T].")
    joints = value.transpose(2, 1, 0).astype(np.float64) - 1
    if not np.isfinite(joints).all():
        raise DataError(f"{file}: joints that are no finite numbers.")
    return joints
