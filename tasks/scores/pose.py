"""PCK of propagated joints, as CRW scores JHMDB (videowalk eval/eval_pck.py).

Shapes: T frames, K joints; points are (x, y) pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dino_dense.arrays import Floats

BOX_SHARE = 0.6  # the unit of distances, as a share of the diagonal of the box around the joints
ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Largest distances of a correct joint, in that unit."""


@dataclass(frozen=True)
class PoseDistances:
    """Distances of one video without the first frame, [T - 1, K], in the unit; NaN for joints that do not count."""

    distances: Floats
    lost: npt.NDArray[np.bool_]
    """[T - 1, K], whether the prediction lacks the joint."""


def boxes(truth: Floats, seen: npt.NDArray[np.bool_]) -> Floats:
    """The unit of distance of each frame [T]: 0.6 times the diagonal of the box around the seen true joints.

    Args:
        truth: [T, K, 2].
        seen: [T, K], whether the prediction has the joint (the reference's rule).
    """
    shown = np.where(seen[..., None], truth, np.nan)
    some = seen.any(axis=1)
    spans = np.zeros((len(truth), 2))
    spans[some] = np.nanmax(shown[some], axis=1) - np.nanmin(shown[some], axis=1)
    return np.asarray(BOX_SHARE * np.linalg.norm(spans, axis=1))


def pose_distances(cells: Floats, truth: Floats, size: tuple[int, int], grid: tuple[int, int]) -> PoseDistances:
    """Distances of one video.

    Args:
        cells: predicted joints [T, K, 2] in cells of the grid, (-1, -1) if lost (`read_joints`).
        truth: [T, K, 2] in pixels, from 0 on.
        size: (height, width) of the frames; a cell's pixel is its number times its size, without half a cell.
        grid: (h, w).

    Raises:
        ValueError: predicted and true joints have different shapes.
    """
    if cells.shape != truth.shape:
        raise ValueError(f"predicted joints {cells.shape}, true joints {truth.shape}: expected equal shapes")
    seen: npt.NDArray[np.bool_] = np.asarray((cells >= 0).all(axis=-1))
    pixels = cells / [grid[1], grid[0]] * [size[1], size[0]]
    unit = boxes(truth, seen)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        distances = np.where(seen, np.linalg.norm(pixels - truth, axis=-1) / unit, np.nan)
    return PoseDistances(distances[1:], ~seen[1:])


def met_joints(
    video: PoseDistances, alphas: Sequence[float] = ALPHAS, *, strict: bool = False
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For each joint of a video, the number of correct frames by alpha [A, K], and of scored frames [K].

    Args:
        strict: count a lost joint as wrong. The published rule ignores it, so that losing joints raises the score.
    """
    counted = np.where(video.lost, np.inf if strict else np.nan, video.distances)
    met = np.stack([(counted <= alpha).sum(axis=0) for alpha in alphas])
    return met, (~np.isnan(counted)).sum(axis=0)


def pck(videos: Sequence[PoseDistances], alphas: Sequence[float] = ALPHAS, *, strict: bool = False) -> Floats:
    """Share of correct joints [len(alphas), K + 1], percent; the last column is the mean over the joints.

    Args:
        strict: see `met_joints`.
    """
    met, counted = zip(*(met_joints(video, alphas, strict=strict) for video in videos), strict=True)
    with np.errstate(invalid="ignore"):
        shares = 100 * np.sum(met, axis=0) / np.sum(counted, axis=0)
    return np.concatenate([shares, np.nanmean(shares, axis=1, keepdims=True)], axis=1)
