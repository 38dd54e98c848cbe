"""Map the values of a user's masks to object ids: one rule for all masks of a clip.

In lossless files, values that cover patches are intended. JPEG noise and soft edges from resizing add values around and
between the intended values. Then the values of even areas are the centers, and each other pixel gets a center that is
close in position and value.

Shapes: H x W pixels, K centers, c channels (1 of levels, 3 of colors).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from data.arrays import Mask, Pixels
from data.mask_files import Raster
from data.masks import PALETTE, VOID_ID

EVEN = 12  # range of values within 3x3 pixels of an even area, noise included
SAME = 20  # in noise, values closer than this to a center belong to it
NEAR = 11  # pixels: side of the square in which a soft pixel searches its center
DARKEST_LEVEL = 32  # smaller values are ids: a picture would be too dark to see
FAR = 64  # levels between background and a thin object without even area
SMALLEST = 9  # pixels, over all masks, of the smallest even area
MOST_VALUES = 64  # flat colors of one set of masks
CLOSE, COVERED = 4, 0.6  # in a mask, at least this share of pixels is this close to a center; in a photograph less
SHARE_OF_OBJECT = 0.05  # smallest share of an object among pixels above 0; less is noise
BORDER = 0.95  # share of the border that the background covers


Values = npt.NDArray[np.int64]


class AmbiguousMaskError(ValueError):
    """Mask values with more than one meaning. The message names them, and how to choose."""


@dataclass(frozen=True)
class Rule:
    """Maps values to ids."""

    centers: Values
    """[K, c] ascending, the intended values."""
    ids: npt.NDArray[np.uint8]
    """[K], the id of each center; 0 is background."""
    soft: bool = False
    """Whether there are other values: noise or soft edges."""
    said: str = ""
    """Description of the rule, for the user."""

    def apply(self, raster: Raster) -> Pixels:
        """Ids uint8 [H, W]."""
        values = raster.values.astype(np.int64).reshape(*raster.values.shape[:2], -1)
        chosen = _nearest_nearby(values, self.centers) if self.soft else _exact(values, self.centers)
        ids: Pixels = self.ids[chosen]
        if raster.transparent is not None:
            ids[raster.transparent] = 0
        return ids


class Counts:
    """The number of pixels of each value."""

    def __init__(self, channels: int) -> None:
        self.values: Values = np.empty((0, channels), np.int64)
        """[N, c], ascending."""
        self.pixels: npt.NDArray[np.int64] = np.empty(0, np.int64)
        """[N]"""

    def add(self, values: Values) -> None:
        """Count the values [n, c]."""
        keys, pixels = np.unique(_key(values), return_counts=True)
        together = np.concatenate([_key(self.values), keys])
        merged, places = np.unique(together, return_inverse=True)
        self.pixels = np.bincount(places, np.concatenate([self.pixels, pixels]), len(merged)).astype(np.int64)
        self.values = _from_key(merged, values.shape[1])

    def of(self, values: Values) -> npt.NDArray[np.int64]:
        """Number of pixels [n] of each value [n, c]; 0 for an unknown value."""
        known, wanted = _key(self.values), _key(values)
        if not len(known):
            return np.zeros(len(wanted), np.int64)
        places = np.searchsorted(known, wanted).clip(max=len(known) - 1)
        return np.where(known[places] == wanted, self.pixels[places], 0)

    def share(self, centers: Values, number: int) -> float:
        """Share of pixels with this center as the nearest."""
        if not len(self.values):
            return 0.0
        nearest, _ = _nearest(self.values, centers)
        return float(self.pixels[nearest == number].sum() / self.pixels.sum())


class Survey:
    """Counts of the values in all masks of a set."""

    def __init__(self, channels: int) -> None:
        self.all, self.border = Counts(channels), Counts(channels)
        self.even, self.loose = Counts(channels), Counts(channels)
        """Counts of pixels in even areas; counts of isolated pixels with both darker and brighter neighbors."""
        self.order: list[tuple[int, ...]] = []
        """Values of even areas in order of first occurrence, row by row."""
        self.lossy = self.transparent = False

    def add(self, raster: Raster) -> None:
        """Count one mask."""
        values = raster.values.astype(np.int64).reshape(*raster.values.shape[:2], -1)
        seen = np.ones(values.shape[:2], bool) if raster.transparent is None else ~raster.transparent
        edge = np.ones_like(seen)
        edge[1:-1, 1:-1] = False
        even = _is_even(values)
        self.all.add(values[seen])
        self.even.add(values[seen & even])
        self.loose.add(values[seen & (_same_neighbors(values) < 3) & _is_between(values)])
        self.border.add(values[seen & edge])
        known = set(self.order)
        self.order += [value for value in _in_order(values[seen & even]) if value not in known]
        self.lossy |= raster.lossy
        self.transparent |= raster.transparent is not None


def decide(kind: str, rasters: Iterable[Raster]) -> Rule:
    """The rule for a set of masks of one kind (`Raster.kind`).

    Raises:
        AmbiguousMaskError: the values have more than one possible meaning, or none.
    """
    survey = Survey(3 if kind == "colors" else 1)
    for raster in rasters:
        survey.add(raster)
    if not len(survey.all.values):
        raise AmbiguousMaskError("all of it is transparent: no object")
    if kind == "ids":
        return _ids(survey.all.values)
    soft = _is_soft(survey)
    centers = _centers(survey) if soft else survey.all.values
    if survey.transparent:
        return _opaque(centers, survey, soft)
    _check_flat(survey, centers, soft)
    return _levels(centers, survey, soft) if kind == "levels" else _colors(centers, survey, soft)


# ---- ids, levels, colors


def _ids(values: Values) -> Rule:
    """Numbers that are ids already (palettes, drawn shapes). 255 is void unless it is the only object."""
    numbers = values[:, 0]
    if set(numbers.tolist()) <= {0, VOID_ID}:
        return Rule(values, (numbers > 0).astype(np.uint8))
    said = f"{VOID_ID} is void, and counts as ground" if VOID_ID in numbers else ""
    return Rule(values, np.where(numbers == VOID_ID, 0, numbers).astype(np.uint8), said=said)


def _levels(centers: Values, survey: Survey, soft: bool) -> Rule:
    """Numbers or brightness. The lowest is background; others are ids, or are numbered if they cannot be ids."""
    levels = centers[:, 0]
    ground = _ground_level(centers, survey, soft)
    objects = levels[levels != ground]
    _check_not_inverted(centers, survey)
    said = _noise_text(levels) if soft else ""
    if len(objects) > 1 and objects.tolist() == [*range(1, len(objects)), VOID_ID]:
        ids = np.where(levels == VOID_ID, 0, levels).astype(np.uint8)
        return Rule(centers, ids, soft, _joined(f"{VOID_ID} is void, and counts as ground", said))
    if not soft and objects.max(initial=0) < VOID_ID:
        return Rule(centers, np.where(levels == ground, 0, levels).astype(np.uint8))
    texts = [] if objects.tolist() == [VOID_ID] else [f"{level} is {n}" for n, level in enumerate(objects, 1)]
    return _numbered(centers, objects[:, None], soft, _joined(", ".join(texts), said))


def _colors(centers: Values, survey: Survey, soft: bool) -> Rule:
    """Colors: ids of DAVIS' palette if all are in it, else numbered by first occurrence."""
    ground = _ground_color(centers, survey)
    objects = centers if ground is None else np.delete(centers, ground, axis=0)
    said = "noise or soft edges go to the nearest of these" if soft else ""
    known, distance = _nearest(objects, PALETTE[:VOID_ID].astype(np.int64))
    is_black = ground is not None and centers[ground].max() <= SAME
    if is_black and (distance <= (SAME if soft else 0)).all():
        ids = np.insert(known, ground or 0, 0) if ground is not None else known
        return Rule(centers, ids.astype(np.uint8), soft, _joined("colors of DAVIS' palette", said))
    objects = _as_met(objects, survey)
    texts = [f"{_color_name(color)} is {number}" for number, color in enumerate(objects, 1)]
    texts.insert(0, "no color is ground" if ground is None else f"{_color_name(centers[ground])} is ground")
    return _numbered(centers, objects, soft, _joined(", ".join(texts), said))


