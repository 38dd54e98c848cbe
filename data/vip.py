"""VIP (video instance-level parsing): videos with the class of a body's part or garment at every pixel.

ROOT/Images/VIDEO/FRAME.jpg
ROOT/Category_ids/VIDEO/FRAME.png           class 0 to 19 (Category_ids may lie under Annotations)
ROOT/lists/SPLIT_videos.txt                 names, one a line; without it all videos count
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data import DataError
from data.arrays import Pixels
from data.files import FilesByStem, folders_in
from data.images import image_size, read_rgb
from data.lists import read_list
from data.masks import ID_SUFFIXES, VOID_ID, read_ids

CLASSES = 20
"""Background and 19 classes."""


@dataclass(frozen=True)
class ParsedVideo:
    """Frames of a video, and the classes of each frame."""

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]

    def read_frame(self, index: int) -> Pixels:
        """RGB [H, W, 3]."""
        return np.asarray(read_rgb(self.frames[index]))

    def read_classes(self, index: int) -> Pixels:
        """Classes [H, W], 0 to 19; whatever else the file holds is 255, void.

        Raises:
            DataError: unreadable, or of another size than its frame.
        """
        ids = read_ids(self.masks[index])
        size = image_size(self.frames[index])
        if ids.shape != size:
            raise DataError(f"{self.masks[index]}: {ids.shape} (height, width), but its frame has {size}.")
        return np.where(ids < CLASSES, ids, VOID_ID).astype(np.uint8)


def load_vip(root: Path | str, split: str = "val") -> list[ParsedVideo]:
    """The videos of a split, every frame with its classes.

    Raises:
        FileNotFoundError: no such folder.
        DataError: another layout, an unknown video, or frames and classes that do not belong together.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder. Check the path.")
    classes = next(
        (path for path in (root / "Category_ids", root / "Annotations" / "Category_ids") if path.is_dir()), None
    )
    if classes is None or not (root / "Images").is_dir():
        names = ", ".join(path.name for path in folders_in(root)) or "no folders"
        raise DataError(f"{root}: expected Images and Category_ids (or Annotations/Category_ids), found {names}.")
    listed = root / "lists" / f"{split}_videos.txt"
    if listed.is_file():
        videos = [line.strip() for line in read_list(listed) if line.strip()]
    elif split == "val":
        videos = [path.name for path in folders_in(classes)]
    else:
        raise DataError(f"{listed}: no such list.")
    if not videos:
        raise DataError(f"{root}: no videos.")
    return [_video(root, classes, name) for name in videos]


def _video(root: Path, classes: Path, name: str) -> ParsedVideo:
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise DataError(f"{root}: {name!r} is no name of a video.")
    frames = {path.stem: path for path in FilesByStem(root / "Images" / name).only()}
    masks = {path.stem: path for path in FilesByStem(classes / name, ID_SUFFIXES).only()}
    alone = sorted(frames.keys() ^ masks.keys())
    if alone:
        lacking = "classes" if alone[0] in frames else "picture"
        raise DataError(f"{root}: frame {alone[0]} of video {name!r} has no {lacking} ({len(alone)} such). Copy them.")
    if len(frames) < 2:
        raise DataError(
            f"{root}: video {name!r} has {len(frames)} frames; expected two or more, since the first is given."
        )
    return ParsedVideo(name, tuple(frames.values()), tuple(masks[stem] for stem in frames))
