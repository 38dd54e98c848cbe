"""Sampling errors of metrics: standard errors, confidence intervals, and tests of the difference of two networks.

A data set is a sample of clusters (a video, a landmark, an original and its copies): frames of one video are similar,
so they are not independent. A metric is a function of sums over clusters: a mean is sum / count, mIoU is the mean over
classes of sum of hits / sum of unions. So removing or repeating a cluster means removing or repeating its row of sums.

A pair of images belongs to two clusters, one for each image, and depends on all pairs that share an image with it. A
row of sums is then of all pairs of an image, the rows add up to more than the `total`, and an image is removed with
its pairs.

Shapes: G clusters, D sums a cluster.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dino_dense.report.intervals import IntervalConfig

Numbers = npt.NDArray[np.float64]
Value = Callable[[Numbers], Numbers]
"""Sums [..., D] -> the metric [...]."""

SMALL = 20  # clusters; below, percentiles of a bootstrap are too narrow (Hesterberg 2015, table 1)
DRAWS_AT_ONCE = 2**22  # clusters drawn at once (32 MiB); does not change the result
ROUNDING = 1e-9  # two differences this close count as equal, as a share of the larger


@dataclass(frozen=True)
class Interval:
    """A difference of two networks, with its confidence interval."""

    difference: float
    stderr: float
    low: float
    high: float
    clusters: int
    decided: bool
    """Whether it is larger than chance explains; never true with fewer than 6 clusters at 95 % confidence."""


def mean_value(sums: Numbers) -> Numbers:
    """A mean, from [..., 2]: the sum of the values and their number."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.full(sums.shape[:-1], np.nan), where=sums[..., 1] > 0)


def mean_ratio_value(sums: Numbers) -> Numbers:
    """Percent, from [..., 2K]: the mean of hits / union over K classes, without classes with union 0."""
    hits, unions = np.split(sums, 2, axis=-1)
    seen = unions > 0
    ratios = np.divide(100 * hits, unions, out=np.zeros_like(hits), where=seen)
    counted = seen.sum(-1)
    return np.divide(ratios.sum(-1), counted, out=np.full(counted.shape, np.nan), where=counted > 0)


def cluster_sums(rows: Numbers, clusters: Sequence[str], second: Sequence[str] | None = None) -> Numbers:
    """Sums [G, D] over each cluster's rows of [n, D], clusters sorted by name.

    Args:
        second: the other cluster of each row, for rows of two clusters. A row adds to both, once if they are the same.
    """
    own = np.asarray(clusters, dtype=object).astype(str)
    other = own[:0] if second is None else np.asarray(second, dtype=object).astype(str)
    names, index = np.unique(np.concatenate([own, other]), return_inverse=True)
    sums = np.zeros((len(names), rows.shape[1]))
    np.add.at(sums, index[: len(own)], rows)
    if second is not None:
        differs = own != other
        np.add.at(sums, index[len(own) :][differs], rows[differs])
    return sums


def mean_sums(values: Numbers, clusters: Sequence[str]) -> Numbers:
    """`cluster_sums` [G, 2] of a mean of values [n]."""
    return cluster_sums(np.stack([values, np.ones(len(values))], axis=1), clusters)


def standard_error(sums: Numbers, value: Value, total: Numbers | None = None) -> float | None:
    """Jackknife standard error of a metric: each cluster is omitted once (Efron and Tibshirani 1993, eq. 11.5).

    For a mean with one sample in each cluster this is s / sqrt(n). None for fewer than two clusters.

    Args:
        total: [D], the sums of all samples, where these belong to two clusters (the jackknife of U-statistics, Arvesen
            1969).
    """
    count = len(sums)
    if count < 2:
        return None
    left_out = value((sums.sum(axis=0) if total is None else total) - sums)
    left_out = left_out[np.isfinite(left_out)]
    if len(left_out) < 2:
        return None
    return float(np.sqrt((count - 1) / count * ((left_out - left_out.mean()) ** 2).sum()))


