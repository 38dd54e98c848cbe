"""Video object segmentation where objects enter late: YouTube-VOS, MOSE and LVOS.

Layouts (SPLIT is valid or test)::

    youtube   ROOT/all_frames/SPLIT_all_frames/JPEGImages/VIDEO/*.jpg, ROOT/SPLIT/Annotations/VIDEO/*.png of the frames
              where objects first appear, ROOT/SPLIT/meta.json: the frames to be written
    mose      ROOT/SPLIT/JPEGImages/VIDEO, ROOT/SPLIT/Annotations/VIDEO/*.png, of which the first counts
    lvos      ROOT/SPLIT/JPEGImages/VIDEO, ROOT/SPLIT/Annotations/VIDEO/*.png of all frames: objects are given where an
              id is first seen, and all of them are the truth; Annotations_first_only is taken where it is

Names of frames without their ending join pictures, masks and meta.json.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from PIL import Image

from data import DataError
from data.arrays import Pixels
from data.files import FilesByStem, folders_in
from data.images import image_size, read_rgb
from data.masks import ID_SUFFIXES, PALETTE, VOID_ID, read_ids
from data.notices import say

Layout = Literal["auto", "youtube", "mose", "lvos"]
KnownLayout = Literal["youtube", "mose", "lvos"]


@dataclass(frozen=True)
class VosVideo:
    """Frames of a video from the first object on, the given masks, and the frames to predict."""

    name: str
    frames: tuple[Path, ...]
    """Earlier frames, in which nothing is known, are left out."""
    given: Mapping[int, Path] = field(repr=False)
    """Masks of frames at which objects are given; frame 0 has one."""
    wanted: frozenset[int] = field(repr=False)
    """Frames whose masks are written."""
    truth: Mapping[int, Path] = field(default_factory=dict, repr=False)
    """True masks of frames, where there are any."""
    first_only: bool = False
    """Whether only ids that no earlier mask had are given (masks of all frames)."""

    def __len__(self) -> int:
        return len(self.frames)

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width), pixels."""
        return image_size(self.frames[0])

    @cached_property
    def starts(self) -> dict[int, int]:
        """For each object, ascending, the frame at which it is given."""
        starts: dict[int, int] = {}
        for index in sorted(self.given):
            for identity in np.unique(self._ids(self.given[index])).tolist():
                if identity not in (0, VOID_ID):
                    starts.setdefault(identity, index)
        return dict(sorted(starts.items()))

    @cached_property
    def palette(self) -> list[int]:
        """768 values of the first mask's palette; PASCAL VOC's where it has none."""
        with Image.open(self.given[0]) as image:
            return (image.getpalette() if image.mode == "P" else None) or PALETTE.ravel().tolist()

    def read_frame(self, index: int) -> Pixels:
        """RGB [H, W, 3]; DataError if it is unreadable or of another size."""
        rgb = np.asarray(read_rgb(self.frames[index]))
        self._check_size(self.frames[index], rgb)
        return rgb

    def read_given(self, index: int) -> Pixels | None:
        """Ids [H, W] of the objects that are given at a frame; None where none are."""
        if index not in self.given:
            return None
        ids = self._ids(self.given[index])
        ids = np.where(ids == VOID_ID, 0, ids)
        if self.first_only:
            new = [identity for identity, start in self.starts.items() if start == index]
            ids = np.where(np.isin(ids, new), ids, 0)
        return ids.astype(np.uint8) if ids.any() else None

    def read_truth(self, index: int) -> Pixels:
        """True ids [H, W] of a frame that has some; void counts as background."""
        ids = self._ids(self.truth[index])
        return np.where(ids == VOID_ID, 0, ids).astype(np.uint8)

    def _ids(self, path: Path) -> Pixels:
        ids = read_ids(path)
        self._check_size(path, ids)
        return ids

    def _check_size(self, path: Path, pixels: Pixels) -> None:
        if pixels.shape[:2] != self.size:
            raise DataError(
                f"{path}: {pixels.shape[:2]} (height, width), but video {self.name!r} has {self.size}; frames and "
                "masks must have one size."
            )


