"""Readings of one set of confusion matrices: which prediction counts as which class, and which classes count.

Shapes: N images, K classes, P predicted classes or clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dino_dense.report.samples import ratio_columns
from tasks.scores.matching import NO_PIXEL, Mapping, match_by_precision, match_hungarian
from tasks.scores.segmentation import Counts

if TYPE_CHECKING:
    import pandas as pd


Matrices = npt.NDArray[Any]
"""Counts by true class and prediction of each image, [N, K, P], integers of any width."""


class Reading(NamedTuple):
    """Pixels of each image in the intersection and the union of each class."""

    hits: Counts
    """[N, K]"""
    unions: Counts
    """[N, K]"""

    def class_iou(self) -> np.ndarray:
        """IoU in percent over all images [K]; not-a-number where no pixel is in the union."""
        hits, unions = self.hits.sum(0), self.unions.sum(0)
        return np.divide(100 * hits, unions, out=np.full(len(hits), np.nan), where=unions > 0)

    def of_images(self) -> np.ndarray:
        """Mean IoU in percent of each image [N] over the classes in its union; not-a-number without any."""
        ratios = np.divide(100 * self.hits, self.unions, out=np.zeros(self.hits.shape), where=self.unions > 0)
        counted = (self.unions > 0).sum(1)
        return np.divide(ratios.sum(1), counted, out=np.full(len(ratios), np.nan), where=counted > 0)

    def mean(self) -> float:
        """Mean IoU in percent over the classes that have a union."""
        return float(np.nanmean(self.class_iou()))


def mapping_of(matrices: Matrices, matching: str) -> Mapping:
    """The class of each prediction [P] by all images [N, K, P]: own, hungarian or precision."""
    total = matrices.sum(0, dtype=np.int64)
    if matching == "own":
        return np.arange(total.shape[1])
    return match_hungarian(total) if matching == "hungarian" else match_by_precision(total)


def read_matrices(matrices: Matrices, mapping: Mapping, absent: str, counted: int | None = None) -> Reading:
    """Hits and unions of matrices [N, K, P] under a mapping [P].

    Args:
        absent: "zero" gives a class in no image and no prediction a union in every image, so that it counts as IoU 0
            in any mean over images.
        counted: of how many of the first classes this holds; all without it.
    """
    columns = np.flatnonzero(mapping != NO_PIXEL)
    rows, classes = mapping[columns], matrices.shape[1]

    def by_class(values: np.ndarray) -> Counts:
        return np.bincount(rows, weights=values, minlength=classes).astype(np.int64)

    hits = np.stack([by_class(matrix[rows, columns]) for matrix in matrices])
    predicted = np.stack([by_class(matrix[:, columns].sum(0)) for matrix in matrices])
    unions = matrices.sum(2, dtype=np.int64) + predicted - hits
    if absent == "zero":
        missing = unions.sum(0) == 0
        missing[classes if counted is None else counted :] = False
        unions[:, missing] = 1
    return Reading(hits, unions)


def samples_of(
    readings: dict[str, list[Reading]], names: Sequence[str], images: Sequence[str], runs: Sequence[str]
) -> pd.DataFrame:
    """A row an image: what it adds to each metric, a mean over runs of means over classes.

    Args:
        readings: metric -> the reading of each run.
        names: of the classes.
        images: names of the images.
        runs: names of the runs.
    """
    import pandas as pd

    columns: dict[str, Counts] = {}
    for metric, of_runs in readings.items():
        parts = names if of_runs[0].hits.shape[1] > 1 else ("pixels",)
        labels = [f"{run} {name}".strip() for run in runs for name in parts]
        hits, unions = (np.concatenate(part, axis=1) for part in zip(*of_runs, strict=True))
        columns |= ratio_columns(metric, labels, hits, unions)
    return pd.DataFrame({"sample": list(images), "cluster": list(images), **columns})


def pixel_reading(matrices: Matrices) -> Reading:
    """Right pixels and all pixels of each image [N, 1], where predictions keep their class."""
    hits = np.einsum("nkk->n", matrices[:, :, : matrices.shape[1]]).astype(np.int64)
    return Reading(hits[:, None], matrices.sum((1, 2), dtype=np.int64)[:, None])
