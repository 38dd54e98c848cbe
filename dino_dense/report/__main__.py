"""Show reports in one table, and test whether checkpoints differ by more than the choice of samples explains."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from dino_dense.config import command_line
from dino_dense.config.schema import path
from dino_dense.report.intervals import IntervalConfig

if TYPE_CHECKING:
    from dino_dense.report.table import Entry


@dataclass(frozen=True)
class ReportConfig(IntervalConfig):
    """Input and output"""

    reports: tuple[str, ...] = path(())
    """report.json files, folders with a report.json, or batch folders (all reports below, named by folder). The page
    also has charts of sweeps' folders and of training runs' folders, which need no report."""
    baseline: str | None = None
    """Checkpoint to compare the others with, by its name in the table; default the first."""
    out: str | None = path()
    """Folder for comparison.csv, .md and .html, and the tables of all reports; without it, only print."""
    open: bool = False
    """Open comparison.html in the browser, if there is a graphical display; needs --out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.reports:
            raise ValueError("reports is empty: expected a JSON file or a folder of results")
        if self.open and not self.out:
            raise ValueError("open is on, but out is empty: name a folder for the page with --out")


def baseline_first(entries: list[Entry], name: str) -> list[Entry]:
    """The entries with this checkpoint's first; ValueError if it has none."""
    names = list(dict.fromkeys(entry.checkpoint for entry in entries))
    if name not in names:
        raise ValueError(f"baseline is {name}: expected one of {', '.join(names)}")
    return sorted(entries, key=lambda entry: entry.checkpoint != name)


def main() -> int:
    """Read, compare, print. The exit status is 1 if a run failed or could not be compared."""
    config: ReportConfig = command_line.parse(
        ReportConfig,
        prog="python -m dino_dense.report",
        description=f"{__doc__} Checkpoints are compared on the same samples, with paired bootstrap intervals.",
        positional="reports",
    )
    from dino_dense.report.browser import open_page
    from dino_dense.report.compare import compare_all, not_compared, readable
    from dino_dense.report.curves import is_run, read_curves
    from dino_dense.report.files import COMPARISON_FILE, write_comparison
    from dino_dense.report.folders import check_out
    from dino_dense.report.merge import read_entries
    from dino_dense.report.texts import failures, headline_frame

    if config.out:
        check_out(Path(config.out))
    paths = [Path(path) for path in config.reports]
    measured = [path for path in paths if not is_run(path)]
    entries = read_entries(measured) if measured else []
    curves = read_curves(paths, entries)
    if config.baseline is not None:
        entries = baseline_first(entries, config.baseline)
    how = IntervalConfig(**{field.name: getattr(config, field.name) for field in fields(IntervalConfig)})
    comparison = compare_all(entries, how)
    if entries:
        print(f"\n{headline_frame(entries).to_string(index=False)}\n")
    compared, left_out = readable(comparison), not_compared(comparison)
    if len(compared):
        print(f"{compared.to_string(index=False)}\n")
    for entry in failures(entries):
        print(f"failed: {entry.label} of {entry.checkpoint}: {entry.report.error}")
    for line in left_out:
        print(f"not compared: {line}")
    if config.out:
        write_comparison(entries, comparison, Path(config.out), title="Comparison", curves=curves)
        print(f"Page and tables: {config.out}")
        if config.open:
            open_page(Path(config.out) / COMPARISON_FILE)
    return 1 if left_out or failures(entries) else 0


if __name__ == "__main__":
    command_line.run(main)
