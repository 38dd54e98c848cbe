"""Line charts for the page: sweeps over layers and sizes, and the training runs that checkpoints come from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dino_dense.report.drawing import Chart, Curves, Line
from dino_dense.report.folders import REPORT_FILE, SWEEP_FILE
from dino_dense.report.merge import read_report

if TYPE_CHECKING:
    from dino_dense.report.record import Report
    from dino_dense.report.table import Entry

LOG_FILE, WATCH_FILE = "log.csv", "watch.csv"
"""Of a training run: its log, and its measurements."""
MOST_POINTS = 300  # of a line
PARTS = {"teacher_entropy": "teacher entropy", "kl": "KL(teacher, student)"}
"""Columns of a log in nats, beside "loss" and those that end in "_loss" -> their labels."""
RANK = "effective_rank"


def is_sweep(path: Path) -> bool:
    """Whether this is the results folder of a sweep."""
    return (path / SWEEP_FILE).is_file()


def is_run(path: Path) -> bool:
    """Whether this is the folder of a training run with a log or measurements."""
    return (path / LOG_FILE).is_file() or (path / WATCH_FILE).is_file()


def read_curves(paths: Sequence[Path], entries: Sequence[Entry] = ()) -> list[Curves]:
    """The sections for the sweeps and runs among these folders, and for runs that the entries' checkpoints come from.

    Raises:
        ValueError: a table cannot be read; tables of runs that only a checkpoint names are left out then.
    """
    curves = _sweep_curves([path for path in paths if is_sweep(path)])
    runs = {path.resolve(): path for path in paths if is_run(path)}
    read = [(path.name or str(path), *_run_tables(path)) for path in runs.values()]
    for entry in entries:
        for path in _run_of(entry):
            if path.resolve() not in runs:
                runs[path.resolve()] = path
                try:
                    read.append((entry.checkpoint, *_run_tables(path)))
                except ValueError:
                    continue
    return curves + _run_curves(read)


def _run_of(entry: Entry) -> Iterator[Path]:
    """The run folder that a checkpoint is, or is a file of."""
    spec = str(entry.report.checkpoint.get("spec") or "")
    path = Path(spec)
    try:
        yield from (folder for folder in ((path, path.parent) if spec else ()) if folder.name and is_run(folder))
    except (OSError, ValueError):  # the name of no file
        return


def _run_tables(run: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    log = _read(run / LOG_FILE, ["step", "loss"])
    watch = _read(run / WATCH_FILE, ["step", "task", "metric", "difference", "low", "high"])
    return log, watch


def _read(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A table with at least these columns, numeric but for names; an empty table if there is no file.

    Raises:
        ValueError: the file is no such table.
    """
    if not file.is_file():
        return pd.DataFrame(columns=list(columns))
    try:
        table = pd.read_csv(file)
        for name in set(columns) - {"task", "metric", "layer"}:
            table[name] = pd.to_numeric(table[name])
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(
            f"{file}: expected a table with columns {', '.join(columns)}, found something else ({error}). Make it "
            "again, or leave its folder out."
        ) from error
    return table


def _sweep_curves(folders: Sequence[Path]) -> list[Curves]:
    """A section for each task, a chart for each metric, a line for each checkpoint and size."""
    reports = [_first_report(folder) for folder in folders]
    tables = [_read(folder / SWEEP_FILE, ["layer", "size"]) for folder in folders]
    known = list(zip(reports, tables, strict=True))
    sections = []
    for task in dict.fromkeys(report.task for report, _ in known):
        own = [(report, table) for report, table in known if report.task == task and len(table)]
        names = [str(report.checkpoint.get("spec", "")) for report, _ in own]
        metrics = dict.fromkeys(metric for report, _ in own for metric in report.metrics)
        charts = []
        for metric in metrics:
            name = metric.name
            parts = [_sweep_lines(table, name, spec) for spec, (_, table) in zip(names, own, strict=True)]
            lines = [line for _, some in parts for line in some]
            label = next((label for label, some in parts if some), "layer")
            unit = f", {metric.unit}" if metric.unit else ""
            if lines:
                charts.append(Chart(f"{name}{unit} {'↑' if metric.higher_is_better else '↓'}", label, tuple(lines)))
        text = "By layer (0 is the first) or size of the network's input, with one standard error."
        if charts:
            sections.append(Curves(f"Sweep of {task}", text, tuple(charts)))
    return sections