def _opaque(centers: Values, survey: Survey, soft: bool) -> Rule:
    """Transparent pixels are background. Each other color is an object; a photograph is one object."""
    if soft or len(centers) > MOST_VALUES:
        return Rule(centers[:1], np.ones(1, np.uint8), True, "what is not transparent is one object")
    if len(centers) > 1 and not centers.any(axis=1).all():
        raise AmbiguousMaskError(
            "some pixels are transparent and others black: ground could be either. Make only the ground transparent, "
            "or save the mask without transparency"
        )
    objects = _as_met(centers, survey)
    texts = [f"{_color_name(color)} is {number}" for number, color in enumerate(objects, 1)]
    shown = ", ".join(texts) if len(texts) > 1 else ""
    return _numbered(centers, objects, soft, _joined("transparent pixels are ground", shown))


def _as_met(objects: Values, survey: Survey) -> Values:
    """The centers by first occurrence, row by row; centers without an even area are last."""
    if not survey.order:
        return objects
    nearest, distance = _nearest(np.array(survey.order), objects)
    met = list(dict.fromkeys(nearest[distance <= SAME].tolist()))
    return objects[met + [number for number in range(len(objects)) if number not in met]]


def _numbered(centers: Values, objects: Values, soft: bool, said: str) -> Rule:
    """Ids 1, 2, ... in the given order; every other center is background."""
    if len(objects) >= VOID_ID:
        raise AmbiguousMaskError(f"{len(objects)} objects; expected at most {VOID_ID - 1}")
    ids_by_key = {key: number for number, key in enumerate(_key(objects).tolist(), 1)}
    ids = np.array([ids_by_key.get(key, 0) for key in _key(centers).tolist()], np.uint8)
    return Rule(centers, ids, soft, said)


