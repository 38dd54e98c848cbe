"""Whole matches by published rules: the image as a square, the query's feature, the match, and what a hit is.

Shapes: P points (x, y) in pixels of the image as stored, D features, g x g patch grid.
Sources: probe3d `evaluate_spair_correspondence.py` and `datasets/spair.py`, dift `eval_spair.py`, GeoAware-SC
`pck_train.py` and `utils/utils_dataset.py`. Images are resized by Pillow: bicubic in the first two, Lanczos in the
last.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dino_dense.arrays import Floats, Pixels
from dino_dense.matching.points import (
    best_cells,
    best_pixels,
    features_at_pixels,
    pixel_features,
    sampled_at_corners,
    soft_cells,
)
from dino_dense.matching.protocol import Rules

Size = tuple[int, int]
Points = Sequence[Sequence[float]] | Floats


class Matches(NamedTuple):
    """Where each point was found, and where it should be."""

    points: Floats
    """[P, 2]: x, y in pixels of the target as stored."""
    predicted: Floats
    """[P, 2], as the protocol compares them."""
    truth: Floats | None
    """[P, 2], in the same unit; None where none was given."""
    limit: float
    """The length that distances are compared with, in the same unit."""


def as_square(rgb: Pixels, side: int, rules: Rules) -> Pixels:
    """RGB [H, W, 3] as the square network input [side, side, 3] of a protocol."""
    height, width = rgb.shape[:2]
    longest = max(height, width)
    if rules == "dift":
        return _resized(rgb, (side, side), Image.Resampling.BICUBIC)
    if rules == "probe3d":
        padded = np.pad(rgb, ((0, longest - height), (0, longest - width), (0, 0)), constant_values=255)
        return _resized(padded, (side, side), Image.Resampling.BICUBIC)
    small = _resized(rgb, (_scaled(height, longest, side), _scaled(width, longest, side)), Image.Resampling.LANCZOS)
    canvas = np.zeros((side, side, 3), np.uint8)
    top, left = ((side - length) // 2 for length in small.shape[:2])
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def match(
    rules: Rules,
    features: tuple[Tensor, Tensor],
    sizes: tuple[Size, Size],
    points: Floats,
    truth: Floats | None,
    limit: float,
    *,
    patch: int,
    soft: bool = False,
) -> Matches:
    """Find points of a source image in a target image.

    Args:
        features: maps [D, g, g] of both images as squares (`as_square`).
        sizes: (height, width) of both, pixels.
        points: [P, 2] of the source.
        truth: [P, 2] of the target, or None.
        limit: pixels of the target.
        patch: pixels a cell of the map spans.
        soft: see `MatchProtocol`.

    Raises:
        ValueError: a point lies outside its image.
    """
    side = features[0].shape[-1] * patch
    if rules == "dift":
        return _dift(features, sizes, points, truth, limit)
    if rules == "probe3d":
        return _probe3d(features, sizes, points, truth, limit, side)
    return _geoaware(features, sizes, points, truth, limit, side, patch, soft)


def _probe3d(
    features: tuple[Tensor, Tensor],
    sizes: tuple[Size, Size],
    points: Floats,
    truth: Floats | None,
    limit: float,
    side: int,
) -> Matches:
    longest = max(sizes[1])
    starts = torch.from_numpy(scaled_to_square(points, sizes[0], side))
    cells = best_cells(sampled_at_corners(features[0], starts, side), features[1])
    shares = cells.cpu().numpy() / features[1].shape[-1]  # of the square's side; no half cell is added
    ends = None if truth is None else scaled_to_square(truth, sizes[1], side) / side
    return Matches(shares * longest, shares, ends, limit / longest)


def _dift(
    features: tuple[Tensor, Tensor], sizes: tuple[Size, Size], points: Floats, truth: Floats | None, limit: float
) -> Matches:
    height, width = sizes[0]
    whole = torch.from_numpy(np.minimum(points, [width - 1, height - 1])).long()  # a point on the edge of the image
    queries = features_at_pixels(features[0], whole, sizes[0])
    pixels = best_pixels(queries, features[1], sizes[1]).cpu().numpy().astype(np.float64)
    return Matches(pixels, pixels, truth, limit)


def _geoaware(
    features: tuple[Tensor, Tensor],
    sizes: tuple[Size, Size],
    points: Floats,
    truth: Floats | None,
    limit: float,
    side: int,
    patch: int,
    soft: bool,
) -> Matches:
    last = features[0].shape[-1] - 1
    cells = torch.from_numpy(np.minimum(centered_in_square(points, sizes[0], side) / patch, last)).long()
    queries = pixel_features(features[0], cells)
    predicted = (soft_cells if soft else best_cells)(queries, features[1]).cpu().numpy() * patch + patch // 2
    ends = None if truth is None else centered_in_square(truth, sizes[1], side)
    scale = side / max(sizes[1])
    return Matches((predicted - _margins(sizes[1], side)) / scale, predicted, ends, limit * scale)


def scaled_to_square(points: Points, size: Size, side: int) -> npt.NDArray[np.int64]:
    """Points of an image of `size` (H, W), padded right and below to a square of `side` pixels (Probe3D).

    Coordinates are cut to whole pixels, as in the reference.
    """
    return (np.asarray(points, np.float64) * side / max(size)).astype(np.int64)


def centered_in_square(points: Points, size: Size, side: int) -> Floats:
    """Points of an image of `size` (H, W), scaled to the long side `side` and centered in a square (GeoAware-SC)."""
    return np.asarray(np.asarray(points, np.float64) * (side / max(size)) + _margins(size, side))


def _margins(size: Size, side: int) -> Floats:
    """Pixels on the left and above an image that is centered in the square."""
    return np.array([int((side - _scaled(length, max(size), side)) / 2) for length in size[::-1]], np.float64)


def _scaled(length: int, longest: int, side: int) -> int:
    return round(side * length / longest)


def _resized(rgb: Pixels, size: Size, resampling: Image.Resampling) -> Pixels:
    return np.asarray(Image.fromarray(rgb).resize((size[1], size[0]), resampling), np.uint8)
