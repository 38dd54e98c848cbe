"""Percentage of correct keypoints (PCK).

Shapes: P points (x, y) in pixels.
Sources: probe3d `evaluate_spair_correspondence.py`, dift `eval_spair.py`, GeoAware-SC `utils/utils_dataset.py`.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dino_dense.arrays import Floats

Hits = npt.NDArray[np.bool_]


def distances(predicted: npt.NDArray, truth: npt.NDArray) -> Floats:
    """Euclidean distance of each pair of points [P, 2]."""
    return np.linalg.norm(np.asarray(predicted, np.float64) - truth, axis=1)


def hits(distance: Floats, limit: float, alpha: float, *, strict: bool) -> Hits:
    """Whether each distance is below alpha times `limit`; without `strict`, equality counts too (DIFT)."""
    return distance < alpha * limit if strict else distance <= alpha * limit


def pck(pairs: Sequence[Hits], categories: Sequence[str]) -> dict[str, dict[str, float]]:
    """PCK in percent by category, and under "all" over all pairs.

    per_image: the mean over pairs of the share of correct points. per_point: the share over all points.

    Args:
        pairs: the correct points of each pair.
        categories: the category of each pair.

    Raises:
        ValueError: a pair has no point.
    """
    empty = [index for index, pair in enumerate(pairs) if not len(pair)]
    if empty:
        raise ValueError(f"pair {empty[0]} ({categories[empty[0]]}) has no common keypoint: leave it out.")
    groups: dict[str, list[Hits]] = {"all": list(pairs)}
    for pair, category in zip(pairs, categories, strict=True):
        groups.setdefault(category, []).append(pair)
    return {name: _both(rows) for name, rows in groups.items()}


def _both(rows: Sequence[Hits]) -> dict[str, float]:
    per_image = 100 * float(np.mean([row.mean() for row in rows]))
    return {"per_image": per_image, "per_point": 100 * float(np.concatenate(rows).mean())}
