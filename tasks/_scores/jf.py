"""J and F of video object segmentation: region similarity and contour accuracy.

Perazzi et al. 2016 (DAVIS), as the official scorer computes them (davis2017/metrics.py, evaluation.py): the
first and last frame are left out, objects are averaged with equal weight (not videos), J&F = (J + F) / 2.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from data.davis import VideoSequence, read_predictions

Mask = npt.NDArray[np.bool_]

BOUNDARY_TOLERANCE = 0.008  # of the image diagonal: davis2017/metrics.py, f_measure(bound_th)
RECALL_THRESHOLD = 0.5  # davis2017/utils.py, db_statistics
DECAY_BINS = 4  # davis2017/utils.py, db_statistics


class Statistics(NamedTuple):
    """Mean, recall and decay over the frames of one object."""

    mean: float
    recall: float
    decay: float


def region_similarity(pred: Mask, gt: Mask) -> float:
    """J = |pred and gt| / |pred or gt| of two masks [H, W]; 1 where both are empty."""
    union = np.count_nonzero(pred | gt)
    return np.count_nonzero(pred & gt) / union if union else 1.0


def contour_accuracy(pred: Mask, gt: Mask, bound: float = BOUNDARY_TOLERANCE) -> float:
    """F of the boundaries of two masks [H, W]: a boundary pixel counts if the other boundary is near.

    ``bound`` below 1 is the tolerance as a share of the image diagonal (rounded up to pixels), else in
    pixels. Two empty masks score 1, one empty mask 0.
    """
    radius = int(bound if bound >= 1 else np.ceil(bound * np.linalg.norm(pred.shape)))
    region = _joint_region(pred, gt)
    if region is None:
        return 1.0
    # No boundary lies outside the region, so that all that is dilated, and all that is compared, is inside.
    pred_boundary, gt_boundary = boundary(pred[region]), boundary(gt[region])
    num_pred, num_gt = np.count_nonzero(pred_boundary), np.count_nonzero(gt_boundary)
    if not num_pred or not num_gt:
        return float(num_pred == num_gt)
    precision = np.count_nonzero(pred_boundary & _dilate(gt_boundary, radius)) / num_pred
    recall = np.count_nonzero(gt_boundary & _dilate(pred_boundary, radius)) / num_gt
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(mask: Mask) -> Mask:
    """Boundary pixels of a mask [H, W]: those that differ from the pixel to the right, below, or both.

    The lines lie on the pixels above and left of the change; pixels outside count as their nearest inside
    (``_seg2bmap`` of davis2017/metrics.py, after Martin, Fowlkes and Malik 2003).
    """
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    right, below, diagonal = padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (mask ^ right) | (mask ^ below) | (mask ^ diagonal)


def score_sequence(
    pred_ids: npt.NDArray[np.uint8],
    gt_ids: npt.NDArray[np.uint8],
    num_objects: int,
    *,
    sequence: str = "",
    frames: Sequence[str] | None = None,
) -> pd.DataFrame:
    """J and F of each object and frame, first and last frame left out.

    Args:
        pred_ids: predicted ids [T, H, W], 0 background. Objects that are never predicted score as empty
            masks.
        gt_ids: true ids [T, H, W]; void (255) already turned into 0, ids above ``num_objects`` are ignored.
        num_objects: number of objects in the first ground-truth mask.
        sequence: name for the table.
        frames: names of the T frames for the table; their indices by default.

    Returns:
        A row for each object and frame with the columns sequence, object, frame, J, F, in that order.

    Raises:
        ValueError: sizes differ, fewer than 3 frames, or a predicted id above ``num_objects``.
    """
    names = list(frames) if frames is not None else list(range(len(gt_ids)))
    if pred_ids.shape != gt_ids.shape or len(names) != len(gt_ids):
        raise ValueError(
            f"{sequence}: predicted masks {pred_ids.shape}, true masks {gt_ids.shape}, {len(names)} names: "
            "expected one [T, H, W] for all"
        )
    if len(gt_ids) < 3:
        raise ValueError(f"{sequence}: {len(gt_ids)} frame(s); the first and the last are not scored: 3 are needed")
    scores = {}
    for index in range(1, len(gt_ids) - 1):
        if pred_ids[index].max() > num_objects:
            raise ValueError(
                f"{sequence} frame {names[index]}: predicted id {pred_ids[index].max()}, but the first true mask has "
                f"{num_objects} object(s)"
            )
        scores[index] = score_frame(pred_ids[index], gt_ids[index], num_objects)
    return score_table(sequence, names, scores)


FrameScores = tuple[list[float], list[float]]
"""J and F of each object in one frame."""


def score_frame(pred: npt.NDArray[np.uint8], gt: npt.NDArray[np.uint8], num_objects: int) -> FrameScores:
    """J and F of each object 1..num_objects from ids [H, W]."""
    masks = [(pred == identity, gt == identity) for identity in range(1, num_objects + 1)]
    return [region_similarity(*pair) for pair in masks], [contour_accuracy(*pair) for pair in masks]


def score_table(sequence: str, names: Sequence[str | int], scores: Mapping[int, FrameScores]) -> pd.DataFrame:
    """The rows of `score_sequence` from the scores of frames, by the frames' indices into `names`."""
    rows = [
        (sequence, identity, names[index], *values)
        for index in sorted(scores)
        for identity, values in enumerate(zip(*scores[index], strict=True), start=1)
    ]
    table = pd.DataFrame(rows, columns=["sequence", "object", "frame", "J", "F"])
    return table.sort_values("object", kind="stable", ignore_index=True)


