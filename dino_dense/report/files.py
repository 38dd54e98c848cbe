"""The files of a batch: tables for programs, for papers and for the browser."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dino_dense.files import write_bytes, write_text
from dino_dense.report.compare import not_compared, readable
from dino_dense.report.correlations import rank_correlations
from dino_dense.report.drawing import Curves
from dino_dense.report.folders import PAIRS_FILE, check_out
from dino_dense.report.page import render_page
from dino_dense.report.pictures import read_pictures
from dino_dense.report.record import Picture
from dino_dense.report.table import Entry, batch_frame, flat_frame, pairs_frame
from dino_dense.report.texts import escape_markdown, to_latex, to_markdown

PAGE_FILE, COMPARISON_FILE = "index.html", "comparison.html"
CORRELATIONS_FILE = "correlations.csv"


def write_batch(
    entries: Sequence[Entry],
    out: Path,
    *,
    title: str = "Results",
    pictures: Sequence[Picture] = (),
    curves: Sequence[Curves] = (),
) -> None:
    """Write `results.csv`, `.parquet`, `.md` and `.tex`, `pairs.csv` and `index.html`, each atomically.

    Args:
        pictures: of all pairs together, in `out`, for the page's summary.
        curves: charts for the page.

    Raises:
        ValueError: the entries do not form a table (`table.check_entries`); nothing is written then.
    """
    page = render_page(entries, title=title, pictures=read_pictures(out, pictures), curves=curves)
    write_tables(entries, out, title=title)
    write_text(out / PAGE_FILE, page)


def write_tables(entries: Sequence[Entry], out: Path, *, title: str) -> None:
    """Write the files of `write_batch`, except the page, and `correlations.csv` if there are rank correlations.

    Raises:
        ValueError: the folder has a task's results, with files of the same names.
    """
    check_out(out)
    flat = flat_frame(batch_frame(entries))
    write_text(out / "results.csv", flat.to_csv())
    write_bytes(out / "results.parquet", flat.to_parquet())
    write_text(out / "results.md", to_markdown(entries, title))
    write_text(out / "results.tex", to_latex(entries, title))
    correlations = rank_correlations(entries)
    if len(correlations):
        write_text(out / CORRELATIONS_FILE, correlations.to_csv(index=False))
    else:
        (out / CORRELATIONS_FILE).unlink(missing_ok=True)
    write_text(out / PAIRS_FILE, pairs_frame(entries).to_csv(index=False))


def write_comparison(
    entries: Sequence[Entry], comparison: pd.DataFrame, out: Path, *, title: str, curves: Sequence[Curves] = ()
) -> None:
    """Write `comparison.csv`, `.md` and `.html` (the page of all reports), and the files of `write_tables`.

    Args:
        comparison: rows of `compare.compare_all`.
        curves: charts for the page; with them, there may be no entries, and only the page is written.
    """
    page = render_page(entries, title=title, comparison=comparison, curves=curves)
    if not entries:
        check_out(out)
        write_text(out / COMPARISON_FILE, page)
        return
    write_tables(entries, out, title=title)
    write_text(out / "comparison.csv", comparison.to_csv(index=False))
    write_text(out / "comparison.md", _comparison_markdown(comparison, title))
    write_text(out / COMPARISON_FILE, page)


def _comparison_markdown(comparison: pd.DataFrame, title: str) -> str:
    table = readable(comparison, escape_markdown)
    lines = [f"# {escape_markdown(title)}", ""]
    if len(table):
        lines += [table.to_markdown(index=False, disable_numparse=True), ""]
    return "\n".join([*lines, *(f"- {escape_markdown(line)}" for line in not_compared(comparison)), ""])
