"""Measure the teacher with tasks while a run trains, and stop a run that becomes worse than its start.

Each measurement is a process of its own that runs the tasks' command, so the numbers are the tasks' own, and the run's
random numbers stay as they are.
"""

import importlib.resources
import os
import subprocess
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import yaml

from dino_dense.files import replacing, write_text
from dino_dense.pretrain.options import COUNT, Options, Ranges
from dino_dense.report.compare import compare
from dino_dense.report.files import PAGE_FILE
from dino_dense.report.folders import REPORT_FILE
from dino_dense.report.intervals import IntervalConfig
from dino_dense.report.merge import read_entries
from dino_dense.report.table import Entry

FOLDER, TABLE_FILE, CURVE_FILE, SUITE_FILE = "watch", "watch.csv", "watch.png", "suite.yaml"
CHECKPOINT_FILE = "measured.safetensors"
COLUMNS = ("step", "task", "metric", "unit", "value", "start", "difference", "low", "high", "verdict")
"""Columns of watch.csv: optimizer steps done; the headline metric of a task, now and at the start; the interval of the
difference; better, worse or undecided (`report.compare`)."""
WORSE, NOT_COMPARED = "worse", "not compared"
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables by which a process joins a group; the measuring process is alone."""
POLL_SECONDS = 0.5

Measure = Callable[[Path, Path, Path], bool]
"""(suite, checkpoint, results folder): measure the checkpoint with every entry of the suite. False: stopped before."""


class WorseError(ValueError):
    """The run became worse than its start, and was stopped."""

    exit_status = 1


class MeasureError(ValueError):
    """A measurement failed."""

    exit_status = 1


@dataclass(frozen=True)
class WatchOptions(Options):
    """Watch"""

    watch: tuple[str, ...] = ()
    """Measure the teacher before the first step and during the run: names of tasks in configs/suites/watch.yaml
    (knn,incontext,davis,tokens: small, embedded data), or a suite file (.yaml) with data of one's own. Ours."""
    watch_every: int | None = None
    """Optimizer steps between measurements. None: at the end of each epoch. Ours."""
    rollback: bool = False
    """With watch: if a headline metric falls below its value at the start by more than its 95 % bootstrap interval,
    stop the run and restore its best state. Ours."""

    RANGES: ClassVar[Ranges] = {"watch_every": COUNT}

    def check(self) -> None:
        """Refuse rollback without watch."""
        super().check()
        if self.rollback and not self.watch:
            raise ValueError("rollback is on, but watch is empty: name tasks, such as --watch knn,incontext")


class Watcher:
    """Measures checkpoints of a run in its main process.

    Args:
        run: the run folder; results go to RUN/watch, RUN/watch.csv and RUN/watch.png.
        names: see `WatchOptions.watch`.
        measure: `in_own_process`, or another way.
        writes: False in a process that only waits for the main one.

    Raises:
        ValueError: a name is neither a task of the suite nor a file.
    """

    def __init__(self, run: Path, names: Sequence[str], measure: Measure, *, writes: bool = True) -> None:
        self.run, self.measure = run, measure
        self.folder = run / FOLDER
        self.suite = self.folder / SUITE_FILE
        entries = suite_of(names)
        self.count, suite = len(entries), yaml.safe_dump(entries, sort_keys=False)
        if writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.suite, suite)
        self.table = pd.DataFrame(columns=COLUMNS)
        if (run / TABLE_FILE).is_file():
            self.table = pd.read_csv(run / TABLE_FILE)

    def measured(self, step: int, checkpoint: Path) -> pd.DataFrame | None:
        """Measure a checkpoint, and return its rows of the table; None if it was stopped.

        Rows of this and later steps, from an earlier part of the run, are replaced.

        Raises:
            MeasureError: a measurement failed.
        """
        out = self.folder / f"step-{step}"
        if not self.measure(self.suite, checkpoint, out):
            return None
        now = _entries(out, self.count)
        start = _entries(self.folder / "step-0", self.count) if step else None
        rows = pd.DataFrame([_row(step, entry, _same(start, entry) if start else None) for entry in now])
        earlier = self.table[self.table["step"] < step]
        self.table = pd.concat([earlier, rows], ignore_index=True) if len(earlier) else rows
        write_text(self.run / TABLE_FILE, self.table.to_csv(index=False))
        draw_curves(self.table, self.run / CURVE_FILE)
        return rows

    def is_best(self, step: int) -> bool:
        """Whether no measured step has a higher sum of differences from the start, over the metrics in percent."""
        percent = self.table[self.table["unit"] == "%"]
        totals = percent.groupby("step")["difference"].sum()
        return not len(totals) or bool(totals[step] >= totals.max())


