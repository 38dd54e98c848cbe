"""J and F of video object segmentation: region similarity and contour accuracy.

Perazzi et al. 2016 (DAVIS), as in the official scorer (davis2017/metrics.py, evaluation.py): the first and last frame
are not scored, objects are averaged with equal weight (not videos), J&F = (J + F) / 2.

Eight masks are packed into an image of bytes, a bit for each mask: four predicted masks in the low half, the four true
masks in the high half. Boundaries and dilations are bitwise operations of the image with its shifted copies.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from data.davis import VideoSequence, read_prediction
from dino_dense.arrays import Mask
from dino_dense.threads import processors

Ids = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.float64]
FrameScores = tuple[Scores, Scores]  # J and F, [objects] each

BOUNDARY_TOLERANCE = 0.008  # of the image diagonal: davis2017/metrics.py, f_measure(bound_th)
RECALL_THRESHOLD = 0.5  # davis2017/utils.py, db_statistics
DECAY_BINS = 4  # davis2017/utils.py, db_statistics
HALF = 4  # bits of a byte: predicted masks in the low half, true masks in the high half


class Statistics(NamedTuple):
    """Mean, recall and decay over the frames of one object."""

    mean: float
    recall: float
    decay: float


def region_similarity(pred: Mask, gt: Mask) -> float:
    """J = |pred and gt| / |pred or gt| of two masks [H, W]; 1 if both are empty."""
    union = np.count_nonzero(pred | gt)
    return np.count_nonzero(pred & gt) / union if union else 1.0


def contour_accuracy(pred: Mask, gt: Mask, bound: float = BOUNDARY_TOLERANCE) -> float:
    """F of the boundaries of two masks [H, W]: a boundary pixel matches if the other boundary is within `bound`.

    `bound` below 1 is the tolerance as a share of the image diagonal (rounded up to pixels), else in
    pixels. Two empty masks score 1, one empty mask 0.
    """
    return float(score_frame(pred.astype(np.uint8), gt.astype(np.uint8), 1, bound)[1][0])


def score_frame(pred_ids: Ids, gt_ids: Ids, num_objects: int, bound: float = BOUNDARY_TOLERANCE) -> FrameScores:
    """J and F [num_objects] of each object of one frame.

    Args:
        pred_ids, gt_ids: predicted and true ids [H, W], 0 background; ids above `num_objects` are ignored.
        bound: see `contour_accuracy`.

    Raises:
        ValueError: the two have different sizes.
    """
    if pred_ids.shape != gt_ids.shape:
        raise ValueError(f"predicted ids {pred_ids.shape}, true ids {gt_ids.shape}: expected one [H, W] for both")
    radius = int(bound if bound >= 1 else np.ceil(bound * np.linalg.norm(gt_ids.shape)))
    scores = [
        _score_objects(pred_ids, gt_ids, range(first, min(first + HALF, num_objects + 1)), radius)
        for first in range(1, num_objects + 1, HALF)
    ]
    if not scores:
        return np.empty(0), np.empty(0)
    similarity, accuracy = zip(*scores, strict=True)
    return np.concatenate(similarity), np.concatenate(accuracy)


def score_folder(
    folder: str | Path, sequences: Sequence[VideoSequence], *, workers: int | None = None
) -> Iterator[pd.DataFrame]:
    """Score the masks `folder/<sequence>/<frame>.png`: the table of `score_sequence` of each sequence, in order.

    Every mask is read once, and memory holds one pair of frames for each worker. Workers are threads: decoding and
    pixel operations release Python's lock.

    Args:
        workers: number of threads; default: the processors that this process may use.

    Raises:
        DataError: a mask is missing or cannot be scored (`read_prediction`, `VideoSequence.read_mask`).
        ValueError: fewer than 3 frames.
    """
    with ThreadPoolExecutor(workers or processors()) as pool:
        for sequence in sequences:
            num_objects = sequence.num_objects
            _check_length(sequence.name, len(sequence))

            def score(index: int, sequence: VideoSequence = sequence, num_objects: int = num_objects) -> FrameScores:
                predicted, true = read_prediction(folder, sequence, index), sequence.read_mask(index)
                return score_frame(predicted, true, num_objects)

            scored = range(1, len(sequence) - 1)
            names = [sequence.frames[index].stem for index in scored]
            yield tabulate(list(pool.map(score, scored)), sequence.name, names)


def boundary(mask: Mask) -> Mask:
    """Boundary pixels of a mask [H, W]: pixels that differ from the pixel to the right, below, or diagonally.

    The boundary is on the pixels above and left of the change. Pixels outside the image equal the nearest inside
    (`_seg2bmap` of davis2017/metrics.py, after Martin, Fowlkes and Malik 2003).
    """
    return _boundaries(mask.astype(np.uint8)).astype(bool)


def score_sequence(
    pred_ids: npt.NDArray[np.uint8],
    gt_ids: npt.NDArray[np.uint8],
    num_objects: int,
    *,
    sequence: str = "",
    frames: Sequence[str] | None = None,
) -> pd.DataFrame:
    """J and F of each object and frame, without the first and last frame.

    Args:
        pred_ids: predicted ids [T, H, W], 0 background. Missing objects are scored as empty masks.
        gt_ids: true ids [T, H, W], with void (255) converted to 0; ids above `num_objects` are ignored.
        num_objects: number of objects in the first ground-truth mask.
        sequence: name for the table.
        frames: names of the T frames for the table; their indices by default.

    Returns:
        A row for each object and frame, with the columns sequence, object, frame, J, F.

    Raises:
        ValueError: sizes differ, fewer than 3 frames, or a predicted id above `num_objects`.
    """
    names = list(frames) if frames is not None else list(range(len(gt_ids)))
    if pred_ids.shape != gt_ids.shape or len(names) != len(gt_ids):
        raise ValueError(
            f"{sequence}: predicted masks {pred_ids.shape}, true masks {gt_ids.shape}, {len(names)} names: "
            "expected one [T, H, W] for all"
        )
    _check_length(sequence, len(gt_ids))
    scores = []  # of each frame [2, objects]
    for index in range(1, len(gt_ids) - 1):
        highest = pred_ids[index].max()
        if highest > num_objects:
            raise ValueError(
                f"{sequence} frame {names[index]}: predicted id {highest}, but the first true mask has "
                f"{num_objects} object(s)"
            )
        scores.append(score_frame(pred_ids[index], gt_ids[index], num_objects))
    return tabulate(scores, sequence, names[1:-1])


def tabulate(scores: Sequence[FrameScores], sequence: str, frames: Sequence[str | int]) -> pd.DataFrame:
    """The results of `score_frame` for each frame of a sequence, as the table of `score_sequence`."""
    by_object = np.array(scores).transpose(2, 0, 1)  # [objects, frames, J and F]
    objects = np.arange(1, len(by_object) + 1)
    return pd.DataFrame(
        {
            "sequence": sequence,
            "object": np.repeat(objects, len(frames)),
            "frame": list(frames) * len(objects),
            "J": by_object[..., 0].ravel(),
            "F": by_object[..., 1].ravel(),
        }
    )


def statistics(values: Sequence[float] | npt.NDArray[np.float64]) -> Statistics:
    """Mean, recall (share above 0.5) and decay (first quarter minus last) of one object's frames in order.

    The four bins of the decay share their end frames, as in db_statistics (davis2017/utils.py). The reference stores
    the bin limits as uint8, which wrap above 256 frames. Here they do not wrap, so the decay of longer videos differs.
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


