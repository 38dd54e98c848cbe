"""The report page: one self-contained HTML file.

Names, errors and settings may come from untrusted files: Jinja escapes all of them. The page's content security policy
allows only its own script and style (by their hashes), and no request at all.
"""

import base64
import hashlib
import importlib.resources
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import jinja2
import pandas as pd
from markupsafe import Markup

from dino_dense.report.cells import Cell, Column, columns, headlines, mixed_data, number
from dino_dense.report.compare import not_compared, samples_text
from dino_dense.report.correlations import rank_correlations
from dino_dense.report.drawing import Curves, draw
from dino_dense.report.pictures import ShownPicture, read_pictures
from dino_dense.report.sampling import SMALL
from dino_dense.report.side_by_side import as_data, sample_tables
from dino_dense.report.table import Entry, checkpoints, labels
from dino_dense.report.texts import failures

PICTURES = 4  # of each pair: the report's first ones
SLUG = 60  # characters of a name in an address
PLOT = (4.0, 96.0)  # positions of the lowest and the highest number of a column, percent of the plot's width


@dataclass(frozen=True)
class _Plot:
    """A number on its column's scale; positions in percent of the plot's width."""

    dot: float
    low: float
    high: float
    mark: float | None = None
    """Position of the published number, or of 0 for a difference."""


class _Correlation(NamedTuple):
    """A row of `rank_correlations`."""

    first: str
    second: str
    rho: float
    n: int