def compare_pairs(
    baseline: Numbers, candidate: Numbers, totals: tuple[Numbers, Numbers], value: Value, config: IntervalConfig
) -> Interval:
    """`compare_sums` of samples that belong to two clusters each; `totals` [D] are the sums of all samples.

    Student's t with the jackknife error. With fewer than `SMALL` clusters nothing is decided, as no exchange of the
    networks leaves pairs whole.
    """
    count, size = len(baseline), baseline.shape[1]

    def difference_of(sums: Numbers) -> Numbers:
        return value(sums[..., size:]) - value(sums[..., :size])

    total = np.concatenate(totals)
    difference = float(difference_of(total))
    stderr = standard_error(np.concatenate([baseline, candidate], axis=1), difference_of, total)
    reach = math.inf if stderr is None else _student(config.confidence, count - 1) * stderr
    low, high = difference - reach, difference + reach
    decided = count >= SMALL and (low > 0 or high < 0)
    return Interval(difference, stderr or 0.0, low, high, count, decided)


def compare_sums(baseline: Numbers, candidate: Numbers, value: Value, config: IntervalConfig) -> Interval:
    """The difference of a metric of two networks on the same G clusters, G at least 2.

    From `SMALL` clusters on, the interval is a percentile bootstrap of clusters, expanded to the width of Student's t
    (Hesterberg 2015, section 4.4). With fewer clusters it is Student's t with the jackknife error, and the difference
    must also pass an exchange test: it must be rare among all exchanges of the two networks cluster by cluster. The
    test is exact for equal networks, and cannot decide with fewer than 6 clusters.
    """
    count, size = len(baseline), baseline.shape[1]
    both = np.concatenate([baseline, candidate], axis=1)

    def difference_of(sums: Numbers) -> Numbers:
        return value(sums[..., size:]) - value(sums[..., :size])

    difference = float(difference_of(both.sum(axis=0)))
    stderr = standard_error(both, difference_of) or 0.0
    if count < SMALL:
        reach = _student(config.confidence, count - 1) * stderr
        low, high = difference - reach, difference + reach
    else:
        low, high = _bootstrap_interval(both, difference_of, config)
    decided = low > 0 or high < 0
    if decided and count < SMALL:
        decided = exchange_p_value(baseline, candidate, value, config) <= 1 - config.confidence
    return Interval(difference, stderr, low, high, count, decided)


def bootstrap(sums: Numbers, value: Value, resamples: int, seed: int) -> Numbers:
    """The metric [resamples] of G clusters drawn with replacement; the draws depend on G and the seed only."""
    generator, count = np.random.default_rng(seed), len(sums)
    at_once = max(1, DRAWS_AT_ONCE // count)
    parts = []
    for start in range(0, resamples, at_once):
        draws = generator.integers(count, size=(min(at_once, resamples - start), count))
        offsets = count * np.arange(len(draws))[:, None]
        times = np.bincount((draws + offsets).ravel(), minlength=draws.size).reshape(draws.shape)
        parts.append(value(times @ sums))
    return np.concatenate(parts)


def exchange_p_value(baseline: Numbers, candidate: Numbers, value: Value, config: IntervalConfig) -> float:
    """Share of exchanges of the networks, cluster by cluster, with a difference at least as large (two-sided).

    Uses all 2^G exchanges if they are at most `config.bootstrap`, else as many random exchanges (Phipson and Smyth
    2010).
    """
    count, total_a, total_b = len(baseline), baseline.sum(axis=0), candidate.sum(axis=0)
    gap = candidate - baseline
    everything = 2**count <= config.bootstrap
    if everything:
        exchanged = (np.arange(2**count)[:, None] >> np.arange(count) & 1).astype(np.float64)
    else:
        exchanged = np.random.default_rng(config.seed).integers(2, size=(config.bootstrap, count)).astype(np.float64)
    moved = exchanged @ gap
    differences = np.abs(value(total_b - moved) - value(total_a + moved))
    observed = abs(float(value(total_b) - value(total_a)))
    as_large = int((differences >= observed * (1 - ROUNDING)).sum())
    return as_large / len(differences) if everything else (1 + as_large) / (1 + len(differences))


def _bootstrap_interval(sums: Numbers, value: Value, config: IntervalConfig) -> tuple[float, float]:
    from scipy.special import ndtr

    count = len(sums)
    tail = 100 * float(ndtr(-_student(config.confidence, count - 1) * (count / (count - 1)) ** 0.5))
    draws = bootstrap(sums, value, config.bootstrap, config.seed)
    low, high = np.nanpercentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def _student(confidence: float, freedom: int) -> float:
    """Half the width of a t interval, in standard errors."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))
