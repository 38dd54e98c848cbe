"""The texts of table cells, shared by Markdown, LaTeX and the page."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from dino_dense.report.record import Metric
from dino_dense.report.table import Entry, batch_frame, checkpoints, labels, metrics

MINUS = "−"
MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """One metric of one pair. Numbers are in the metric's unit, None if missing."""

    status: Literal["ok", "failed", "missing"]
    value: float | None
    stderr: float | None = None
    n: int | None = None
    published: float | None = None
    difference: float | None = None
    differs: str = ""
    """Differences that prevent a comparison with the published number."""
    percent: bool = True
    best: bool = False
    """Best of its column, or printed equal to the best."""

    @property
    def places(self) -> int:
        """Decimal places: one for percent, as papers print them; three for numbers below ten."""
        return 1 if self.percent or self.value is None or abs(self.value) >= 10 else 3

    @property
    def value_text(self) -> str:
        """The value, or the reason why it is missing."""
        if self.value is None:
            return {"failed": "failed", "missing": MISSING, "ok": "not scored"}[self.status]
        return number(self.value, self.places)

    @property
    def stderr_text(self) -> str:
        """The standard error after a ±, never rounded to 0; "" if unknown."""
        if self.stderr is None:
            return ""
        rounded = round(self.stderr, self.places)
        return f"± {self.stderr:.{self.places}f}" if rounded or not self.stderr else f"± {self.stderr:.1g}"

    @property
    def published_text(self) -> str:
        """The published number and the difference to it; "" if unknown."""
        if self.published is None or self.value is None:
            return ""
        known = f"{number(self.published, self.places)} published"
        if self.difference is None:
            return f"{known}, other {self.differs}"
        return f"{known}, {number(self.difference, self.places, sign=True)}"

    @property
    def text(self) -> str:
        """The whole cell on one line."""
        words = [self.value_text, self.stderr_text, f"({self.published_text})" if self.published_text else ""]
        return " ".join(word for word in words if word)


@dataclass(frozen=True)
class Column:
    """One metric of one entry of the suite, over all checkpoints."""

    label: str
    metric: Metric
    cells: tuple[Cell, ...]

    @property
    def arrow(self) -> str:
        """↑ if higher is better, ↓ if lower is better."""
        return "↑" if self.metric.higher_is_better else "↓"


def columns(entries: Sequence[Entry]) -> dict[str, list[Column]]:
    """The columns of each entry of the suite, its headline first; cells in the order of the checkpoints.

    Raises:
        ValueError: the entries do not form a table (`table.check_entries`).
    """
    frame = batch_frame(entries)
    return {
        label: [
            Column(label, metric, _cells(frame, label, metric, mark_best=not mixed_data(entries, label)))
            for metric in metrics(entries, label)
        ]
        for label in labels(entries)
    }


def headlines(entries: Sequence[Entry]) -> list[Column]:
    """The first column of each entry of the suite; a column without numbers if the entry never succeeded."""
    by_label = columns(entries)
    unknown = Metric("", unit="")
    statuses = {(entry.label, entry.checkpoint): entry.report.status for entry in entries}
    return [
        by_label[label][0]
        if by_label[label]
        else Column(
            label,
            unknown,
            tuple(Cell(statuses.get((label, row), "missing"), None) for row in checkpoints(entries)),
        )
        for label in labels(entries)
    ]


def mixed_data(entries: Sequence[Entry], label: str) -> bool:
    """Whether the data of an entry of the suite differ among checkpoints."""
    reports = [entry.report for entry in entries if entry.label == label and entry.report.status == "ok"]
    return len({report.data.get("sha256") for report in reports}) > 1


def number(value: float, places: int, *, sign: bool = False) -> str:
    """A number with a typographic minus, and a plus with `sign`. A number that rounds to 0 has no minus."""
    text = f"{value + 0.0:{'+' if sign else ''}.{places}f}"
    if not round(value, places):
        text = text.replace("-", "+" if sign else "")
    return text.replace("-", MINUS)


def _cells(frame: pd.DataFrame, label: str, metric: Metric, *, mark_best: bool) -> tuple[Cell, ...]:
    fields = frame[label][metric.name]
    statuses = frame[label][""]["status"]
    cells = [
        Cell(
            status=statuses[row],
            value=_known(fields.at[row, "value"]),
            stderr=_known(fields.at[row, "stderr"]),
            n=None if pd.isna(fields.at[row, "n"]) else int(fields.at[row, "n"]),
            published=_known(fields.at[row, "published"]),
            difference=_known(fields.at[row, "difference"]),
            differs=text if isinstance(text := fields.at[row, "differs"], str) else "",
            percent=metric.unit == "%",
        )
        for row in frame.index
    ]
    values = [cell.value for cell in cells if cell.value is not None]
    if not mark_best or len(values) < 2:
        return tuple(cells)
    best = max(values) if metric.higher_is_better else min(values)
    winner = next(cell.value_text for cell in cells if cell.value == best)
    return tuple(dataclasses.replace(cell, best=cell.value_text == winner) for cell in cells)


def _known(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