def score_folder(
    folder: str | Path, sequences: Sequence[VideoSequence], *, each: Callable[[str], object] = lambda _: None
) -> list[pd.DataFrame]:
    """`score_sequence` of masks on disk."""
    tables = []
    for sequence in sequences:
        predicted = read_predictions(folder, sequence)
        names = [frame.stem for frame in sequence.frames]
        tables.append(
            score_sequence(predicted, sequence.read_masks(), sequence.num_objects, sequence=sequence.name, frames=names)
        )
        each(sequence.name)
    return tables


def statistics(values: Sequence[float] | npt.NDArray[np.float64]) -> Statistics:
    """Mean, recall (share above 0.5) and decay (first quarter minus last) of one object's frames in order.

    The four bins of the decay share their end frames, as in db_statistics (davis2017/utils.py). There the bin
    limits are stored as uint8 and wrap above 256 frames; here they do not, so the decay of longer videos
    differs.
    """
    scores = np.asarray(values, np.float64)
    if not len(scores):
        raise ValueError("no scored frame: statistics need at least one value")
    # The reference adds 1e-10 so that halves round up.
    limits = np.round(np.linspace(1, len(scores), DECAY_BINS + 1) + 1e-10).astype(int) - 1
    first, last = scores[limits[0] : limits[1] + 1], scores[limits[-2] : limits[-1] + 1]
    return Statistics(
        float(scores.mean()), float((scores > RECALL_THRESHOLD).mean()), float(first.mean() - last.mean())
    )


def summarise(per_frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two official tables from the rows of ``score_sequence`` (of one or many sequences together).

    Returns:
        The global table, one row: J&F-Mean, J-Mean, J-Recall, J-Decay, F-Mean, F-Recall, F-Decay, each a
        plain mean over objects. The per-sequence table, one row an object: Sequence (``name_1``), J-Mean,
        F-Mean.
    """
    if per_frame.empty:
        raise ValueError("no scored frame: nothing to summarise")
    sequences, objects = [], []
    for (sequence, identity), rows in per_frame.groupby(["sequence", "object"], sort=False):
        region, contour = statistics(rows["J"].to_numpy()), statistics(rows["F"].to_numpy())
        sequences.append((f"{sequence}_{identity}", region.mean, contour.mean))
        objects.append((*region, *contour))
    columns = [f"{metric}-{name}" for metric in ("J", "F") for name in ("Mean", "Recall", "Decay")]
    overall = pd.DataFrame(objects, columns=columns).mean().to_frame().T
    overall.insert(0, "J&F-Mean", (overall["J-Mean"] + overall["F-Mean"]) / 2)
    return overall, pd.DataFrame(sequences, columns=["Sequence", "J-Mean", "F-Mean"])


def _joint_region(pred: Mask, gt: Mask) -> tuple[slice, slice] | None:
    """Rows and columns of both masks and a pixel around, which hold their boundaries; None if empty."""
    joint = pred | gt
    sides = []
    for axis in (1, 0):
        found = np.flatnonzero(joint.any(axis=axis))
        if not len(found):
            return None
        sides.append(slice(max(int(found[0]) - 1, 0), int(found[-1]) + 2))
    return sides[0], sides[1]


def _dilate(mask: Mask, radius: int) -> Mask:
    return cv2.dilate(mask.astype(np.uint8), _disk(radius)).astype(bool)


@lru_cache(maxsize=16)
def _disk(radius: int) -> npt.NDArray[np.uint8]:
    """The pixels at most ``radius`` from the centre, [2 * radius + 1] squared."""
    offsets = np.arange(-radius, radius + 1)
    return (offsets[:, None] ** 2 + offsets[None, :] ** 2 <= radius**2).astype(np.uint8)