def _joined(*texts: str) -> str:
    return "; ".join(text for text in texts if text)


# ---- what is ground, and what cannot be told


def _ground_level(centers: Values, survey: Survey, soft: bool) -> int | None:
    lowest = int(centers[0, 0])
    if lowest == 0 or (soft and lowest <= DARKEST_LEVEL):
        return lowest
    if len(centers) > 1 and survey.border.share(centers, 0) >= BORDER:
        if lowest > DARKEST_LEVEL:
            return lowest
        raise AmbiguousMaskError(
            f"no pixel is 0, and value {lowest} covers the border: it could be ground or an object. "
            f"If it is ground, subtract {lowest} from all values; if it is an object, save the mask as a palette PNG"
        )
    return None


def _check_not_inverted(centers: Values, survey: Survey) -> None:
    """Refuse a bright level all around the picture: it may be a drawn background, or an object."""
    last = len(centers) - 1
    area = survey.all.share(centers, last)
    if centers[last, 0] in range(VOID_ID - SAME, VOID_ID + 1) and survey.border.share(centers, last) >= BORDER:
        if not 0.5 < area < 1:
            return
        raise AmbiguousMaskError(
            f"value {centers[last, 0]} covers {area:.0%} of the picture and its border; darker pixels lie inside. "
            "Which is the object?\n"
            "    # # # #     # bright, . dark\n"
            "    # . . #     the dark part: save the mask inverted, white object on black\n"
            "    # # # #     the bright part: give it the value 1, and the rest 0"
        )


