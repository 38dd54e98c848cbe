"""DAVIS trees: read the frames and masks of a split as pixels and object ids.

Layout (DAVIS 2016 and 2017, https://davischallenge.org)::

    ROOT/ImageSets/2017/val.txt                      one sequence name on each line
    ROOT/JPEGImages/480p/<sequence>/00000.jpg        frames, in the order of the numbers in their names
    ROOT/Annotations/480p/<sequence>/00000.png       object ids (2017) or foreground (2016)

Frames with other suffixes are read too, and masks in other lossless formats.

The meaning of a mask's value depends on the year. In 2016 every value above 0 is the object. In 2017 the value is the
object's id and 255 is void (davis2017/davis.py of the official evaluation).
"""

import difflib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Literal

import cv2
import numpy as np

from data import DataError, jpeg
from data.arrays import Pixels
from data.files import IMAGE_SUFFIXES, FilesByStem, natural_key
from data.images import read_rgb
from data.lists import read_list
from data.masks import ID_SUFFIXES, VOID_ID, read_foreground, read_ids
from data.notices import say

Void = Literal["error", "background"]


# The official val lists (ImageSets/2016/val.txt, ImageSets/2017/val.txt): "DAVIS val" in papers.
VAL_2016 = frozenset(
    [
        *(
            "blackswan",
            "bmx-trees",
            "breakdance",
            "camel",
            "car-roundabout",
            "car-shadow",
            "cows",
            "dance-twirl",
            "dog",
        ),
        *("drift-chicane", "drift-straight", "goat", "horsejump-high", "kite-surf", "libby", "motocross-jump"),
        *("paragliding-launch", "parkour", "scooter-black", "soapbox"),
    ]
)


VAL_2017 = VAL_2016 | {
    *("bike-packing", "dogs-jump", "gold-fish", "india", "judo", "lab-coat", "loading", "mbike-trick", "pigs"),
    "shooting",
}


OFFICIAL_HEIGHT = 480
"""Pixels, of every frame of the packages of 480p."""
YEARS = (2016, 2017)
YEAR_ADVICE = ", or use year 2016 if every non-black pixel is the object"
JPEG_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif"})


@dataclass(frozen=True)
class VideoSequence:
    """One video: its frames, and a mask for some or all frames (always for the first).

    Attributes:
        name: folder name of the sequence.
        frames: JPEG files in temporal order.
        masks: mask file of each frame, or None (test-dev has only the first).
        year: meaning of mask values: 2016 (one foreground object) or 2017 (object ids).
        void: treatment of value 255 in a 2017 first mask: an error, or background.
    """

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path | None, ...]
    year: int = 2017
    void: Void = "error"

    def __len__(self) -> int:
        return len(self.frames)

    @cached_property
    def size(self) -> tuple[int, int]:
        """(height, width) of the first frame in pixels; all frames and masks must have this size."""
        height, width = _decode_frame(self.frames[0]).shape[:2]
        return height, width

    @cached_property
    def num_objects(self) -> int:
        """Number of objects in the first mask: its highest id (official scorer)."""
        return int(self.first_mask().max())

    @property
    def has_ground_truth(self) -> bool:
        """Whether every frame has a mask, as scoring needs."""
        return all(mask is not None for mask in self.masks)

    def read_frame(self, index: int) -> Pixels:
        """Frame `index`, RGB uint8 [H, W, 3]; DataError if unreadable, truncated or of another size."""
        path = self.frames[index]
        frame = _decode_frame(path)
        self._check_size(path, frame)
        return frame

    def read_mask(self, index: int) -> Pixels:
        """Object ids uint8 [H, W] of frame `index`: 0 is background; void becomes background."""
        ids = self._read_ids(index)
        if ids.max(initial=0) == VOID_ID:
            ids[ids == VOID_ID] = 0
        return ids

    def first_mask(self) -> Pixels:
        """Object ids uint8 [H, W] of the first frame, checked: ids are 1..num_objects without gaps.

        Raises:
            DataError: mask missing, unreadable or of another size than the frame; no object; ids with gaps;
                void (255) in a 2017 mask unless `void="background"`.
        """
        path, ids = self.masks[0], self._read_ids(0)
        if self.void == "background":
            ids[ids == VOID_ID] = 0
        objects = [int(value) for value in np.unique(ids) if value > 0]
        if VOID_ID in objects:
            raise DataError(
                f"{path}: value {VOID_ID} (void: pixels without a label) in a first mask of values {objects}. "
                "If this is a 0/255 foreground mask, give --year 2016; if void may count as "
                "background, give --void background (load_davis: void='background')"
            )
        if not objects:
            raise DataError(f"{path}: the first mask has no object (all values are 0): nothing to propagate")
        if objects != list(range(1, len(objects) + 1)):
            raise DataError(
                f"{path}: object ids {objects} have gaps. The protocol counts max(id) = {objects[-1]} objects, "
                "and a missing object scores J = 1: relabel them consecutively as "
                f"1..{len(objects)}"
            )
        return ids

    def _read_ids(self, index: int) -> Pixels:
        path = self.masks[index]
        if path is None:
            raise DataError(f"{self.frames[index]}: no mask for this frame of sequence {self.name!r}")
        ids = read_foreground(path) if self.year == 2016 else read_ids(path, YEAR_ADVICE)
        self._check_size(path, ids)
        return ids

    def _check_size(self, path: Path, pixels: Pixels) -> None:
        if pixels.shape[:2] != self.size:
            shape, expected = pixels.shape[:2], self.size
            raise DataError(
                f"{path}: {shape[0]}x{shape[1]} pixels (height x width), but the first frame of sequence "
                f"{self.name!r} has {expected[0]}x{expected[1]}; frames and masks must have one size"
            )


