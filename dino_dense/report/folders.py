"""Files that say whose results a folder holds."""

from pathlib import Path

PAIRS_FILE = "pairs.csv"
"""Marks a folder as that of a batch's or comparison's report."""
TASK_FILE = "run.json"
"""Marks a folder as that of a task's results."""


def check_out(out: Path) -> None:
    """ValueError for a folder whose files a report would replace."""
    if (out / TASK_FILE).is_file():
        raise ValueError(f"{out}: holds the results of a task ({TASK_FILE}). Choose another --out.")