def _ground_color(centers: Values, survey: Survey) -> int | None:
    """Index of the background's center: black, else white or another color that covers the border; None if neither."""
    black = int(np.abs(centers).max(axis=1).argmin())
    white = int(np.abs(centers - VOID_ID).max(axis=1).argmin())
    has_black, has_white = centers[black].max() <= SAME, centers[white].min() >= VOID_ID - SAME
    if has_black and has_white and survey.border.share(centers, white) >= BORDER:
        raise AmbiguousMaskError(
            "white covers the border, and black is there too. Which is ground?\n"
            "    # # # #     # white, . black\n"
            "    # . . #     white: paint it black, and the black object in a color\n"
            "    # # # #     black: paint the white object in a color"
        )
    if has_black:
        return black
    covering = [number for number in range(len(centers)) if survey.border.share(centers, number) >= BORDER]
    return covering[0] if covering and len(centers) > 1 else None


def _check_flat(survey: Survey, centers: Values, soft: bool) -> None:
    """Raise AmbiguousMaskError for a photograph: many values, few close to a center."""
    values, pixels = survey.all.values, survey.all.pixels
    flat = len(centers) <= (MOST_VALUES if soft or centers.shape[1] == 3 else VOID_ID)
    if flat and len(centers):
        _, distance = _nearest(values, centers)
        flat = bool(pixels[distance <= CLOSE].sum() >= COVERED * pixels.sum())
    if not flat or not len(centers):
        kind = "colors" if centers.shape[1] == 3 else "gray levels"
        raise AmbiguousMaskError(
            f"{len(values)} {kind} without flat areas: a photograph or a soft map, and no mask. Expected a few flat "
            "colors on black, two gray levels or more, or ids"
        )


# ---- noise


def _is_soft(survey: Survey) -> bool:
    """Whether there are unintended values: JPEG noise or soft edges."""
    values, pixels = survey.all.values, survey.all.pixels
    if values.max() <= 1:
        return False
    if survey.lossy:
        return True
    if len(values) < 3 or (values.shape[1] == 1 and values.max() <= DARKEST_LEVEL):
        return False
    loose = int((survey.loose.of(values) > pixels / 2).sum())
    return loose >= max(2, len(values) / 4)


def _centers(survey: Survey) -> Values:
    """The values of even areas [K, c], ascending. A value within `SAME` of a more frequent value is merged into it."""
    values, pixels = survey.even.values, survey.even.pixels
    if survey.all.values.max() <= DARKEST_LEVEL:
        return _dark_centers(survey)
    ranked = values[np.argsort(-pixels, kind="stable")]
    centers = ranked[:0]
    while len(ranked) and len(centers) <= MOST_VALUES:
        centers = np.concatenate([centers, ranked[:1]])
        ranked = ranked[np.abs(ranked - ranked[0]).max(axis=1) > SAME]
    if not len(centers):
        return centers
    nearest, _ = _nearest(values, centers)
    centers = centers[np.bincount(nearest, pixels, len(centers)) >= SMALLEST]
    if len(centers) == 1:  # a thin object has no even area
        furthest = survey.all.values[np.abs(survey.all.values - centers[0]).max(axis=1).argmax()]
        if np.abs(furthest - centers[0]).max() > FAR:
            centers = np.concatenate([centers, furthest[None]])
    return _from_key(np.sort(_key(centers)), centers.shape[1])


def _dark_centers(survey: Survey) -> Values:
    """Background and the only object of a JPEG with ids as values, which are as low as noise."""
    values, pixels = survey.all.values, survey.all.pixels
    common = values[pixels >= SHARE_OF_OBJECT * pixels[values.max(axis=1) > 0].sum()]
    if len(common) > 2:
        raise AmbiguousMaskError(
            f"JPEG, with the values {', '.join(map(_color_name, common))}: they could be ids or noise, as JPEG does "
            "not keep values. Save the mask as PNG"
        )
    return common


def _noise_text(levels: npt.NDArray[np.int64]) -> str:
    if len(levels) == 2:
        return f"noise or soft edges around the levels {levels[0]} and {levels[1]}, cut at {levels.sum() / 2:g}"
    return f"noise or soft edges go to the nearest of the levels {', '.join(map(str, levels))}"