def load_vos(
    root: Path | str,
    layout: Layout = "auto",
    split: str = "valid",
    videos: Sequence[str] | None = None,
    truth: Path | str | None = None,
) -> tuple[KnownLayout, list[VosVideo]]:
    """The layout, and the videos that have masks.

    Args:
        videos: only these; None takes all.
        truth: a folder of true masks VIDEO/FRAME.png, for layouts that have none.

    Raises:
        FileNotFoundError: no such folder.
        DataError: no such layout; frames and masks that do not belong together; a meta.json that names missing frames
            or an object that never appears.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder. Check the path.")
    kind = detect_layout(root, split) if layout == "auto" else layout
    frames = (
        root / "all_frames" / f"{split}_all_frames" / "JPEGImages" if kind == "youtube" else root / split / "JPEGImages"
    )
    masks = root / split / "Annotations"
    first_only = root / split / "Annotations_first_only"
    given = first_only if kind == "lvos" and first_only.is_dir() else masks
    for folder in (frames, given):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; layout {kind} needs it.")
    meta = _meta(root / split / "meta.json") if kind == "youtube" else None
    names = _names(given, videos, meta)
    truths = Path(truth) if truth is not None else masks if kind == "lvos" else None
    if truths is not None and not truths.is_dir():
        raise DataError(f"{truths}: no such folder of true masks.")
    loaded = [_video(kind, name, frames / name, given / name, truths, meta) for name in names]
    return kind, loaded


def detect_layout(root: Path, split: str) -> KnownLayout:
    """Which layout a folder has; DataError if it has none."""
    if (root / split / "meta.json").is_file():
        return "youtube"
    masks = root / split / "Annotations"
    if not masks.is_dir() or not (root / split / "JPEGImages").is_dir():
        names = ", ".join(path.name for path in folders_in(root)) or "no folders"
        raise DataError(
            f"{root}: none of the layouts {', '.join(get_args(KnownLayout))}: expected {split}/Annotations and "
            f"{split}/JPEGImages or {split}/meta.json, found {names}."
        )
    several = any(len(FilesByStem(folder, ID_SUFFIXES).paths) > 1 for folder in folders_in(masks))
    return "lvos" if several or (root / split / "Annotations_first_only").is_dir() else "mose"


def _names(given: Path, videos: Sequence[str] | None, meta: Mapping[str, Any] | None) -> list[str]:
    names = [folder.name for folder in folders_in(given)]
    if not names:
        raise DataError(f"{given}: no folders of masks.")
    if unknown := [name for name in videos or () if name not in names]:
        raise DataError(
            f"{given}: no video {unknown[0]!r}; there are {', '.join(names[:8])}{', ...' if names[8:] else ''}."
        )
    if meta is not None:
        if missing := sorted(meta.keys() - set(names)):
            say(f"{given}: {len(missing)} videos of meta.json have no masks and are left out ({missing[0]}).")
        if unlisted := [name for name in names if name not in meta]:
            raise DataError(f"{given}: meta.json does not list video {unlisted[0]!r}, which has masks.")
    return [name for name in names if videos is None or name in videos]


def _meta(file: Path) -> dict[str, Any]:
    """Video -> object -> its frames."""
    try:
        content = json.loads(file.read_text())
        return {
            str(name): {
                int(identity): [str(frame) for frame in note["frames"]] for identity, note in video["objects"].items()
            }
            for name, video in content["videos"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: expected videos, of each its objects, of each its frames ({error!r}).") from None


def _video(
    kind: KnownLayout, name: str, frames: Path, given: Path, truths: Path | None, meta: Mapping[str, Any] | None
) -> VosVideo:
    every = FilesByStem(frames).only()
    if not every:
        raise DataError(f"{frames}: no frames of video {name!r}.")
    masks = {path.stem: path for path in FilesByStem(given, ID_SUFFIXES).only()}
    if not masks:
        raise DataError(f"{given}: no masks of video {name!r}.")
    stems = [path.stem for path in every]
    if alone := sorted(masks.keys() - set(stems)):
        raise DataError(f"{frames}: no frame {alone[0]}, of which {given} has a mask.")
    if kind == "mose":
        first_mask = min(masks)
        masks = {first_mask: masks[first_mask]}
    first = min(stems.index(stem) for stem in masks)
    kept = every[first:]
    index = {path.stem: number for number, path in enumerate(kept)}
    true = {} if truths is None else {path.stem: path for path in FilesByStem(truths / name, ID_SUFFIXES).only()}
    video = VosVideo(
        name=name,
        frames=tuple(kept),
        given={index[stem]: path for stem, path in masks.items()},
        wanted=frozenset(index.values()) if meta is None else _wanted(frames, meta[name], stems, index),
        truth={index[stem]: path for stem, path in true.items() if stem in index},
        first_only=kind == "lvos",
    )
    if not video.starts:
        raise DataError(f"{given}: no object in the masks of video {name!r}.")
    if 0 not in video.starts.values():
        raise DataError(f"{video.given[0]}: no object in the first mask of video {name!r}. Take the file out.")
    if meta is not None and (never := sorted(meta[name].keys() - video.starts.keys())):
        raise DataError(f"{given}: object {never[0]} of video {name!r}, which meta.json lists, appears in no mask.")
    return video


def _wanted(
    frames: Path, objects: Mapping[int, Sequence[str]], stems: Sequence[str], index: Mapping[str, int]
) -> frozenset[int]:
    """Frames that meta.json names for any object; frames before the first mask cannot be written."""
    named = {frame for listed in objects.values() for frame in listed}
    if missing := sorted(named - set(stems)):
        raise DataError(
            f"{frames}: meta.json names frame {missing[0]} of video {frames.name!r}, which is not there "
            f"({len(missing)} such). Unpack all frames."
        )
    return frozenset(index[frame] for frame in named if frame in index)
