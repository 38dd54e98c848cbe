"""Intersection over union of classes, from one confusion matrix over all pixels."""

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


def confusion(predicted: npt.NDArray, truth: npt.NDArray, classes: int, void: int = 255) -> Counts:
    """Pixel counts by true class (row) and predicted class (column) [K, K], without void pixels.

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
    """IoU in percent of each class [K]; NaN for a class that is neither true nor predicted."""
    hit = np.diag(matrix).astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - hit
    return np.divide(100 * hit, union, out=np.full(len(hit), np.nan), where=union > 0)


def mean_iou(matrix: Counts, absent: str = "left out") -> float:
    """Mean IoU in percent; classes that are neither true nor predicted are left out, or count as "zero"."""
    iou = class_iou(matrix)
    return float(np.nan_to_num(iou).mean() if absent == "zero" else np.nanmean(iou))


def pixel_accuracy(matrix: Counts) -> float:
    """Share of correct pixels, percent."""
    return 100 * float(np.diag(matrix).sum() / max(matrix.sum(), 1))


def without_zero(labels: npt.NDArray[np.uint8], void: int = 255) -> npt.NDArray[np.uint8]:
    """Class ids from 0 instead of 1; 0 becomes void (ADE20K's `reduce_zero_label`)."""
    return np.where(labels == void, void, labels - 1).astype(np.uint8)  # uint8: 0 - 1 is 255


def areas(predicted: npt.NDArray, truth: npt.NDArray, classes: int, void: int = 255) -> Counts:
    """Pixels of each class in the intersection, the union, the prediction and the truth [4, K], without void.

    Predicted ids of `classes` or more belong to no class. Source: dinov3 `eval/segmentation/metrics.py`.
    """
    counted = truth != void
    ours, theirs = predicted[counted], truth[counted]

    def sizes(ids: npt.NDArray) -> Counts:
        return np.bincount(ids[ids < classes].astype(np.int64), minlength=classes)

    intersect, of_prediction, of_truth = sizes(ours[ours == theirs]), sizes(ours), sizes(theirs)
    return np.stack([intersect, of_prediction + of_truth - intersect, of_prediction, of_truth])


def area_scores(total: Counts) -> dict[str, npt.NDArray[np.float64]]:
    """Scores of each class from summed areas [4, K], 0 to 1; NaN if the denominator is 0.

    iou (and mIoU, the same), acc, dice, fscore, precision, recall for each class [K]; aAcc over all pixels [1].
    """
    intersect, union, of_prediction, of_truth = total.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = intersect / of_prediction, intersect / of_truth
        return {
            "iou": intersect / union,
            "mIoU": intersect / union,
            "acc": recall,
            "aAcc": np.array([intersect.sum() / of_truth.sum()]),
            "dice": 2 * intersect / (of_prediction + of_truth),
            "fscore": 2 * precision * recall / (precision + recall),
            "precision": precision,
            "recall": recall,
        }


def class_accuracy(matrix: Counts) -> npt.NDArray[np.float64]:
    """Share of correct pixels of each true class [K], percent; NaN for a missing class."""
    hit, of_truth = np.diag(matrix).astype(np.float64), matrix.sum(1)
    return np.divide(100 * hit, of_truth, out=np.full(len(hit), np.nan), where=of_truth > 0)


def weighted_iou(matrix: Counts) -> float:
    """IoU in percent, each class weighted by its share of the true pixels (fwIoU)."""
    of_truth = matrix.sum(1)
    there = of_truth > 0
    return float((class_iou(matrix)[there] * of_truth[there]).sum() / max(of_truth.sum(), 1))