def load_davis(
    root: str | Path,
    year: int = 2017,
    split: str = "val",
    sequences: Sequence[str] | None = None,
    max_frames: int | None = None,
    *,
    resolution: str = "480p",
    void: Void = "error",
) -> list[VideoSequence]:
    """The sequences of a DAVIS split, in the order of its list, with every first mask checked.

    Args:
        root: the folder with `ImageSets`, `JPEGImages` and `Annotations`.
        year: 2016 or 2017: selects the list and the meaning of mask values.
        split: name of the list: `val`, `train`, `test-dev`, ...
        sequences: only these sequences of the split; None for all.
        max_frames: only the first frames of each sequence; None for all.
        resolution: folder under JPEGImages and Annotations, `480p` or `Full-Resolution`.
        void: treatment of value 255 in a 2017 first mask.

    Raises:
        DataError: no such folder, not a DAVIS tree, an unknown sequence, or an unusable first frame or mask
            (`VideoSequence.first_mask`).
    """
    root = Path(root)
    if year not in YEARS:
        raise DataError(f"year {year}: DAVIS has the years {YEARS[0]} and {YEARS[1]}")
    if max_frames is not None and max_frames < 1:
        raise DataError(f"max_frames {max_frames}: expected at least 1, or None for all")
    _check_tree(root, resolution)
    names = _select(_split_names(root, year, split, resolution), sequences, f"split {split!r} of {root}")
    loaded = [_find_sequence(root, name, year, resolution, void, max_frames) for name in names]
    for sequence in loaded:
        _ = sequence.num_objects  # reads and checks the first mask, once
    return loaded


def is_official_val(sequences: Sequence[VideoSequence], year: int) -> bool:
    """Whether these are exactly the sequences of the official val list of that year, at 480 rows, without a gap."""
    names = {sequence.name for sequence in sequences} == (VAL_2016 if year == 2016 else VAL_2017)
    return names and all(sequence.size[0] == OFFICIAL_HEIGHT and _is_whole(sequence.frames) for sequence in sequences)


def _is_whole(frames: Sequence[Path]) -> bool:
    """Whether frames are numbered from 0 on without a gap: every second frame makes another video."""
    return [frame.stem for frame in frames] == [f"{number:05d}" for number in range(len(frames))]


def read_prediction(folder: str | Path, sequence: VideoSequence, index: int) -> Pixels:
    """Predicted ids uint8 [H, W] of a frame from `folder/<sequence>/<frame>.png`.

    Raises:
        DataError: the file is missing or unreadable, differs in size from the frame, or has an id above the number of
            objects in the first mask.
    """
    path = Path(folder) / sequence.name / f"{sequence.frames[index].stem}.png"
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a predicted mask for each frame but the first and last")
    ids = read_foreground(path) if sequence.year == 2016 else read_ids(path, YEAR_ADVICE)
    sequence._check_size(path, ids)
    if ids.max() > sequence.num_objects:
        raise DataError(
            f"{path}: predicted id {ids.max()}, but the first mask of sequence {sequence.name!r} has "
            f"{sequence.num_objects} object(s). Foreground masks with the values 0 and 255 need year 2016"
        )
    return ids


