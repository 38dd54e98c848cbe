"""The table of single samples next to a report: scores are computed from it, and comparisons use it.

Columns:
- `sample`: a unique name.
- `cluster` (optional): the group of dependent samples (a video, an original, a landmark). Without it, samples are
  independent.
- `second cluster` (optional): for samples that belong to two groups (the two images of a pair). Both columns name the
  same kind of group.
- `METRIC`: values; the score is their mean over the rows with a value.
- or `METRIC hits CLASS` and `METRIC union CLASS`: the score is the mean over classes of 100 * hits / union, each summed
  over the rows (mIoU).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from dino_dense.report.record import Score
from dino_dense.report.sampling import Numbers, Value, cluster_sums, mean_ratio_value, mean_value, standard_error

if TYPE_CHECKING:
    import pandas as pd

SAMPLE, CLUSTER, SECOND_CLUSTER = "sample", "cluster", "second cluster"
NO_METRICS = [SAMPLE, CLUSTER, SECOND_CLUSTER]


class Terms(NamedTuple):
    """Each sample's contribution to the sums that determine a metric."""

    rows: Numbers
    """[n, D]"""
    value: Value
    """Sums [..., D] -> the metric."""
    counted: npt.NDArray[np.bool_]
    """[n]: whether the sample has a value."""


def metric_terms(samples: pd.DataFrame, metric: str) -> Terms | None:
    """The terms of a metric in a table of samples; None if the table does not have the metric.

    Raises:
        ValueError: a column of hits without its column of unions, or the reverse.
    """
    if metric in samples:
        values = samples[metric].to_numpy(np.float64)
        counted = ~np.isnan(values)
        rows = np.stack([np.where(counted, values, 0.0), counted.astype(np.float64)], axis=1)
        return Terms(rows, mean_value, counted)
    names = class_columns(list(samples.columns), metric)
    if not names:
        return None
    columns = [_column(metric, part, name) for part in ("hits", "union") for name in names]
    missing = [column for column in columns if column not in samples]
    if missing:
        raise ValueError(
            f"the samples of {metric} have no column {missing[0]!r}; expected hits and union of each class"
        )
    return Terms(samples[columns].to_numpy(np.float64), mean_ratio_value, np.ones(len(samples), bool))


def class_columns(columns: Sequence[str], metric: str) -> list[str]:
    """Names of the classes with columns of hits or unions of this metric, in order."""
    prefixes = tuple(_column(metric, part, "") for part in ("hits", "union"))
    return list(dict.fromkeys(c.removeprefix(p) for c in columns for p in prefixes if c.startswith(p)))


def ratio_columns(
    metric: str, classes: Sequence[str], hits: npt.NDArray, unions: npt.NDArray
) -> dict[str, npt.NDArray]:
    """Columns of a metric that is a mean of ratios, from hits and unions [n, K] of n samples and K classes."""
    parts = (("hits", hits), ("union", unions))
    return {_column(metric, part, name): counts[:, k] for part, counts in parts for k, name in enumerate(classes)}


def clusters_of(samples: pd.DataFrame) -> list[str]:
    """The cluster of each row; the sample's own name if the table has no clusters."""
    return samples[CLUSTER if CLUSTER in samples else SAMPLE].astype(str).tolist()


def second_clusters_of(samples: pd.DataFrame) -> list[str] | None:
    """The second cluster of each row; None if the table has no such column."""
    return samples[SECOND_CLUSTER].astype(str).tolist() if SECOND_CLUSTER in samples else None


def score_samples(samples: pd.DataFrame, metric: str) -> Score:
    """A metric's value, its number of samples, and its standard error over clusters.

    Raises:
        ValueError: the table does not have the metric.
    """
    terms = metric_terms(samples, metric)
    if terms is None:
        raise ValueError(f"no values of {metric} in columns {', '.join(samples.columns)}")
    rows, counted = terms.rows[terms.counted], samples[terms.counted]
    total = rows.sum(axis=0)
    sums = cluster_sums(rows, clusters_of(counted), second_clusters_of(counted))
    # Summing in the order of the rows makes the score independent of clusters, even in rounding.
    value = float(samples[metric].mean() if metric in samples else terms.value(total))
    return Score(metric, value, len(rows), standard_error(sums, terms.value, total))


def _column(metric: str, part: str, name: str) -> str:
    return f"{metric} {part} {name}"