def _first_report(folder: Path) -> Report:
    files = sorted(folder.rglob(REPORT_FILE))
    if not files:
        raise ValueError(f"{folder}: has {SWEEP_FILE}, but no {REPORT_FILE} below it. Run the sweep again.")
    return read_report(files[0])


def _sweep_lines(table: pd.DataFrame, metric: str, spec: str) -> tuple[str, list[Line]]:
    """The x axis, and the lines of a metric: over layers, one for each size; or over sizes, one for each layer."""
    if metric not in table:
        return "layer", []
    table = table.assign(size=[f"{size:.0f}" if size == size else "" for size in table["size"].astype(float)])
    single = pd.to_numeric(table["layer"], errors="coerce").notna().all() and table["layer"].nunique() > 1
    x, other = ("layer", "size") if single else ("size", "layer")
    if table[x].nunique() < 2:
        return x, []
    lines = []
    for value, rows in table.groupby(other, sort=False):
        word = f"{value} px" if other == "size" and value != "" else f"layer {value}" if other == "layer" else ""
        middle = rows[metric].astype(float)
        spread = rows[f"{metric} stderr"].astype(float) if f"{metric} stderr" in rows else None
        ends = () if spread is None else (tuple(middle - spread.fillna(0)), tuple(middle + spread.fillna(0)))
        name = ", ".join(filter(None, [spec, word]))
        lines.append(Line(name, tuple(rows[x].astype(float)), tuple(middle), *ends))
    return f"{x}, pixels" if x == "size" else x, lines


def _run_curves(runs: Sequence[tuple[str, pd.DataFrame, pd.DataFrame]]) -> list[Curves]:
    """One section: the losses of all runs, the rank of their features, and the measurements of each run."""
    logs = [(name, log) for name, log, _ in runs if len(log)]
    charts = []
    if len(logs) == 1:
        ((_, log),) = logs
        own = [name for name in map(str, log) if name.endswith("_loss")]
        parts = PARTS | {name: name.replace("_", " ") for name in own}
        lines = [_line(parts.get(part, part), log, part) for part in ("loss", *parts) if part in log]
        charts.append(Chart("Loss and its parts, nats", "optimizer step", tuple(lines), from_zero=True))
    elif logs:
        lines = [_line(name, log, "loss") for name, log in logs]
        charts.append(Chart("Loss, nats", "optimizer step", tuple(lines), from_zero=True))
    if ranked := [_line(name, log, RANK) for name, log in logs if RANK in log]:
        charts.append(Chart("Effective rank of the teacher's features", "optimizer step", tuple(ranked)))
    for name, _, watch in runs:
        lines = [_watch_line(str(task), rows) for task, rows in watch.groupby("task", sort=False)]
        if lines:
            title = "Measurements: difference from the start"
            charts.append(
                Chart(title if len(runs) == 1 else f"{title}, {name}", "optimizer step", tuple(lines), from_zero=True)
            )
    longest = max((len(log) for _, log in logs), default=0)
    text = (
        f"A point is the mean of {math.ceil(longest / MOST_POINTS)} rows of the log. " if longest > MOST_POINTS else ""
    )
    text += "Measurements have their 95 % interval." if any(len(watch) for *_, watch in runs) else ""
    return [Curves("Training", text.strip(), tuple(charts))] if charts else []


def _line(name: str, log: pd.DataFrame, column: str) -> Line:
    """A column of a log by step, at most `MOST_POINTS` points: means over as many rows each."""
    step = -(-len(log) // MOST_POINTS)
    groups = np.arange(len(log)) // max(step, 1)
    means = pd.DataFrame({"x": log["step"], "y": pd.to_numeric(log[column], errors="coerce")}).groupby(groups).mean()
    return Line(name, tuple(means["x"]), tuple(means["y"]))


def _watch_line(task: str, rows: pd.DataFrame) -> Line:
    values = [tuple(rows[column].astype(float)) for column in ("step", "difference", "low", "high")]
    return Line(f"{task} {rows['metric'].iloc[0]}", *values)