def _decode_frame(path: Path) -> Pixels:
    """Decode a frame as stored, RGB uint8 [H, W, 3]; JPEG by OpenCV, as in the reference, so that pixels are equal.

    No EXIF tag turns it, as none turns the masks, nor the frames of other tasks on the same tree.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.suffix.lower() not in JPEG_SUFFIXES:
        return np.array(read_rgb(path))
    encoded = path.read_bytes()
    if not encoded.startswith(jpeg.START_OF_IMAGE):
        raise DataError(f"{path}: not a JPEG file (it begins with {encoded[:4]!r})")
    if not jpeg.is_whole(encoded):
        raise DataError(f"{path}: truncated JPEG ({len(encoded)} bytes, no end-of-image marker): copy it again")
    bgr = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if bgr is None:
        raise DataError(f"{path}: OpenCV cannot decode this JPEG: the file is damaged, copy it again")
    return np.ascontiguousarray(bgr[..., ::-1], np.uint8)


def _check_tree(root: Path, resolution: str) -> None:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected a DAVIS tree (ImageSets, JPEGImages, Annotations)")
    expected = ["ImageSets", f"JPEGImages/{resolution}", f"Annotations/{resolution}"]
    missing = [name for name in expected if not (root / name).is_dir()]
    if not missing:
        return
    nested = sorted(folder.name for folder in root.iterdir() if (folder / "JPEGImages").is_dir())
    advice = f"; did you mean {root / nested[0]}?" if nested else ""
    raise DataError(
        f"{root}: not a DAVIS tree: expected the folders {', '.join(expected)}, missing "
        f"{', '.join(missing)}; found {_listing(root)}; JPEGImages has {_listing(root / 'JPEGImages')}"
        f"{advice}"
    )


def _listing(folder: Path, limit: int = 8) -> str:
    names = [entry.name for entry in sorted(folder.iterdir(), key=natural_key)] if folder.is_dir() else []
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "") if names else "nothing"


def _split_names(root: Path, year: int, split: str, resolution: str) -> list[str]:
    """Sequence names of a split's list, which has names (2017 package) or pairs of paths (2016 package)."""
    candidates = [root / "ImageSets" / folder / f"{split}.txt" for folder in (str(year), resolution)]
    listed = next((path for path in candidates if path.is_file()), None)
    if listed is None:
        lists = sorted(str(path.relative_to(root)) for path in root.glob("ImageSets/*/*.txt"))
        raise DataError(
            f"{candidates[0]}: no such list for year {year} and split {split!r}; "
            f"the tree has {', '.join(lists) or 'no list'}"
        )
    firsts = [_with_slashes(line.split()[0]) for line in read_list(listed) if line.strip()]
    names = [PurePosixPath(first).parent.name if "/" in first else first for first in firsts]
    if not names:
        raise DataError(f"{listed}: the list is empty")
    paths = [name for name in names if name in ("", ".", "..") or "\\" in name]
    if paths:  # masks are written to these names
        raise DataError(f"{listed}: {paths[0]!r} is no name of a sequence; expected those of folders in JPEGImages")
    return list(dict.fromkeys(names))


def _with_slashes(word: str) -> str:
    """A Windows path to a frame with slashes; other words unchanged."""
    is_frame = Path(word).suffix.lower() in IMAGE_SUFFIXES
    return word.replace("\\", "/") if is_frame else word


def _select(names: list[str], wanted: Sequence[str] | None, where: str) -> list[str]:
    if wanted is None:
        return names
    if not wanted:
        raise DataError(f"no sequence asked for; {where} has {', '.join(names)}")
    for name in wanted:
        if name not in names:
            near = difflib.get_close_matches(name, names) or names
            raise DataError(f"no sequence {name!r} in {where}; did you mean {', '.join(near)}?")
    return [name for name in names if name in wanted]


def _find_sequence(
    root: Path, name: str, year: int, resolution: str, void: Void, max_frames: int | None
) -> VideoSequence:
    folder = root / "JPEGImages" / resolution / name
    every = FilesByStem(folder).only()
    frames = tuple(every[:max_frames])
    if not frames:
        raise DataError(
            f"{folder}: no *.jpg frames, nor other pictures, of sequence {name!r} (found {_listing(folder)})"
        )
    _say_gaps(folder, every)
    annotations = root / "Annotations" / resolution / name
    files = FilesByStem(annotations, ID_SUFFIXES)
    by_stem = {mask.stem: mask for mask in files.only()}
    alone = sorted(by_stem.keys() - {frame.stem for frame in every}, key=lambda stem: natural_key(Path(stem)))
    if alone:  # without these frames, the video would be another
        raise DataError(
            f"{folder / alone[0]}.jpg: no such file, but {annotations} has a mask of that frame ({len(alone)} such). "
            "Copy the missing frames, or take the masks out"
        )
    masks = tuple(by_stem.get(frame.stem) for frame in frames)
    if masks[0] is None:
        raise DataError(
            f"{annotations / frames[0].stem}.png: no such file; sequence {name!r} needs a mask of its first frame "
            f"(found {_listing(annotations)})"
        )
    return VideoSequence(name, frames, masks, year, void)


def _say_gaps(folder: Path, frames: Sequence[Path]) -> None:
    """Say if frame numbers have gaps: the motion between frames is then larger."""
    numbers = [int(frame.stem) for frame in frames if frame.stem.isdecimal()]
    steps = {later - earlier for earlier, later in itertools.pairwise(numbers)}
    if len(numbers) == len(frames) and len(steps) > 1:
        usual = min(steps)
        after = next(number for number, later in itertools.pairwise(numbers) if later - number != usual)
        say(
            f"{folder}: {len(frames)} frames whose numbers have gaps (the first after {after}); they are read as one "
            "video."
        )
