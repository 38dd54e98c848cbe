"""Convert between pixels and whole patches, with one function for each way of rounding.

Shapes: h x w patches of `patch` pixels a side; sizes are (height, width).
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

Rounding = Literal["floor", "ceil", "nearest", "even"]
"""Down, up, to the nearest (halves up), to the nearest (halves to the even number, as Python's `round`)."""

ROUNDINGS: dict[str, Callable[[float], int]] = {
    "floor": math.floor,
    "ceil": math.ceil,
    "nearest": lambda value: math.floor(value + 0.5),
    "even": round,
}


class Fit(NamedTuple):
    """An image size made of whole patches."""

    patch: int
    """Pixels a side."""
    h: int
    """Patches in a column."""
    w: int
    """Patches in a row."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.h * self.patch, self.w * self.patch


def fit(size: tuple[float, float], patch: int, how: Rounding, *, least: int = 1) -> Fit:
    """The grid of whole patches for an image of `size` pixels (height, width), which may be fractions.

    Resizing to `Fit.size` changes the aspect ratio by the rounding only. Use "floor" to crop and "ceil" to pad.

    Args:
        how: rounding of the number of patches of a side.
        least: smallest number of patches of a side.
    """
    rounded = ROUNDINGS[how]
    h, w = (max(least, rounded(side / patch)) for side in size)
    return Fit(patch, h, w)


def to_pixels(box: tuple[int, int, int, int], patch: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box of patches (x0, y0, x1, y1), ends not included, in the pixels of an image of `size` (height, width).

    The last patches of a padded image may reach beyond it; the box is clipped to the image.
    """
    height, width = size
    x0, y0, x1, y1 = (float(side * patch) for side in box)
    return x0, y0, min(x1, float(width)), min(y1, float(height))


def check_whole(name: str, pixels: int, patch: int, network: str) -> None:
    """Raise ValueError unless a side in pixels, the value of the option `name`, is a number of whole patches."""
    if pixels % patch:
        near = max(1, round(pixels / patch)) * patch
        raise ValueError(f"{name} is {pixels}: expected a multiple of {network}'s patch size {patch}, such as {near}")
