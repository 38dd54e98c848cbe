"""Images with the depth of every pixel.

nyu     nyu_train.txt and nyu_test.txt (BTS's lists, also nyudepthv2_{train,test}_files_with_gt.txt): lines
        `image depth focal`, below the root; 16 bits, millimeters
kitti   kitti_eigen_{train,test}.txt or eigen_{train,test}_files_with_gt.txt: the same lines, images below the root,
        input/ or raw/, depth below the root, gt_depth/ or data_depth_annotated/; 16 bits, 256 a meter, 0 is no depth
folder  images/SPLIT/* and depth/SPLIT/*, or SPLIT/images/* and SPLIT/depth/*: 16 bits in millimeters, or meters as
        floats (.npy, .tif)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from data import DataError
from data.files import IMAGE_SUFFIXES, list_files, natural_key
from data.images import read_rgb
from data.lists import read_list
from data.notices import say

Layout = Literal["auto", "nyu", "kitti", "folder"]
Depth = npt.NDArray[np.float32]
"""Meters, [H, W]; 0 where nobody measured."""

LISTS = {
    "nyu": ("nyu_{}.txt", "nyudepthv2_{}_files_with_gt.txt"),
    "kitti": ("kitti_eigen_{}.txt", "kitti_{}.txt", "eigen_{}_files_with_gt.txt"),
}
"""Names of the list of a split."""
IMAGE_ROOTS = (".", "input", "raw", "data")
DEPTH_ROOTS = (".", "gt_depth", "data_depth_annotated", "data_depth_annotated/train", "data_depth_annotated/val")
DEPTH_FOLDERS = ("depth", "depths", "gt", "depth_maps")
DEPTH_SUFFIXES = frozenset({".png", ".npy", ".tif", ".tiff"})
UNITS = {"nyu": 1000.0, "kitti": 256.0}
"""Values of a file that make a meter."""
MILLIMETERS = 1000.0
PUBLISHED = {
    ("nyu", "train"): (24_231,),
    ("nyu", "test"): (654,),
    ("kitti", "train"): (23_158, 23_488),
    ("kitti", "test"): (652, 697),
}
"""Images of BTS's lists: of KITTI those with depth, and Eigen's whole split."""
KB_FRAME = (352, 1216)
"""Lowest rows and middle columns of an image of KITTI that are used (KBCrop; KITTI's own benchmark has this size)."""
LOOKED_AT = 8
"""Maps of a split whose median says whether the unit can be right."""
LEAST_MEDIAN = 0.05
"""Meters. A smaller median was divided by a unit that the files do not have."""


@dataclass(frozen=True)
class DepthPair:
    """One image and the depth of each of its pixels."""

    name: str
    """Unique in its split."""
    image: Path
    depth: Path
    unit: float | None
    """Values of the file that make a meter; None: 1000 of whole numbers, 1 of floats."""
    frame: tuple[int, int] | None = None
    """The part that `read` returns: so many of the lowest rows, and of the middle columns; None: all."""

    def read(self) -> tuple[Image.Image, Depth]:
        """RGB picture and meters; DataError where the sizes differ, or are smaller than the frame."""
        picture, depth = read_rgb(self.image), self.read_depth()
        if depth.shape != picture.size[::-1]:
            raise DataError(
                f"{self.depth}: {depth.shape[0]}x{depth.shape[1]} values (height x width), but {self.image} has "
                f"{picture.height}x{picture.width}; a depth map must have the size of its image"
            )
        return (picture, depth) if self.frame is None else self._framed(picture, depth, self.frame)

    def _framed(self, picture: Image.Image, depth: Depth, frame: tuple[int, int]) -> tuple[Image.Image, Depth]:
        top, left = depth.shape[0] - frame[0], (depth.shape[1] - frame[1]) // 2
        if min(top, left) < 0:
            raise DataError(
                f"{self.image}: {picture.height}x{picture.width} pixels (height x width); expected at least "
                f"{frame[0]}x{frame[1]}, as images of KITTI have. Use --frame whole"
            )
        right, bottom = left + frame[1], depth.shape[0]
        return picture.crop((left, top, right, bottom)), depth[top:, left:right]

    def read_depth(self) -> Depth:
        """Meters; DataError for a file that is missing, damaged, or no map of numbers from 0 up."""
        values = _read_values(self.depth)
        if values.ndim != 2 or values.dtype == np.uint8:
            raise DataError(
                f"{self.depth}: {values.dtype} of shape {values.shape}; expected one channel of 16 bits or of floats"
            )
        whole = np.issubdtype(values.dtype, np.integer)
        meters = values.astype(np.float32) / np.float32(self.unit or (MILLIMETERS if whole else 1.0))
        meters = np.where(np.isfinite(meters), meters, 0).astype(np.float32)
        if meters.min(initial=0) < 0:
            raise DataError(f"{self.depth}: depths down to {meters.min()} m; expected 0 (none) or more")
        return meters


def open_depth(root: Path | str, split: str, layout: Layout = "auto", unit: float | None = None) -> list[DepthPair]:
    """The pairs of a split.

    Args:
        split: train or test of nyu and kitti, a folder's name otherwise.
        unit: values of the files that make a meter; default that of the layout.

    Raises:
        DataError: no such layout, list or file, or an empty split.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected images and depth maps")
    name = layout if layout != "auto" else layout_of(root)
    if name == "folder":
        return _folder(root, split, unit)
    return _listed(root, split, name, unit or UNITS[name])


def layout_of(root: Path) -> Layout:
    """nyu or kitti where one of their lists is in the folder, else folder."""
    for name in ("nyu", "kitti"):
        if any((root / pattern.format(split)).is_file() for pattern in LISTS[name] for split in ("train", "test")):
            return name  # type: ignore[return-value]
    return "folder"


def depth_set(layout: str, train: Sequence[DepthPair], test: Sequence[DepthPair]) -> str | None:
    """The published set that these splits are, by counts; None for any other."""
    counts = (len(train), len(test))
    if layout == "nyu" and counts == (24_231, 654):
        return "NYUv2"
    return "KITTI Eigen" if layout == "kitti" and counts == (23_158, 652) else None


def check_unit(pairs: Sequence[DepthPair], highest: float) -> None:
    """Look at some maps.

    Raises:
        DataError: their median is not between 5 cm and the highest depth: the unit is another one.
    """
    step = max(1, len(pairs) // LOOKED_AT)
    looked_at = pairs[::step][:LOOKED_AT]
    values = np.concatenate([depth[depth > 0] for depth in (pair.read_depth() for pair in looked_at)])
    folder = pairs[0].depth.parent
    if not values.size:
        raise DataError(f"{folder}: {len(looked_at)} depth maps have no value above 0; expected depths")
    median = float(np.median(values))
    if median > highest:
        raise DataError(
            f"{folder}: the median depth is {median:.4g} m, above the highest of {highest:g} m. If the files are in "
            f"millimeters (median then {median / 1000:.3g} m), give --unit 1000 (values that make a meter); if the "
            "scenes are that large, raise --max-depth"
        )
    if median < LEAST_MEDIAN:
        raise DataError(
            f"{folder}: the median depth is {median:.4g} m. If the files are in meters already (median then "
            f"{median * 1000:.3g} m), give --unit 1 (values that make a meter)"
        )


def _listed(root: Path, split: str, layout: str, unit: float) -> list[DepthPair]:
    """The pairs of a BTS list, in the order of its sorted lines (as dinov3 reads it)."""
    names = [pattern.format(split) for pattern in LISTS[layout]]
    listed = next((root / name for name in names if (root / name).is_file()), None)
    if listed is None:
        there = sorted((path.name for path in root.glob("*.txt")), key=lambda name: natural_key(Path(name)))
        raise DataError(
            f"{root / names[0]}: no such list; expected lines of image, depth and focal length; there are "
            f"{', '.join(there[:8]) or 'no lists'}. Name another split than {split!r}"
        )
    pairs, without = [], 0
    for line in sorted(filter(str.strip, read_list(listed))):
        words = line.split()
        if len(words) < 2:
            raise DataError(f"{listed}: {line!r}; expected image, depth and focal length")
        if words[1] == "None":
            without += 1
            continue
        image, depth = (word.lstrip("/") for word in words[:2])
        pairs.append(DepthPair(image, _below(root, IMAGE_ROOTS, image), _below(root, DEPTH_ROOTS, depth), unit))
    if not pairs:
        raise DataError(f"{listed}: the list names no image with depth")
    if without:
        say(f"{listed}: {without} images without depth are left out.")
    expected = PUBLISHED.get((layout, split), ())
    if expected and len(pairs) not in expected:
        say(
            f"{listed}: {len(pairs)} images, where BTS's {split} list has {' or '.join(map(str, expected))}: this "
            f"{split} split is of another copy of the data set or a part of it, and its numbers stand beside no "
            "published one."
        )
    return pairs


def _below(root: Path, folders: Sequence[str], name: str) -> Path:
    """A file below one of the folders of a root."""
    for folder in folders:
        if (root / folder / name).is_file():
            return root / folder / name
    raise DataError(f"{root / name}: no such file, but the list names it (looked in {', '.join(folders)})")


def _folder(root: Path, split: str, unit: float | None) -> list[DepthPair]:
    for outer, inner in ((root, split), (root / split, ".")):
        depths = next((outer / name / inner for name in DEPTH_FOLDERS if (outer / name / inner).is_dir()), None)
        if depths and (outer / "images" / inner).is_dir():
            return _paired(outer / "images" / inner, depths, unit)
    there = sorted(path.name for path in (root / "images").glob("*/")) or sorted(path.name for path in root.glob("*/"))
    raise DataError(
        f"{root / 'images' / split}: no such split; expected images/{split} with depth/{split}, or {split}/images with "
        f"{split}/depth, or lists of NYUv2 or KITTI; there are {', '.join(there[:8]) or 'none'}"
    )


def _paired(images: Path, depths: Path, unit: float | None) -> list[DepthPair]:
    maps = {path.relative_to(depths).with_suffix("").as_posix(): path for path in list_files(depths, DEPTH_SUFFIXES)}
    pairs = []
    for image in list_files(images, IMAGE_SUFFIXES):
        name = image.relative_to(images).with_suffix("").as_posix()
        if name not in maps:
            raise DataError(f"{depths / name}.png: no such file, but there is {image}; every image needs its depth map")
        pairs.append(DepthPair(name, image, maps[name], unit))
    if not pairs:
        raise DataError(f"{images}: no image in it")
    return pairs


def _read_values(path: Path) -> npt.NDArray:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        if path.suffix.lower() == ".npy":
            return np.squeeze(np.load(path, allow_pickle=False))
        with Image.open(path) as image:
            return np.array(image)
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DataError(f"{path}: unreadable depth map ({error}): the file is damaged, or no depth map") from error