def summarize(per_frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two official tables from the rows of `score_sequence` (of one or many sequences together).

    Returns:
        The global table, with one row: J&F-Mean, J-Mean, J-Recall, J-Decay, F-Mean, F-Recall, F-Decay, each a plain
        mean over objects. The per-sequence table, with a row for each object: Sequence (`name_1`), J-Mean, F-Mean.
    """
    if per_frame.empty:
        raise ValueError("no scored frame: nothing to summarize")
    sequences, objects = [], []
    for (sequence, identity), rows in per_frame.groupby(["sequence", "object"], sort=False):
        region, contour = statistics(rows["J"].to_numpy()), statistics(rows["F"].to_numpy())
        sequences.append((f"{sequence}_{identity}", region.mean, contour.mean))
        objects.append((*region, *contour))
    columns = [f"{metric}-{name}" for metric in ("J", "F") for name in ("Mean", "Recall", "Decay")]
    overall = pd.DataFrame(objects, columns=columns).mean().to_frame().T
    overall.insert(0, "J&F-Mean", (overall["J-Mean"] + overall["F-Mean"]) / 2)
    return overall, pd.DataFrame(sequences, columns=["Sequence", "J-Mean", "F-Mean"])


def _check_length(sequence: str, frames: int) -> None:
    if frames < 3:
        raise ValueError(f"{sequence}: {frames} frame(s); the first and the last are not scored: 3 are needed")


def _score_objects(pred_ids: Ids, gt_ids: Ids, objects: range, radius: int) -> FrameScores:
    """J and F of at most HALF objects; the first object is the lowest bit."""
    region = _joint_region(pred_ids, gt_ids)
    # All boundaries lie in the region, so dilation and comparison are restricted to it.
    pred, gt = (np.ascontiguousarray(ids[region]) for ids in (pred_ids, gt_ids))
    masks = np.zeros(gt.shape, np.uint8)
    for bit, identity in enumerate(objects):
        masks |= (pred == identity).view(np.uint8) * np.uint8(1 << bit)
        masks |= (gt == identity).view(np.uint8) * np.uint8(1 << bit + HALF)
    boundaries = _boundaries(masks)
    matched = boundaries & _other_half(_dilate(boundaries, radius))
    other = _other_half(masks)
    both, either = masks & other, masks | other
    similarity, accuracy = [], []
    for bit in range(len(objects)):
        union = _count(either, bit)
        similarity.append(_count(both, bit) / union if union else 1.0)
        hits, lengths = ([_count(pixels, of) for of in (bit, bit + HALF)] for pixels in (matched, boundaries))
        accuracy.append(_f_measure(hits, lengths))
    return np.array(similarity), np.array(accuracy)


def _other_half(masks: Ids) -> Ids:
    """Swap the two halves of every byte; NumPy multiplies and divides bytes ten times faster than it shifts them."""
    size = np.uint8(1 << HALF)
    return masks * size | masks // size


def _count(masks: npt.NDArray[Any], bit: int) -> int:
    return cv2.countNonZero(masks & np.uint8(1 << bit))


def _f_measure(hits: Sequence[int], lengths: Sequence[int]) -> float:
    """F from the matched pixels and the lengths of the predicted and the true boundary."""
    if not all(lengths):
        return float(not any(lengths))
    precision, recall = (near / length for near, length in zip(hits, lengths, strict=True))
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _joint_region(pred_ids: Ids, gt_ids: Ids) -> tuple[slice, slice]:
    """Rows and columns of the foreground plus one pixel, which contain all boundaries."""
    x, y, width, height = cv2.boundingRect(cv2.bitwise_or(pred_ids, gt_ids))
    return slice(max(y - 1, 0), y + height + 1), slice(max(x - 1, 0), x + width + 1)


def _boundaries(masks: Ids) -> Ids:
    """`boundary` of the eight masks in the bits of [H, W], contiguous in memory."""
    right = np.zeros_like(masks)  # differs from the pixel to the right
    np.bitwise_xor(masks.ravel()[:-1], masks.ravel()[1:], out=right.ravel()[:-1])
    right[:, -1] = 0
    boundaries = right.copy()
    # A pixel differs from its diagonal neighbor if exactly one of these differs: right below, or below.
    boundaries[:-1] |= right[1:]
    boundaries[:-1] |= masks[:-1] ^ masks[1:]
    return boundaries


def _dilate(masks: Ids, radius: int) -> Ids:
    """Dilate the eight masks in the bits of [H, W] by a disk of `radius`.

    A disk is a stack of rows. For growing row lengths, a running OR over each image row dilates it horizontally; the
    result is shifted up and down for each row of the disk with this length. Image rows are stored with `radius` zeros
    between them, so that a shift in memory does not cross an edge.
    """
    height, width = masks.shape
    stride, margin = width + radius, radius * (width + radius) + radius
    windows = np.zeros(height * stride + 2 * margin, np.uint8)  # of one pixel
    windows[margin : margin + height * stride].reshape(height, stride)[:, :width] = masks
    dilated, length = np.zeros(height * stride, np.uint8), 1
    for half, rows in _disk_rows(radius):
        while length < 2 * half + 1:
            step = min(2 * half + 1 - length, length)  # a larger step would leave a gap
            windows = windows[:-step] | windows[step:]
            length += step
        for row in rows:
            first = margin + row * stride - half
            dilated |= windows[first : first + height * stride]
    return dilated.reshape(height, stride)[:, :width]


@lru_cache(maxsize=16)
def _disk_rows(radius: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """(half-width, rows with it) of the disk of `radius`, narrow rows first."""
    widths: dict[int, list[int]] = {}
    for row in range(-radius, radius + 1):
        widths.setdefault(math.isqrt(radius**2 - row**2), []).append(row)
    return tuple((half, tuple(widths[half])) for half in sorted(widths))
