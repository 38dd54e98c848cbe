"""Intersection over union of classes, from one confusion matrix over all pixels."""

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


def confusion(predicted: npt.NDArray, truth: npt.NDArray, classes: int, void: int = 255) -> Counts:
    """Pixels by true class (row) and predicted class (column) [K, K], void pixels left out.

    Raises:
        ValueError: shapes differ, or an id is not below `classes`.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"prediction {predicted.shape} and truth {truth.shape} must have one shape.")
    counted = truth != void
    rows, columns = truth[counted].astype(np.int64), predicted[counted].astype(np.int64)
    if rows.size and max(rows.max(), columns.max()) >= classes:
        raise ValueError(f"class id {max(rows.max(), columns.max())}, expected below {classes} (or {void} for void).")
    return np.bincount(rows * classes + columns, minlength=classes**2).reshape(classes, classes)


def class_iou(matrix: Counts) -> npt.NDArray[np.float64]:
    """IoU in percent of each class [K]; not-a-number for a class that is neither there nor predicted."""
    hit = np.diag(matrix).astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - hit
    return np.divide(100 * hit, union, out=np.full(len(hit), np.nan), where=union > 0)


def pixel_accuracy(matrix: Counts) -> float:
    """Share of pixels in percent whose class is right."""
    return 100 * float(np.diag(matrix).sum() / max(matrix.sum(), 1))
