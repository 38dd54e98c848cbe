"""Compare two checkpoints: paired differences over the same samples, with intervals (`sampling`).

Two means over the same samples share the samples' difficulty; differences of single samples do not. Samples of a
cluster, such as the frames of a video, are resampled together. An interval covers the choice of samples, not the
randomness of training.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dino_dense.progress import tracked
from dino_dense.report.cells import number
from dino_dense.report.intervals import IntervalConfig
from dino_dense.report.record import Metric, Report, beside
from dino_dense.report.samples import (
    CLUSTER,
    NO_METRICS,
    SECOND_CLUSTER,
    class_columns,
    clusters_of,
    metric_terms,
    score_samples,
    second_clusters_of,
)
from dino_dense.report.sampling import SMALL, Interval, Numbers, Value, cluster_sums, compare_pairs, compare_sums
from dino_dense.report.table import Entry

SAME_MEAN = 1e-6  # a score and the mean of its column differ by rounding at most (tests/test_task_contract.py)
COLUMNS = (
    *("entry", "metric", "unit", "baseline", "candidate", "baseline_value", "candidate_value"),
    *("difference", "stderr", "low", "high", "better", "worse", "equal", "n", "clusters"),
    *("verdict", "reason", "note", "bootstrap", "confidence", "seed"),
)
NUMBERS = ("baseline_value", "candidate_value", "difference", "stderr", "low", "high", "better", "worse", "equal")


def compare(baseline: Entry, candidate: Entry, config: IntervalConfig) -> pd.DataFrame:
    """Two checkpoints, metric by metric.

    Returns:
        `COLUMNS`, with a row for each metric that has values of single samples: values and difference (candidate -
        baseline) in the unit; better, worse, equal in percent of the n samples; verdict: better or worse if chance
        does not explain the difference (`sampling.compare_sums`), undecided if it may, "not compared" with a reason.
    """
    reasons = _why_not(baseline, candidate)
    if reasons:
        return _frame([_row(baseline, candidate, config, reason="; ".join(reasons))])
    try:
        a, b = read_samples(baseline), read_samples(candidate)
    except (ValueError, OSError) as error:
        return _frame([_row(baseline, candidate, config, reason=str(error))])
    if set(a.index) != set(b.index):
        return _frame([_row(baseline, candidate, config, reason=_other_names(a, b))])
    rows = []
    for metric in baseline.report.metrics:
        terms = [metric_terms(samples, metric.name) for samples in (a, b)]
        if any(terms):
            rows.append(_compare_metric(metric, a, b, _row(baseline, candidate, config, metric)))
    return _frame(rows or [_row(baseline, candidate, config, reason="no metric has values of single samples")])


def compare_all(entries: Sequence[Entry], config: IntervalConfig) -> pd.DataFrame:
    """Compare the first checkpoint with each other checkpoint that was measured in the same way.

    A report that differs from all others of its task gets a row with the differences.

    Returns:
        The rows of `compare`.
    """
    pairs = []
    for reports in _grouped(entries, lambda entry: entry.report.task):
        alike = _grouped(sorted(reports, key=_failed), _protocol)
        pairs += [(group[0], other) for group in alike for other in group[1:]]
        first = alike[0][0]
        pairs += [(first, group[0]) for group in alike if len(group) == 1 and group[0].checkpoint != first.checkpoint]
    shown = tracked(pairs, unit="pair", desc="comparing", leave=False)
    frames = [compare(baseline, candidate, config) for baseline, candidate in shown]
    return pd.concat(frames, ignore_index=True) if frames else _frame([])


def read_samples(entry: Entry) -> pd.DataFrame:
    """Values of single samples: sorted names as index; columns of clusters, and float columns of metrics (`samples`).

    Raises:
        ValueError: the file is missing, or does not belong to the report.
    """
    file = _samples_file(entry)
    metrics = [metric.name for metric in entry.report.metrics]
    if not file.is_file():
        raise ValueError(f"{file}: no such file, expected the values of single samples. Copy it there, or run again.")
    header = pd.read_csv(file, nrows=0).columns
    if "sample" not in header:
        raise ValueError(f"{file}: expected a column sample, found {', '.join(header)}. Run the task again.")
    # Names are text: a sample may be called NA or 007.
    missing = {name: [""] for name in header if name not in NO_METRICS}
    table = pd.read_csv(file, dtype=dict.fromkeys(NO_METRICS, str), keep_default_na=False, na_values=missing)
    if (table["sample"] == "").any():
        raise ValueError(f"{file}: expected a name for every sample, found none for some. Run the task again.")
    twice = table["sample"][table["sample"].duplicated()]
    if len(twice):
        raise ValueError(f"{file}: sample {twice.iloc[0]!r} is there twice; expected unique names. Run the task again.")
    table[CLUSTER] = clusters_of(table)
    values = table.set_index("sample").sort_index()
    columns = [str(name) for name in values]
    kept = [name for name in columns if name in metrics or any(class_columns([name], metric) for metric in metrics)]
    for name in kept:
        if not pd.api.types.is_numeric_dtype(values[name]):
            raise ValueError(f"{file}: column {name} holds text; expected numbers. Run the task again.")
    _check_scores(file, entry.report, values)
    groups = [name for name in (CLUSTER, SECOND_CLUSTER) if name in values]
    return values[[*groups, *kept]].astype(dict.fromkeys(kept, np.float64))


def differences(a: Report, b: Report) -> list[str]:
    """Differences that prevent a comparison: task, data, config (except `Report.free`); [] if none."""
    if a.task != b.task:
        return [f"task {a.task} against {b.task}"]
    texts = [] if a.data.get("sha256") else ["hash of the data unknown"]
    if a.data.get("sha256") != b.data.get("sha256"):
        names = [f"{data.get('name')} ({str(data.get('sha256'))[:8]})" for data in (a.data, b.data)]
        texts.append(f"data {names[0]} against {names[1]}")
    settings, other_settings = a.settings(), b.settings()
    texts += [
        f"config {key}: {settings.get(key)} against {other_settings.get(key)}"
        for key in {**settings, **other_settings}
        if settings.get(key) != other_settings.get(key)
    ]
    return texts


def readable(comparison: pd.DataFrame, escape: Callable[[str], str] = str) -> pd.DataFrame:
    """The compared rows in readable form, every text escaped."""
    table = []
    for row in comparison[comparison["reason"] == ""].to_dict("records"):
        places = 1 if row["unit"] == "%" else 3
        low, high = (number(row[end], places, sign=True) for end in ("low", "high"))
        table.append(
            {
                "measure": escape(f"{row['entry']} {row['metric']}"),
                "checkpoint": escape(row["candidate"]),
                "value": number(row["candidate_value"], places),
                "against": escape(row["baseline"]),
                "its value": number(row["baseline_value"], places),
                "difference": number(row["difference"], places, sign=True),
                f"{100 * row['confidence']:.4g} % interval": f"{low} to {high}",
                "better / worse / equal": f"{row['better']:.0f} / {row['worse']:.0f} / {row['equal']:.0f} %",
                "n": samples_text(row["n"], row["clusters"]),
                "verdict": row["verdict"],
            }
        )
    return pd.DataFrame(table)


def not_compared(comparison: pd.DataFrame) -> list[str]:
    """A sentence for each pair that could not be compared."""
    return [
        f"{row['entry']} {row['metric']}".strip()
        + f": {row['candidate']} was not compared with {row['baseline']}: {row['reason']}"
        for row in comparison[comparison["reason"] != ""].to_dict("records")
    ]


def _why_not(baseline: Entry, candidate: Entry) -> list[str]:
    """Reasons that prevent a comparison of two entries, without reading their samples."""
    failed = [entry for entry in (baseline, candidate) if _failed(entry)]
    if failed:
        return [f"{entry.checkpoint} failed: {entry.report.error}" for entry in failed]
    return differences(baseline.report, candidate.report)


def _other_names(a: pd.DataFrame, b: pd.DataFrame) -> str:
    """A text with the samples that only one of two tables has."""
    texts = []
    for table, other, which in ((a, b, "the baseline"), (b, a, "the candidate")):
        only = table.index.difference(other.index)
        if len(only):
            texts.append(f"{len(only)} of {len(table)} samples are in {which} only, for example {only[0]}")
    return "; ".join(texts)


def _compare_metric(metric: Metric, a: pd.DataFrame, b: pd.DataFrame, row: dict[str, Any]) -> dict[str, Any]:
    """The row of a metric from two tables of the same samples; at least one table has the metric."""
    b = b.loc[a.index]
    first, second = metric_terms(a, metric.name), metric_terms(b, metric.name)
    if first is None or second is None:
        return row | {"reason": f"only the {'candidate' if first is None else 'baseline'} has values of single samples"}
    if first.rows.shape != second.rows.shape or first.value is not second.value:
        return row | {"reason": "the values of single samples are of other classes"}
    one_sided = a.index[first.counted != second.counted]
    if len(one_sided):
        return row | {"reason": f"{len(one_sided)} samples have a value in one only, for example {one_sided[0]}"}
    moved = a.index[_moved(a, b)]
    if len(moved):
        return row | {"reason": f"{len(moved)} samples are of another cluster, for example {moved[0]}"}
    counted = first.counted
    own, other = clusters_of(a[counted]), second_clusters_of(a[counted])
    if len({*own, *(other or ())}) < 2:
        drawn = "samples have a value" if len(own) < 2 else "samples are of one cluster"
        return row | {"reason": f"{len(own)} {drawn}; expected 2 clusters or more"}
    rows = first.rows[counted], second.rows[counted]
    config = IntervalConfig(row["bootstrap"], row["confidence"], row["seed"])
    interval = _interval(rows, own, other, first.value, config)
    values = [float(first.value(part.sum(axis=0))) for part in rows]
    sign = 1 if metric.higher_is_better else -1
    gain = sign * (second.value(second.rows[counted]) - first.value(first.rows[counted]))
    return row | {
        **{name: getattr(interval, name) for name in ("difference", "stderr", "low", "high", "clusters")},
        "baseline_value": values[0],
        "candidate_value": values[1],
        **{
            name: 100 * share.mean()
            for name, share in (("better", gain > 0), ("worse", gain < 0), ("equal", gain == 0))
        },
        "n": len(own),
        "verdict": ("better" if sign * interval.difference > 0 else "worse") if interval.decided else "undecided",
    }


def _moved(a: pd.DataFrame, b: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Whether each sample of two tables has other clusters in the second, [n]."""
    if (SECOND_CLUSTER in a) != (SECOND_CLUSTER in b):
        return np.ones(len(a), bool)
    columns = [name for name in (CLUSTER, SECOND_CLUSTER) if name in a]
    return np.asarray((a[columns] != b[columns]).any(axis=1), bool)