def _entries(out: Path, count: int) -> list[Entry]:
    """The reports of a measurement; MeasureError unless there are `count`, as a pair that failed has none."""
    entries = read_entries([out]) if any(out.rglob(REPORT_FILE)) else []
    if len(entries) < count:
        raise MeasureError(
            f"{out}: {count - len(entries)} of {count} entries of {SUITE_FILE} could not be measured: its {PAGE_FILE} "
            "shows why. Mend that, or leave the entry out of --watch."
        )
    return entries


def suite_of(names: Sequence[str]) -> list[dict[str, Any]]:
    """The entries of a suite for these tasks and suite files.

    Raises:
        ValueError: a name is neither a task of configs/suites/watch.yaml nor a file.
    """
    text = (importlib.resources.files("configs") / "suites" / "watch.yaml").read_text()
    known = {entry["task"]: entry for entry in yaml.safe_load(text)}
    entries = []
    for name in names:
        if name in known:
            entries.append(known[name])
        elif Path(name).is_file():
            entries += yaml.safe_load(Path(name).read_text())
        else:
            raise ValueError(f"watch has {name!r}, expected some of {', '.join(known)}, or a suite file (.yaml)")
    return entries


def in_own_process(device: str, stopped: Callable[[], bool] = lambda: False) -> Measure:
    """Measure by `python -m tasks`, without the variables of a launcher; ends early if `stopped`.

    Raises (by the function returned):
        MeasureError: the command failed; the message has its last lines.
    """

    def measure(suite: Path, checkpoint: Path, out: Path) -> bool:
        command = [sys.executable, "-m", "tasks", "--suite", str(suite), "--ckpt", str(checkpoint)]
        log = out.with_suffix(".log")
        with log.open("w") as file:
            child = subprocess.Popen(
                [*command, "--out", str(out), "--device", device],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=alone(os.environ),
            )
            while child.poll() is None:
                try:
                    child.wait(POLL_SECONDS)
                except subprocess.TimeoutExpired:
                    if stopped():
                        child.terminate()
        if child.returncode and stopped():
            return False
        if child.returncode:
            lines = "\n".join(log.read_text().strip().splitlines()[-5:])
            raise MeasureError(f"{log}: the measurement ended with status {child.returncode}:\n{lines}")
        return True

    return measure


def alone(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of a process that belongs to no group."""
    return {name: v for name, v in variables.items() if name not in LAUNCHER and not name.startswith("TORCHELASTIC")}


def _same(entries: Sequence[Entry], entry: Entry) -> Entry:
    return next(other for other in entries if other.label == entry.label)


def _row(step: int, entry: Entry, start: Entry | None) -> dict[str, Any]:
    """A row of the table: the headline metric, and its difference from the start."""
    report = entry.report
    metric = report.metrics[0]
    value = next(score.value for score in report.scores if score.metric == metric.name)
    row = {"step": step, "task": entry.label, "metric": metric.name, "unit": metric.unit, "value": value}
    if start is None:
        return row | {"start": value, "difference": 0.0, "low": 0.0, "high": 0.0, "verdict": ""}
    before = next(score.value for score in start.report.scores if score.metric == metric.name)
    row |= {"start": before, "difference": value - before, "low": None, "high": None, "verdict": NOT_COMPARED}
    compared = compare(start, entry, IntervalConfig())
    for _, line in compared[compared["metric"] == metric.name].iterrows():
        row |= {name: line[name] for name in ("low", "high", "verdict")}
    return row


def lines_of(rows: pd.DataFrame) -> list[str]:
    """A line for the user for each row."""
    return [_line(row) for row in rows.to_dict("records")]


def _line(row: Mapping[Hashable, Any]) -> str:
    value = f"watch: {row['task']} {row['metric']} {row['value']:.2f}"
    if not row["verdict"]:
        return f"{value} at the start"
    if row["verdict"] == NOT_COMPARED:
        return f"{value} ({row['difference']:+.2f} from the start; {NOT_COMPARED})"
    interval = f"{row['low']:+.2f} to {row['high']:+.2f}"
    return f"{value} ({row['difference']:+.2f} from the start, {interval}: {row['verdict']})"


def draw_curves(table: pd.DataFrame, file: Path) -> None:
    """Draw each task's difference from the start by step, with its interval."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for task, rows in table.groupby("task", sort=False):
        label = f"{task} {rows['metric'].iloc[0]} (start {rows['start'].iloc[0]:.1f})"
        line = axes.plot(rows["step"], rows["difference"], marker=".", label=label)[0]
        low, high = (pd.to_numeric(rows[name]) for name in ("low", "high"))
        axes.fill_between(rows["step"], low, high, color=line.get_color(), alpha=0.15)
    axes.axhline(0, color="gray", linestyle=":")
    axes.set(xlabel="optimizer step", ylabel="difference from the start", title=file.parent.name)
    axes.legend()
    with replacing(file) as path:
        figure.savefig(path, format="png", dpi=120)