def render_page(
    entries: Sequence[Entry],
    *,
    title: str,
    comparison: pd.DataFrame | None = None,
    pictures: Sequence[ShownPicture] = (),
    curves: Sequence[Curves] = (),
    now: datetime | None = None,
) -> str:
    """The whole page.

    Args:
        comparison: rows of `compare.compare_all`, for a separate section.
        pictures: of all entries together, for the summary (`read_pictures`).
        curves: charts of sweeps and training runs (`curves.read_curves`); with them, there may be no entries.
        now: the date on the page; default now.

    Raises:
        ValueError: the entries do not form a table (`table.check_entries`).
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("dino_dense.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": _breakable, "slugs": slugs}
    style, script = (_template_text(name) for name in ("page.css", "page.js"))
    return environment.get_template("page.html.j2").render(
        title=title,
        now=now or datetime.now(UTC),
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        checkpoints=checkpoints(entries),
        pictures=pictures,
        headlines=[(column, _column_plots(column)) for column in headlines(entries)] if entries or not curves else [],
        curves=_curves(curves),
        samples=[as_data(table) for table in sample_tables(entries)],
        sections=_sections(entries),
        failures=failures(entries),
        **_comparison(comparison),
        **(_correlations(rank_correlations(entries)) if entries else {"correlations": []}),
        seconds=sum(entry.report.seconds for entry in entries),
        show_value=_value_text,
        duration=_duration,
    )


def _curves(curves: Sequence[Curves]) -> list[dict[str, Any]]:
    anchors = slugs([part.title for part in curves])
    return [
        {"id": f"curves-{anchor}", "title": part.title, "text": part.text, "drawings": [draw(c) for c in part.charts]}
        for part, anchor in zip(curves, anchors, strict=True)
    ]


def _sections(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    names = labels(entries)
    return [_section(entries, label, f"measure-{slug}") for label, slug in zip(names, slugs(names), strict=True)]


def slugs(names: Sequence[str]) -> list[str]:
    """Distinct words of a-z, 0-9 and hyphens for names, for links that stay when the page is written again."""
    known: set[str] = set()
    words = []
    for name in names:
        word = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:SLUG] or "x"
        numbered = itertools.chain([word], (f"{word}-{number}" for number in itertools.count(2)))
        word = next(text for text in numbered if text not in known)
        known.add(word)
        words.append(word)
    return words


def _section(entries: Sequence[Entry], label: str, anchor: str) -> dict[str, Any]:
    """The section of one entry of the suite."""
    own_entries = [entry for entry in entries if entry.label == label]
    own_columns = columns(entries)[label]
    measured = [entry for entry in own_entries if entry.report.status == "ok"]
    return {
        "id": anchor,
        "label": label,
        "task": own_entries[0].report.task,
        "columns": [(column, _column_plots(column)) for column in own_columns],
        "data": _said_of(measured, _data_text),
        "notes": _said_of(measured, lambda entry: entry.report.note),
        "sources": _sources(measured, own_columns),
        "mixed": mixed_data(entries, label),
        "pairs": own_entries,
        "pictures": [(entry.checkpoint, shown) for entry in measured if (shown := _pictures(entry))],
    }


def _said_of(entries: Sequence[Entry], say: Any) -> list[tuple[str, str]]:
    """Distinct texts, each with the names of its checkpoints ("" for all)."""
    texts: dict[str, list[str]] = {}
    for entry in entries:
        if text := say(entry):
            texts.setdefault(text, []).append(entry.checkpoint)
    return [(text, "" if len(names) == len(entries) else ", ".join(names)) for text, names in texts.items()]


def _data_text(entry: Entry) -> str:
    data = entry.report.data
    words = [f"{data.get('name', 'unknown data')}, {data.get('n', '?')} {data.get('unit', '')}".strip()]
    if data.get("dataset"):
        words.append(f"data set: {data['dataset']}")
    if data.get("sha256"):
        words.append(f"file list {str(data['sha256'])[:12]}")
    return " · ".join(words)


def _sources(entries: Sequence[Entry], own_columns: Sequence[Column]) -> list[str]:
    """Sources of the published numbers of a section."""
    known = [entry.report.published(column.metric.name) for entry in entries for column in own_columns]
    return list(dict.fromkeys(f"{number.source} ({number.benchmark})" for number in known if number))


def _column_plots(column: Column) -> list[_Plot | None]:
    """The plot of each number of a column, on the range of the column with its error bars."""
    ends = [end for cell in column.cells if cell.value is not None for end in (*_bar(cell), *_mark(cell))]
    if not ends:
        return [None] * len(column.cells)
    scale = _Scale(min(ends), max(ends))
    return [_plot(cell, scale) for cell in column.cells]


def _plot(cell: Cell, scale: "_Scale") -> _Plot | None:
    if cell.value is None:
        return None
    low, high = map(scale, _bar(cell))
    return _Plot(scale(cell.value), low, high, next(map(scale, _mark(cell)), None))


def _bar(cell: Cell) -> tuple[float, float]:
    value, stderr = cell.value or 0.0, cell.stderr or 0.0
    return value - stderr, value + stderr


def _mark(cell: Cell) -> list[float]:
    """The published number if it is on the same data; other numbers do not fit this scale."""
    return [] if cell.published is None or cell.difference is None else [cell.published]


@dataclass(frozen=True)
class _Scale:
    """Maps a number to its position in a plot."""

    low: float
    high: float

    def __call__(self, value: float) -> float:
        if self.high == self.low:
            return sum(PLOT) / 2
        share = (value - self.low) / (self.high - self.low)
        return round(PLOT[0] + share * (PLOT[1] - PLOT[0]), 2)


def _correlations(table: pd.DataFrame) -> dict[str, Any]:
    """The section of rank correlations: a row for each later entry, a column for each earlier; none without numbers."""
    scale = _Scale(-1.0, 1.0)
    cells = {
        (row.first, row.second): {
            "rho": number(row.rho, 2),
            "n": row.n,
            "plot": _Plot(scale(row.rho), scale(min(0.0, row.rho)), scale(max(0.0, row.rho)), mark=scale(0.0)),
        }
        for row in map(_Correlation._make, table.itertuples(index=False, name=None))
    }
    firsts, seconds = (list(dict.fromkeys(map(str, table[name]))) for name in ("first", "second"))
    rows = [(second, [cells.get((first, second)) for first in firsts]) for second in seconds]
    return {"correlated": firsts, "correlations": rows, "correlated_ids": slugs(seconds)}


def _comparison(comparison: pd.DataFrame | None) -> dict[str, Any]:
    """The section of a comparison; empty lists without a comparison."""
    if comparison is None or comparison.empty:
        return {"compared": [], "not_compared": [], "baselines": [], "confidence": "", "resamples": 0, "small": SMALL}
    rows = comparison[comparison["reason"] == ""]
    return {
        "compared": _compared(rows),
        "not_compared": not_compared(comparison),
        "baselines": list(rows["baseline"].unique()),
        "confidence": f"{100 * comparison['confidence'].iloc[0]:.4g}",
        "resamples": int(comparison["bootstrap"].iloc[0]),
        "small": SMALL,
    }


def _compared(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a comparison for the page; the plots of a metric share a scale."""
    shown: list[dict[str, Any]] = []
    for (_, _), group in rows.groupby(["entry", "metric"], sort=False):
        scale = _Scale(min(0.0, group["low"].min()), max(0.0, group["high"].max()))
        for row in group.to_dict("records"):
            places = 1 if row["unit"] == "%" else 3
            texts = {name: number(row[name], places) for name in ("baseline_value", "candidate_value")}
            texts |= {name: number(row[name], places, sign=True) for name in ("difference", "low", "high")}
            texts["n"] = samples_text(int(row["n"]), int(row["clusters"]))
            plot = _Plot(scale(row["difference"]), scale(row["low"]), scale(row["high"]), mark=scale(0.0))
            shown.append({"row": row, "text": texts, "plot": plot})
    names = [" ".join(str(item["row"][key]) for key in ("entry", "metric", "candidate")) for item in shown]
    return [{**item, "id": slug} for item, slug in zip(shown, slugs(names), strict=True)]


def _pictures(entry: Entry) -> list[ShownPicture]:
    return read_pictures(entry.folder, entry.report.pictures[:PICTURES])


def _breakable(name: str) -> Markup:
    """A long name with allowed line breaks after its separators."""
    return Markup("<wbr>").join(re.split(r"(?<=[_:/.,-])", name))


def _value_text(value: Any) -> str:
    """A setting as written on the command line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _duration(seconds: float) -> str:
    """12.3 s, 4 min 10 s or 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _template_text(name: str) -> str:
    return importlib.resources.files("dino_dense.report").joinpath("templates", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The CSP source expression that allows exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