def _interval(
    rows: tuple[Numbers, Numbers], own: list[str], other: list[str] | None, value: Value, config: IntervalConfig
) -> Interval:
    """The difference of two networks, from the terms [n, D] of each, and the clusters of the n samples."""
    sums = [cluster_sums(part, own, other) for part in rows]
    if other is None:
        return compare_sums(sums[0], sums[1], value, config)
    return compare_pairs(sums[0], sums[1], (rows[0].sum(axis=0), rows[1].sum(axis=0)), value, config)


def samples_text(n: int, clusters: int) -> str:
    """The number of compared samples, and of clusters if there are fewer."""
    few = ", too few for a bootstrap" if clusters < SMALL else ""
    return f"{n}{few}" if n == clusters else f"{n} in {clusters} clusters{few}"


def _row(
    baseline: Entry, candidate: Entry, config: IntervalConfig, metric: Metric | None = None, *, reason: str = ""
) -> dict[str, Any]:
    """The fields that every row has, compared or not."""
    return {
        "entry": candidate.label,
        "metric": metric.name if metric else "",
        "unit": metric.unit if metric else "",
        "baseline": baseline.checkpoint,
        "candidate": candidate.checkpoint,
        "verdict": "not compared",
        "reason": reason,
        "note": _note(baseline.report, candidate.report),
        **asdict(config),
    }


