"""The batch table as Markdown and LaTeX."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from dino_dense.report.cells import MINUS, Cell, Column, columns, headlines, mixed_data
from dino_dense.report.table import Entry, checkpoints

LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # directly after \\, a bracket or a star would be an argument
    "]": "{]}",
    "*": "{*}",
    MINUS: "$-$",
    "±": r"$\pm$",
    "–": "--",
    "·": r"\textperiodcentered{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
}
MARKDOWN_MARKS = re.compile(r"[\\|`*\[\]]|<(?=[A-Za-z/!?])|&(?=#?\w+;)")  # code, emphasis, links, tags, entities
KEY = (
    "Values ± standard error (frames of one video, copies of one original are drawn together); "
    "↑ higher is better, ↓ lower is better; the best of each column is bold."
)


@dataclass(frozen=True)
class _Table:
    """Columns with a heading and a note."""

    heading: str
    columns: list[Column]
    note: str = ""


def to_markdown(entries: Sequence[Entry], title: str) -> str:
    """The headline table, a table of each entry with more metrics, and the errors of failed pairs.

    Raises:
        ValueError: the entries are no table (`table.check_entries`).
    """
    lines = [f"# {escape_markdown(title)}", "", KEY, ""]
    for table in _tables(entries):
        rows = _rows(table, checkpoints(entries), escape_markdown, lambda text: f"**{text}**")
        if table.heading:
            lines += [f"## {escape_markdown(table.heading)}", ""]
        if table.note:
            lines += [escape_markdown(table.note), ""]
        lines += [rows.to_markdown(index=False, disable_numparse=True), ""]
    errors = [
        f"- **{escape_markdown(entry.label)}** of {escape_markdown(entry.checkpoint)}: "
        f"{escape_markdown(entry.report.error)}"
        for entry in failures(entries)
    ]
    return "\n".join([*lines, "## Failed", "", *errors, ""] if errors else lines)


def to_latex(entries: Sequence[Entry], title: str) -> str:
    """The same tables for a paper; needs the package booktabs.

    Raises:
        ValueError: the entries are no table (`table.check_entries`).
    """
    blocks = ["% Needs \\usepackage{booktabs}; names outside the Latin script need LuaLaTeX."]
    for table in _tables(entries):
        rows = _rows(table, checkpoints(entries), escape_latex, lambda text: rf"\textbf{{{text}}}")
        caption = " ".join(filter(None, [f"{table.heading or title}.", table.note, KEY]))
        blocks.append(_latex_table(rows, escape_latex(caption)))
    blocks += [
        rf"\noindent\textbf{{{escape_latex(entry.label)}}} of {escape_latex(entry.checkpoint)} failed: "
        rf"{escape_latex(entry.report.error)}\par"
        for entry in failures(entries)
    ]
    return "\n\n".join(blocks) + "\n"


def headline_frame(entries: Sequence[Entry]) -> pd.DataFrame:
    """The headline table as plain text: a row a checkpoint, a column an entry of the suite.

    Raises:
        ValueError: the entries are no table (`table.check_entries`).
    """
    return _rows(_Table("", headlines(entries)), checkpoints(entries), _one_line, str)


def failures(entries: Sequence[Entry]) -> list[Entry]:
    """The pairs that failed."""
    return [entry for entry in entries if entry.report.status == "failed"]


def escape_latex(text: str) -> str:
    """Text escaped for LaTeX, on one line."""
    return "".join(LATEX_ESCAPES.get(character, character) for character in _one_line(text))


def escape_markdown(text: str) -> str:
    """Text escaped for Markdown, also in a table cell."""
    return MARKDOWN_MARKS.sub(lambda mark: "&lt;" if mark[0] == "<" else f"\\{mark[0]}", _one_line(text))


def _tables(entries: Sequence[Entry]) -> list[_Table]:
    tables = [_Table("", headlines(entries))]
    for label, label_columns in columns(entries).items():
        note = "Measured on different data: not to be compared." if mixed_data(entries, label) else ""
        if len(label_columns) > 1 or note:
            tables.append(_Table(label, label_columns, note))
    return tables


def _rows(
    table: _Table, names: Sequence[str], escape: Callable[[str], str], bold: Callable[[str], str]
) -> pd.DataFrame:
    """A row for each checkpoint and a column for each metric, every text escaped."""
    headings = [escape(column_heading(column, with_label=not table.heading)) for column in table.columns]
    cells = [[_cell(cell, escape, bold) for cell in column.cells] for column in table.columns]
    rows = zip([escape(name) for name in names], *cells, strict=True)
    return pd.DataFrame(list(rows), columns=pd.Index(["checkpoint", *headings]))


def column_heading(column: Column, *, with_label: bool) -> str:
    """Label, metric, unit and direction, as far as known."""
    unit = f"({column.metric.unit})" if column.metric.unit else ""
    words = [column.label if with_label else "", column.metric.name, unit, column.arrow if column.metric.name else ""]
    return " ".join(word for word in words if word)


def _cell(cell: Cell, escape: Callable[[str], str], bold: Callable[[str], str]) -> str:
    text = escape(cell.text)
    value = escape(cell.value_text)
    return bold(value) + text[len(value) :] if cell.best else text


def _latex_table(rows: pd.DataFrame, caption: str) -> str:
    body = [" & ".join(map(str, row)) + r" \\" for row in rows.itertuples(index=False)]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{l{'r' * (rows.shape[1] - 1)}}}",
            r"\toprule",
            " & ".join(rows.columns) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _one_line(text: str) -> str:
    """White space and control characters as single spaces."""
    return re.sub(r"[\s\x00-\x1f\x7f]+", " ", text).strip()