# ---- pixels


def _exact(values: Values, centers: Values) -> npt.NDArray[np.intp]:
    """Index [H, W] of each pixel's center, for values that are all centers; centers ascend."""
    return np.searchsorted(_key(centers), _key(values)).clip(max=len(centers) - 1)


def _key(values: Values) -> npt.NDArray[np.int64]:
    """A number for each value [..., c], with the same order."""
    return values[..., 0] if values.shape[-1] == 1 else values @ np.array([65536, 256, 1])


def _from_key(keys: npt.NDArray[np.int64], channels: int) -> Values:
    return keys[:, None] if channels == 1 else np.stack([keys >> 16, keys >> 8 & 255, keys & 255], axis=-1)


def _nearest(values: Values, centers: Values) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For values [..., c]: the index of the nearest center, and the largest difference over channels."""
    best = np.full(values.shape[:-1], np.iinfo(np.int64).max)
    index = np.zeros(values.shape[:-1], np.int64)
    for number, center in enumerate(centers):
        distance = np.abs(values - center).max(axis=-1)
        index[distance < best] = number
        best = np.minimum(best, distance)
    return index, best


def _nearest_nearby(values: Values, centers: Values) -> npt.NDArray[np.int64]:
    """Index [H, W] of the center nearest in value, among centers with an even area nearby (all centers without one).

    An edge between background and a bright object has all levels between: its pixels are not a third object.
    """
    index, distance = _nearest(values, centers)
    if len(centers) < 3:
        return index
    at_center, square = (distance <= SAME) & _is_even(values), np.ones((NEAR, NEAR), np.uint8)
    best = np.full(index.shape, np.iinfo(np.int64).max)
    for number, center in enumerate(centers):
        nearby = cv2.dilate((at_center & (index == number)).astype(np.uint8), square) > 0
        distance = np.where(nearby, np.abs(values - center).max(axis=-1), np.iinfo(np.int64).max)
        index = np.where(distance < best, number, index)
        best = np.minimum(best, distance)
    return index


def _is_even(values: Values) -> Mask:
    """[H, W]: whether the values of 3x3 pixels are close."""
    lowest, highest = _range(values)
    return np.asarray((highest - lowest).max(axis=-1) <= EVEN)


def _is_between(values: Values) -> Mask:
    """[H, W]: whether a pixel has both a darker and a brighter neighbor in some channel, as in a soft edge."""
    lowest, highest = _range(values)
    return np.asarray(((lowest < values) & (values < highest)).any(axis=-1))


def _range(values: Values) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Smallest and largest value [H, W, c] of each 3x3 pixels."""
    square, pixels = np.ones((3, 3), np.uint8), values.astype(np.float32)
    lowest, highest = cv2.erode(pixels, square), cv2.dilate(pixels, square)
    return lowest.reshape(values.shape), highest.reshape(values.shape)


def _same_neighbors(values: Values) -> npt.NDArray[np.int64]:
    """[H, W]: number of a pixel's eight neighbors with its value."""
    key = np.pad(_key(values), 1, constant_values=-1)
    height, width = values.shape[:2]
    shifts = [(y, x) for y in range(3) for x in range(3) if (y, x) != (1, 1)]
    middle = key[1:-1, 1:-1]
    return np.sum([key[y : y + height, x : x + width] == middle for y, x in shifts], axis=0)


def _in_order(values: Values) -> list[tuple[int, ...]]:
    """The distinct values of [n, c] by first occurrence."""
    keys, first = np.unique(_key(values), return_index=True)
    ordered = _from_key(keys[np.argsort(first)], values.shape[1])
    return [tuple(value) for value in ordered.tolist()]


def _color_name(color: npt.NDArray[np.int64]) -> str:
    return "(" + ", ".join(map(str, color.tolist())) + ")" if len(color) > 1 else str(color[0])