def _note(a: Report, b: Report) -> str:
    """Differences of the runs' environments that may matter, although the protocol is the same."""
    return "; ".join(
        f"{key} {a.environment.get(key)} against {b.environment.get(key)}"
        for key in ("dtype", "seed", "commit")
        if a.environment.get(key) != b.environment.get(key)
    )


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype({**dict.fromkeys(NUMBERS, "float64"), "n": "Int64", "clusters": "Int64"})


def _samples_file(entry: Entry) -> Path:
    """The file with the values of single samples."""
    name = entry.report.samples
    if not name:
        raise ValueError(f"{entry.folder}: the report names no values of single samples. Run the task again.")
    return beside(entry.folder, name)


def _check_scores(file: Path, report: Report, values: pd.DataFrame) -> None:
    for score in report.scores:
        if metric_terms(values, score.metric) is None:
            continue
        value = score_samples(values, score.metric).value
        if not math.isclose(value, score.value, rel_tol=SAME_MEAN, abs_tol=SAME_MEAN):
            raise ValueError(
                f"{file}: the samples give {score.metric} {value:.6g}, expected the report's {score.value:.6g}. "
                "The two are not of one run; run the task again."
            )


def _protocol(entry: Entry) -> str:
    """A key that is equal for two comparable entries."""
    return f"failed {entry.folder}" if _failed(entry) else entry.report.protocol()


def _failed(entry: Entry) -> bool:
    return entry.report.status == "failed"


def _grouped(entries: Sequence[Entry], key: Callable[[Entry], str]) -> list[list[Entry]]:
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(key(entry), []).append(entry)
    return list(groups.values())
