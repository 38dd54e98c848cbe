"""Match predicted clusters to classes: by Hungarian matching, or each cluster to its most frequent class.

Shapes: K classes, P clusters; a count matrix [K, P] has a row for each true class, a column for each cluster.
Sources: NeCo and Leopart `experiments/utils.py` (PredsmIoU), open-hummingbird-eval `utils/eval_metrics.py`.
"""

import numpy as np
import numpy.typing as npt

from dino_dense.arrays import Floats
from tasks.scores.segmentation import Counts

Mapping = npt.NDArray[np.int64]
"""[P], the class of each cluster; `NO_PIXEL` for a cluster without a pixel."""
NO_PIXEL = -1


def count_clusters(clusters: npt.NDArray, labels: npt.NDArray, classes: int, count: int, ignored: int) -> Counts:
    """Pixel counts by true class and cluster, int64 [classes, count], without pixels with the label `ignored`.

    Args:
        clusters: ids 0 to count - 1, any shape.
        labels: class ids 0 to classes - 1 (and `ignored`), the same shape.

    Raises:
        ValueError: the shapes differ, or an id is out of range.
    """
    if clusters.shape != labels.shape:
        raise ValueError(f"clusters {clusters.shape} and labels {labels.shape} must have one shape.")
    counted = labels != ignored
    rows, columns = labels[counted].astype(np.int64), clusters[counted].astype(np.int64)
    for name, ids, limit in (("label", rows, classes), ("cluster", columns, count)):
        if ids.size and (ids.min() < 0 or ids.max() >= limit):
            raise ValueError(f"{name} ids run from {ids.min()} to {ids.max()}, expected 0 to {limit - 1}.")
    return np.bincount(rows * count + columns, minlength=classes * count).reshape(classes, count)


def iou_scores(matrix: Counts) -> Floats:
    """IoU of every class with every cluster [K, P], 0 to 1; 0 if both are empty."""
    union = matrix.sum(1, keepdims=True) + matrix.sum(0, keepdims=True) - matrix
    return np.divide(matrix, union, out=np.zeros(matrix.shape), where=union > 0)


def precision_scores(matrix: Counts) -> Floats:
    """Share of each class in each cluster's pixels [K, P], 0 to 1; 0 for an empty cluster."""
    size = np.broadcast_to(matrix.sum(0, keepdims=True), matrix.shape)
    return np.divide(matrix, size, out=np.zeros(matrix.shape), where=size > 0)


def match_hungarian(matrix: Counts) -> Mapping:
    """One-to-one matching with the largest sum of IoUs; clusters without a class get class 0."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(iou_scores(matrix), maximize=True)
    mapping = np.zeros(matrix.shape[1], np.int64)
    mapping[columns] = rows
    return _without_empty(mapping, matrix)


def match_by_precision(matrix: Counts) -> Mapping:
    """Match each cluster to its most frequent class, the first of ties (several clusters may share a class)."""
    return _without_empty(precision_scores(matrix).argmax(0), matrix)


def merge_clusters(matrix: Counts, mapping: Mapping) -> Counts:
    """Counts by true class and matched class, int64 [K, K]."""
    merged = np.zeros((len(matrix), len(matrix)), np.int64)
    for cluster, label in enumerate(mapping):
        if label != NO_PIXEL:
            merged[:, label] += matrix[:, cluster]
    return merged


def iou_of_all_classes(matrix: Counts) -> Floats:
    """IoU of each class [K], 0 to 1; 0 for a class that is neither true nor predicted (NeCo, Hummingbird)."""
    hit = np.diag(matrix).astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - hit
    return np.divide(hit, union, out=np.zeros(len(hit)), where=union > 0)


def _without_empty(mapping: Mapping, matrix: Counts) -> Mapping:
    return np.where(matrix.sum(0) > 0, mapping, NO_PIXEL)
