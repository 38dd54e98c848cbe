"""Read the foreground of masks in any format: all masks of a set together decide which values are the object.

A set has one rule, so that all masks are read in the same way. Shapes: H x W pixels.
"""

import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from PIL import Image

from data import DataError
from data.arrays import Pixels
from data.masks import VOID_ID
from data.notices import say

Channel = Literal["brightest", "darkest", "alpha", "over black"]
"""The largest or smallest of R, G, B; the opacity; the largest color of opaque pixels and 0 for others."""

Values = npt.NDArray[Any]

LOSSY_FORMATS = frozenset({"JPEG", "MPO", "AVIF", "HEIF"})
"""Lossy formats of Pillow."""

FEW_LEVELS = 8
"""Up to this many values in a lossless format are exact; more may be noise or soft edges."""

NUMBERS_END = 64
"""Values up to this, without large gaps, are object ids, not noise around two levels."""

INTERIOR = 0.1
"""A level belongs to an object from this share of interior pixels on (their neighbors have the same value)."""

STRAY = 5e-3
"""Share of all pixels that may have other values, if the rest are levels of objects."""

NEAR = 0.25
"""Share of the distance of the two levels: a value further from both lies between them."""

FLAT = 0.04
"""Share of the distance of the two levels: neighbors with a smaller difference are a surface, not an edge."""

SURFACES = 0.1
"""Surfaces between the two levels are a third level from this share of the pixels nearer to the upper level on."""

BETWEEN = 0.15
"""There are not two levels from this share of pixels between them on."""

CLEARER = 1.2
"""The darkest color is used instead of the brightest if its levels are this many times further apart."""

BORDER = 0.75
"""A level with at least this share of the images' border is probably the background."""


@dataclass(frozen=True)
class ForegroundRule:
    """The object is above a threshold of a channel, or below it if the background is brighter."""

    channel: Channel
    threshold: float
    ground_is_brighter: bool = False

    def read(self, path: Path) -> Pixels:
        """Foreground uint8 [H, W] in {0, 1}; DataError for an unreadable file."""
        values = read_channels(path).values(self.channel)
        above = values > self.threshold
        return (~above if self.ground_is_brighter else above).astype(np.uint8)


