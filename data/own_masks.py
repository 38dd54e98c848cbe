"""Masks that a user made for a clip, in any format.

Palettes, gray levels, colors, transparency, 16-bit ids, JPEG noise, soft edges, JSON of labelme and COCO. All masks of
a clip are inspected before any is converted (`data.mask_rules`), so that an object has the same id in all masks. The
decision is reported; ambiguous values are refused.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from data import DataError
from data.arrays import Pixels
from data.mask_files import Kind, Raster, read_raster
from data.mask_rules import AmbiguousMaskError, Rule, decide


class OwnMasks(Mapping[str, Pixels]):
    """Maps frame names to ids uint8 [H, W], read on access.

    Args:
        files: frame name -> mask file.
        size: required (height, width), pixels; of each frame by its name if they differ.

    Attributes:
        objects: the ids of all masks, ascending; 0 is background.
        said: the decision in words, for the user.

    Raises:
        FileNotFoundError: no such file.
        DataError: a file is no mask, has another size or no object, or its values are ambiguous.
    """

    def __init__(self, files: Mapping[str, Path], size: tuple[int, int] | Mapping[str, tuple[int, int]]) -> None:
        self.files = dict(files)
        self.sizes = dict(size) if isinstance(size, Mapping) else dict.fromkeys(self.files, size)
        self._rules: dict[Kind, Rule] = {}
        for kind, names in self._by_kind().items():
            rasters = (self._raster(name) for name in names)
            try:
                self._rules[kind] = decide(kind, rasters)
            except AmbiguousMaskError as error:
                raise DataError(f"{self.files[names[0]]}: {error}.") from None
        pixels = self._count()
        self.objects = sorted(pixels)
        if not self.objects:
            raise DataError(f"{self._first}: the mask has no object (all of it is ground). Paint one.")
        self.said = self._text(pixels)

    def __getitem__(self, name: str) -> Pixels:
        raster = self._raster(name)
        return self._rules[raster.kind].apply(raster)

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    @property
    def _first(self) -> Path:
        return next(iter(self.files.values()))

    def _raster(self, name: str) -> Raster:
        path = self.files[name]
        raster = read_raster(path, name)
        height, width = raster.values.shape[:2]
        expected = self.sizes[name]
        if (height, width) != expected:
            raise DataError(
                f"{path}: {height}x{width} pixels (height x width), but the frames have {expected[0]}x{expected[1]}. "
                "Paint the mask on a frame at its full size."
            )
        return raster

    def _by_kind(self) -> dict[Kind, list[str]]:
        kinds: dict[Kind, list[str]] = {}
        for name in self.files:
            kinds.setdefault(self._raster(name).kind, []).append(name)
        return kinds

    def _count(self) -> dict[int, int]:
        """Number of pixels of each object in the first mask that has it."""
        pixels: dict[int, int] = {}
        for ids in self.values():
            values, counts = np.unique(ids[ids > 0], return_counts=True)
            for value, count in zip(values.tolist(), counts.tolist(), strict=True):
                pixels.setdefault(value, count)
        return pixels

    def _text(self, pixels: Mapping[int, int]) -> str:
        names = read_raster(self._first, next(iter(self.files))).names
        shown = []
        for identity in self.objects[:8]:
            name = f" ({names[identity - 1]})" if identity <= len(names) else ""
            shown.append(f"{identity}{name} with {pixels[identity]} pixels")
        more = f", and {len(self.objects) - 8} more" if len(self.objects) > 8 else ""
        plural = "object" if len(self.objects) == 1 else "objects"
        said = [rule.said for rule in self._rules.values() if rule.said]
        whole = [] if not self[next(iter(self.files))].all() else ["no pixel of the first mask is ground"]
        return "; ".join([f"{len(self.objects)} {plural}: {', '.join(shown)}{more}", *said, *whole])
