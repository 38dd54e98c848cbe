"""Marker files of results folders."""

from pathlib import Path

PAIRS_FILE = "pairs.csv"
"""Marks the folder of a batch's or comparison's report."""
REPORT_FILE = "report.json"
"""A task's report, in its results folder."""
SWEEP_FILE = "sweep.csv"
"""The table of a sweep, in its results folder."""
TASK_FILE = "run.json"
"""Marks the results folder of a task."""


def check_out(out: Path) -> None:
    """Raise ValueError for a folder with files that a report would replace."""
    if (out / TASK_FILE).is_file():
        raise ValueError(f"{out}: holds the results of a task ({TASK_FILE}). Choose another --out.")