class MaskChannels(NamedTuple):
    """A mask file, decoded."""

    brightest: Values
    """The largest of R, G, B [H, W], in the file's range; the index for a palette without distinct colors."""
    darkest: Values
    """The smallest of R, G, B [H, W]."""
    alpha: Values
    """Opacity [H, W], 0 to 255."""
    is_lossy: bool
    is_palette: bool

    def values(self, channel: Channel) -> Values:
        """One channel [H, W]."""
        if channel == "over black":
            return np.where(self.alpha > VOID_ID // 2, self.brightest, 0)
        return {"brightest": self.brightest, "darkest": self.darkest, "alpha": self.alpha}[channel]


def read_channels(path: Path) -> MaskChannels:
    """The channels of a mask of any mode; DataError for an unreadable file."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        with Image.open(path) as image:
            image.load()
            is_lossy, is_palette = image.format in LOSSY_FORMATS, image.mode in ("P", "PA")
            alpha = np.full((image.height, image.width), VOID_ID, np.uint8)
            if image.has_transparency_data:
                alpha = np.array(image.convert("RGBA"))[..., 3]
            return MaskChannels(*_extremes(image), alpha, is_lossy, is_palette)
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error) as error:
        raise DataError(
            f"{path}: unreadable mask ({error}): the file is truncated or damaged, copy it again"
        ) from error


def _extremes(image: Image.Image) -> tuple[Values, Values]:
    """The largest and smallest of R, G, B of each pixel; palette indices if all palette colors are equal."""
    values: Values
    if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;"):
        values = np.array(image.convert("L") if image.mode == "1" else image)
        return values, values
    if image.mode in ("LA", "La"):
        values = np.array(image)[..., 0]
        return values, values
    colors = np.array(image.convert("RGB"))
    if image.mode == "P" and (colors == colors[:1, :1]).all():
        values = np.array(image)
        return values, values
    return colors.max(axis=-1), colors.min(axis=-1)


@dataclass
class _Levels:
    """Histogram of the values of one channel in a set."""

    counts: Counter[float] = field(default_factory=Counter)
    interior: Counter[float] = field(default_factory=Counter)
    """Counts of pixels whose four neighbors have the same value."""
    border: Counter[float] = field(default_factory=Counter)
    """Counts of pixels at the image's border."""
    ranges: list[tuple[float, float]] = field(default_factory=list)
    """Smallest and largest value of each mask."""

    def add(self, values: Values) -> None:
        """Count one mask [H, W]."""
        inner = values[1:-1, 1:-1]
        shifted = (values[:-2, 1:-1], values[2:, 1:-1], values[1:-1, :-2], values[1:-1, 2:])
        edges = (values[0], values[-1], values[1:-1, 0], values[1:-1, -1])
        _count(self.counts, values)
        _count(self.interior, inner[np.logical_and.reduce([inner == other for other in shifted])])
        _count(self.border, np.concatenate(edges))
        self.ranges.append((float(values.min()), float(values.max())))

    def are_regions(self) -> bool:
        """Whether nearly all pixels have levels that cover surfaces: object ids, not noise."""
        strays = (n for value, n in self.counts.items() if self.interior[value] < INTERIOR * n)
        return sum(strays) <= STRAY * self.counts.total()

    def border_above(self, threshold: float) -> float:
        """Share of border pixels above a threshold."""
        return sum(n for value, n in self.border.items() if value > threshold) / max(1, self.border.total())


def _count(counter: Counter[float], values: Values) -> None:
    if values.dtype.kind in "bu" and values.dtype.itemsize <= 2:  # much faster than sorting
        counts = np.bincount(values.ravel())
        levels = np.flatnonzero(counts)
        counts = counts[levels]
    else:
        levels, counts = np.unique(values, return_counts=True)
    counter.update(dict(zip(levels.tolist(), counts.tolist(), strict=True)))


def foreground_rule(paths: Sequence[Path]) -> ForegroundRule:
    """The rule that reads the object from the masks of a set. Prints a notice unless the rule is "above 0".

    Of two values, the upper is the object. Of several values in a lossless format, all but the lowest are. Two values
    with noise or soft edges around them are separated at their middle. If opacity varies, transparent pixels are
    background. If no value is 0, the background is the value at the border of the images.

    Raises:
        DataError: a mask is unreadable, or the values are neither two levels nor ids.
    """
    folder, masks = paths[0].parent, _Masks()
    for path in paths:
        masks.add(read_channels(path))
    channel = masks.channel()
    levels = masks.by_channel[channel]
    if channel in ("alpha", "over black"):
        say(f"{folder}: masks with transparent pixels, which are background.")
    if masks.are_exact(levels):
        rule = _rule_of_exact_levels(folder, channel, levels)
    else:
        rule = _rule_of_two_levels(folder, channel, levels, paths)
    _say_extremes(paths, levels, rule)
    return rule


@dataclass
class _Masks:
    """Statistics over the masks of a set."""

    by_channel: dict[Channel, _Levels] = field(default_factory=lambda: {name: _Levels() for name in get_args(Channel)})
    is_lossy: bool = False
    are_palettes: bool = True

    def add(self, mask: MaskChannels) -> None:
        """Count one mask."""
        self.is_lossy |= mask.is_lossy
        self.are_palettes &= mask.is_palette
        for channel, levels in self.by_channel.items():
            levels.add(mask.values(channel))

    def channel(self) -> Channel:
        """The channel that separates object and background."""
        levels = {name: channel_levels.counts for name, channel_levels in self.by_channel.items()}
        if len(levels["alpha"]) > 1:  # cut-outs of photographs have all colors, black silhouettes none
            over = levels["over black"]
            transparent = sum(n for value, n in levels["alpha"].items() if value <= VOID_ID // 2)
            has_black_ground = 1 < len(over) <= FEW_LEVELS and over[0] > transparent
            return "over black" if has_black_ground else "alpha"
        bright, dark = (_distance(levels[name]) for name in ("brightest", "darkest"))
        is_colored = levels["brightest"] != levels["darkest"]  # such as red on white
        return "darkest" if is_colored and dark > CLEARER * bright else "brightest"

    def are_exact(self, levels: _Levels) -> bool:
        """Whether every value is exact, without noise or soft edges."""
        values = sorted(levels.counts)
        if len(values) <= 2 or self.is_lossy:
            return len(values) <= 2
        are_numbers = values[-1] <= min(NUMBERS_END, 2 * (len(values) - 1))
        return len(values) <= FEW_LEVELS or self.are_palettes or are_numbers or levels.are_regions()


def _rule_of_exact_levels(folder: Path, channel: Channel, levels: _Levels) -> ForegroundRule:
    values = sorted(levels.counts)
    if len(values) == 1:
        return ForegroundRule(channel, 0.0)
    ground, threshold = values[0], (values[0] + values[1]) / 2
    top = (values[-2] + values[-1]) / 2
    if (ground != 0 or channel == "darkest") and levels.border_above(top) > BORDER:
        say(f"{folder}: no mask is black at its border; {values[-1]:g}, which is there, is ground, all below object.")
        return ForegroundRule(channel, top, ground_is_brighter=True)
    if ground != 0:
        say(f"{folder}: no mask has a value 0; {ground:g} is ground, all above ({_some(values[1:])}) object.")
    elif len(values) > 2:
        say(f"{folder}: masks with the values {_some(values)}; all above {ground:g} are object.")
    return ForegroundRule(channel, threshold)


def _rule_of_two_levels(folder: Path, channel: Channel, levels: _Levels, paths: Iterable[Path]) -> ForegroundRule:
    low, high, middle = _two_levels(levels.counts)
    surface = sum(_surface_between(read_channels(path).values(channel), low, high) for path in paths)
    upper = sum(n for value, n in levels.counts.items() if value > middle)
    between = sum(
        n for value, n in levels.counts.items() if min(abs(value - low), abs(value - high)) > NEAR * (high - low)
    )
    if surface > SURFACES * upper or between > BETWEEN * levels.counts.total():
        raise DataError(
            f"{folder}: masks of more than two levels ({len(levels.counts)} values from {min(levels.counts):g} to "
            f"{max(levels.counts):g}), which are neither one object nor numbers. Save them as 0 (ground) and "
            "255 (object) in a format that keeps values, such as PNG"
        )
    is_dark_object = (low > NEAR * high or channel == "darkest") and levels.border_above(middle) > BORDER
    say(
        f"{folder}: masks of two levels, about {low:.0f} and {high:.0f}, with noise or soft edges around them "
        f"({len(levels.counts)} values, {100 * between / levels.counts.total():.1f} % of the pixels between); "
        f"{'below' if is_dark_object else 'above'} {middle:g} is object."
    )
    return ForegroundRule(channel, middle, is_dark_object)


def _two_levels(counts: Counter[float]) -> tuple[float, float, float]:
    """The two main levels of the values, and their middle.

    Otsu's threshold (1979) splits the values; a level is the median of its part.
    """
    values = np.array(sorted(counts))
    if len(values) == 1:
        return values[0], values[0], values[0]
    numbers = np.array([counts[value] for value in values], np.float64)
    below, sums = np.cumsum(numbers)[:-1], np.cumsum(numbers * values)[:-1]
    total, whole = numbers.sum(), (numbers * values).sum()
    gap = (whole - sums) / (total - below) - sums / below
    end = 1 + int(np.argmax(below * (total - below) * gap**2))
    low, high = (_median(values[part], numbers[part]) for part in (slice(end), slice(end, None)))
    return low, high, (low + high) / 2


def _median(values: Values, numbers: Values) -> float:
    return float(values[np.searchsorted(np.cumsum(numbers), numbers.sum() / 2)])


def _distance(counts: Counter[float]) -> float:
    low, high, _ = _two_levels(counts)
    return high - low


def _surface_between(values: Values, low: float, high: float) -> int:
    """Number of pixels between the two levels with nearly equal neighbors to the right and below."""
    values, distance = values.astype(np.float64), high - low
    here = values[:-1, :-1]
    between = np.minimum(abs(here - low), abs(here - high)) > NEAR * distance
    steps = np.maximum(abs(values[1:, :-1] - here), abs(values[:-1, 1:] - here))
    return int((between & (steps <= FLAT * distance)).sum())


def _say_extremes(paths: Sequence[Path], levels: _Levels, rule: ForegroundRule) -> None:
    """Print notices for masks that are all object or empty, and for objects that are probably the background."""
    sides = [(low > rule.threshold, high <= rule.threshold) for low, high in levels.ranges]
    full, empty = zip(*(pair[::-1] if rule.ground_is_brighter else pair for pair in sides), strict=True)
    folder = paths[0].parent
    for chosen, words in ((full, "all object"), (empty, "without an object")):
        if any(chosen):
            say(f"{folder}: {sum(chosen)} of {len(paths)} masks are {words} ({paths[chosen.index(True)].name}).")
    if not rule.ground_is_brighter and not all(full) and levels.border_above(rule.threshold) > BORDER:
        say(f"{folder}: the objects cover most of the images' borders. Are these masks inverted?")


def _some(values: Sequence[float], most: int = 5) -> str:
    return ", ".join(f"{value:g}" for value in values[:most]) + (", ..." if len(values) > most else "")
