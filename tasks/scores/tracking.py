"""Point tracking: the queries, and TAP-Vid's scores (tapnet `tapvid/evaluation_datasets.py`).

Shapes: N tracks, T frames, Q queries; positions (x, y) in pixels of the scored frames, 256 x 256 as published.
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from dino_dense.arrays import Floats

Bools = npt.NDArray[np.bool_]
QueryMode = Literal["first", "strided"]
THRESHOLDS = (1, 2, 4, 8, 16)  # pixels
STRIDE = 5  # frames between queries of a track in the strided mode


class Queries(NamedTuple):
    """Start points, and the whole true track of each query."""

    points: Floats
    """[Q, 3]: frame, y, x."""
    targets: Floats
    """[Q, T, 2]: x, y."""
    occluded: Bools
    """[Q, T]"""
    tracks: npt.NDArray[np.int64]
    """[Q], the track of each query."""


def query_tracks(points: Floats, occluded: Bools, mode: QueryMode, stride: int = STRIDE) -> Queries:
    """First: each track at its first visible frame. Strided: every visible track at every `stride`-th frame.

    Tracks that are never visible are dropped.

    Args:
        points: [N, T, 2], x and y in pixels.
        occluded: [N, T].

    Raises:
        ValueError: the shapes do not fit, or no track is ever visible.
    """
    if points.shape != (*occluded.shape, 2):
        raise ValueError(f"points {points.shape} and occlusion {occluded.shape}: expected [N, T, 2] and [N, T].")
    if occluded.all():
        raise ValueError(f"none of {len(occluded)} tracks is visible in any frame: nothing can be queried.")
    if mode == "first":
        tracks = np.flatnonzero(~occluded.all(axis=1))
        frames = (~occluded[tracks]).argmax(axis=1)
    else:
        pairs = [
            (frame, track)
            for frame in range(0, occluded.shape[1], stride)
            for track in np.flatnonzero(~occluded[:, frame])
        ]
        frames, tracks = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
    x, y = points[tracks, frames].T
    return Queries(np.stack([frames, y, x], axis=1).astype(np.float64), points[tracks], occluded[tracks], tracks)


def scored_frames(query_points: Floats, frames: int, mode: QueryMode) -> Bools:
    """Scored frames of each query [Q, T]: the frames after the query (first), or all except the query's (strided)."""
    index = np.arange(frames)[None]
    start = query_points[:, :1].round().astype(np.int64)
    return index > start if mode == "first" else index != start


def tracking_scores(
    targets: Floats,
    occluded: Bools,
    predicted: Floats,
    predicted_occluded: Bools,
    scored: Bools,
    *,
    by_track: bool = False,
) -> dict[str, npt.NDArray[np.float64]]:
    """Occlusion accuracy, share of points within each threshold, and Jaccard, 0 to 1.

    Args:
        targets, predicted: [Q, T, 2], pixels.
        occluded, predicted_occluded: [Q, T].
        scored: [Q, T] of `scored_frames`.
        by_track: a value for each query [Q] instead of one for the video [].

    Returns:
        occlusion_accuracy, pts_within_D and jaccard_D for each D of `THRESHOLDS`, average_pts_within_thresh,
        average_jaccard.
    """
    axis = 1 if by_track else None

    def total(mask: Bools) -> Floats:
        return np.asarray((mask & scored).sum(axis=axis), np.float64)

    visible, shown = ~occluded, ~predicted_occluded
    scores = {"occlusion_accuracy": total(occluded == predicted_occluded) / total(np.ones_like(scored))}
    squared = ((predicted - targets) ** 2).sum(-1)
    for limit in THRESHOLDS:
        near = squared < limit**2
        scores[f"pts_within_{limit}"] = total(near & visible) / total(visible)
        false_positives = total(shown & ~(near & visible))
        scores[f"jaccard_{limit}"] = total(near & visible & shown) / (total(visible) + false_positives)
    for name, mean in (("pts_within", "average_pts_within_thresh"), ("jaccard", "average_jaccard")):
        scores[mean] = np.mean([scores[f"{name}_{limit}"] for limit in THRESHOLDS], axis=0)
    return scores
