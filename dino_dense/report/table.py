"""The table of all pairs of checkpoint and suite entry."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dino_dense.report.record import Metric, Report

FIELDS = ("value", "stderr", "n", "published", "difference", "differs", "direction")
"""Fields of each metric in the batch table."""
DTYPES = {"value": "float64", "stderr": "float64", "n": "Int64", "published": "float64", "difference": "float64"}


@dataclass(frozen=True)
class Entry:
    """One pair of a batch: a checkpoint measured by one entry of a suite."""

    label: str
    """Name of the suite's entry: the task's name, or a unique name if the task has several entries."""
    checkpoint: str
    """Name of the checkpoint, for tables."""
    report: Report
    folder: Path
    """The folder of the report, its pictures and samples."""


def labels(entries: Sequence[Entry]) -> list[str]:
    """Names of the suite's entries, in the order given."""
    return list(dict.fromkeys(entry.label for entry in entries))


def checkpoints(entries: Sequence[Entry]) -> list[str]:
    """Names of the checkpoints, in the order given."""
    return list(dict.fromkeys(entry.checkpoint for entry in entries))


def metrics(entries: Sequence[Entry], label: str) -> list[Metric]:
    """The metrics of a suite's entry, the headline first; [] if its reports name none."""
    by_name: dict[str, Metric] = {}
    for entry in entries:
        if entry.label == label:
            for metric in entry.report.metrics:
                by_name.setdefault(metric.name, metric)
    return list(by_name.values())


def check_entries(entries: Sequence[Entry]) -> None:
    """Raise if the entries do not form a table.

    Raises:
        ValueError: there are no entries, a pair occurs twice, or two tasks share a label.
    """
    if not entries:
        raise ValueError("no reports: expected at least one to make a table of.")
    places: dict[tuple[str, str], Path] = {}
    tasks: dict[str, str] = {}
    for entry in entries:
        pair = (entry.label, entry.checkpoint)
        if pair in places:
            raise ValueError(
                f"{entry.folder}: {entry.label} of {entry.checkpoint} is in {places[pair]} already; expected one "
                "report a pair. Name one of them otherwise."
            )
        places[pair] = entry.folder
        task = tasks.setdefault(entry.label, entry.report.task)
        if task != entry.report.task:
            raise ValueError(
                f"{entry.folder}: {entry.label} is of task {entry.report.task} here and of {task} elsewhere; expected "
                "one task a label."
            )


def batch_frame(entries: Sequence[Entry]) -> pd.DataFrame:
    """All pairs in one table.

    Returns:
        A row for each checkpoint, in the given order. Columns (entry, metric, field): for each metric value and stderr
        (in its unit), n, published, difference (value - published, on the same benchmark only), differs (what is not
        the same, where there is no difference) and direction ("higher" or "lower" is better); then
        (entry, "", "status"), which is ok, failed or missing (no report), and (entry, "", "error").

    Raises:
        ValueError: see `check_entries`.
    """
    check_entries(entries)
    pairs = {(entry.label, entry.checkpoint): entry.report for entry in entries}
    rows = checkpoints(entries)
    columns: dict[tuple[str, str, str], Any] = {}
    for label in labels(entries):
        reports = [pairs.get((label, row)) for row in rows]
        for metric in metrics(entries, label):
            fields = [_fields(report, metric) for report in reports]
            columns |= {(label, metric.name, name): [field[name] for field in fields] for name in FIELDS}
        columns[label, "", "status"] = [report.status if report else "missing" for report in reports]
        columns[label, "", "error"] = [report.error if report else "" for report in reports]
    frame = pd.DataFrame(columns, index=pd.Index(rows, name="checkpoint"))
    frame.columns = pd.MultiIndex.from_tuples(columns, names=["entry", "metric", "field"])
    return frame.astype({column: DTYPES[column[2]] for column in columns if column[2] in DTYPES})


def pairs_frame(entries: Sequence[Entry]) -> pd.DataFrame:
    """All pairs in long form: a row for each score of a pair (one row for a failed pair).

    Returns:
        Columns entry, checkpoint (names), spec (the checkpoint as given), folder, and the columns of `Report.to_frame`.

    Raises:
        ValueError: see `check_entries`.
    """
    check_entries(entries)
    frames = []
    for entry in entries:
        frame = entry.report.to_frame().rename(columns={"checkpoint": "spec"})
        frame.insert(0, "entry", entry.label)
        frame.insert(1, "checkpoint", entry.checkpoint)
        frame["folder"] = str(entry.folder)
        frames.append(frame)
    names = list(dict.fromkeys(name for frame in sorted(frames, key=lambda f: -f.shape[1]) for name in frame))
    rows = [row for frame in frames for row in frame.to_dict("records")]
    return pd.DataFrame(rows, columns=names)


def flat_frame(frame: pd.DataFrame) -> pd.DataFrame:
    """A `batch_frame` under plain column names: "knn/top-1", "knn/top-1 stderr", ..., "knn status", "knn error"."""
    flat = frame.copy()
    flat.columns = pd.Index([_flat_name(*column) for column in frame.columns])
    return flat


def _flat_name(label: str, metric: str, field: str) -> str:
    name = f"{label}/{metric}" if metric else label
    return name if field == "value" else f"{name} {field}"


def _fields(report: Report | None, metric: Metric) -> dict[str, Any]:
    """The values of a metric in a report, keyed by `FIELDS`."""
    fields: dict[str, Any] = dict.fromkeys(FIELDS)
    fields["direction"] = "higher" if metric.higher_is_better else "lower"
    if report is not None and report.scores:
        frame = report.to_frame().set_index("metric")
        if metric.name in frame.index:
            fields |= {name: frame.at[metric.name, name] for name in FIELDS[:-1]}
    return fields
