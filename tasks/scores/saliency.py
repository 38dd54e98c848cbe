"""IoU, accuracy, maximal F-beta and the best head's Jaccard of saliency maps.

As in TokenCut (unsupervised_saliency_detection/metric.py), and for attention as in DINO (Fig. 4; the author's code in
github.com/facebookresearch/dino/issues/54). All arrays of an image have the same shape.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dino_dense.arrays import Mask
from tasks.scores.jf import region_similarity

Floats = npt.NDArray[np.floating]

BETA_SQUARED = 0.3  # weighs precision more: metric.py, and the saliency literature since Achanta et al. 2009
THRESHOLDS = np.arange(255) / 255  # metric.py; a prediction is positive above a threshold
PREDICTED = 0.5  # threshold for IoU and accuracy (metric.py)


def iou(prediction: Floats, truth: Mask) -> float:
    """|P and T| / |P or T| at threshold 0.5, in [0, 1]; 1 if both are empty (undefined in the reference)."""
    return region_similarity(prediction > PREDICTED, truth)


def accuracy(prediction: Floats, truth: Mask) -> float:
    """Share of correct pixels at threshold 0.5, in [0, 1].

    Raises:
        ValueError: there are no pixels.
    """
    if not truth.size:
        raise ValueError("no pixel to score: all are void")
    return float(((prediction > PREDICTED) == truth).mean())


def f_curve(prediction: Floats, truth: Mask) -> npt.NDArray[np.float64]:
    """F-beta [255] of one image at each of THRESHOLDS, in [0, 1].

    Precision is 1 for an empty prediction, recall is 1 for an empty truth; F is 0 if both are 0.

    Args:
        prediction: in [0, 1]. truth: the object.
    """
    # A pixel is positive at the first `passed` thresholds.
    passed = np.searchsorted(THRESHOLDS, np.asarray(prediction, np.float64).ravel(), side="left")
    hits, predicted = (_at_least(passed[chosen]) for chosen in (truth.ravel(), slice(None)))
    wanted = np.count_nonzero(truth)
    precision = np.divide(hits, predicted, out=np.ones(len(THRESHOLDS)), where=predicted > 0)
    recall = hits / wanted if wanted else np.ones(len(THRESHOLDS))
    weighted = BETA_SQUARED * precision + recall
    products = (1 + BETA_SQUARED) * precision * recall
    return np.divide(products, weighted, out=np.zeros(len(THRESHOLDS)), where=weighted > 0)


def f_at_best_threshold(curves: Sequence[npt.NDArray[np.float64]]) -> tuple[npt.NDArray[np.float64], float]:
    """F of each image, [N], at the common threshold with the largest mean, and this threshold.

    The mean over images is taken before the maximum (metric.py); the lowest threshold of ties.
    """
    stacked = np.stack(curves)
    best = int(stacked.mean(axis=0).argmax())
    return stacked[:, best], float(THRESHOLDS[best])


def best_jaccard(candidates: Sequence[Mask], objects: Sequence[Mask]) -> float:
    """Mean over the objects of the largest IoU with any candidate, in [0, 1].

    Without objects: 1 if some candidate is empty, else 0.
    """
    if not objects:
        return float(any(not candidate.any() for candidate in candidates))
    best = [max(region_similarity(candidate, wanted) for candidate in candidates) for wanted in objects]
    return sum(best) / len(best)


def _at_least(passed: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Number of pixels above each threshold, [255], from the number of thresholds below each pixel."""
    counts = np.bincount(passed, minlength=len(THRESHOLDS) + 1)
    return counts[::-1].cumsum()[::-1][1:]
