"""Run every entry of a suite on every checkpoint: `python -m tasks --suite NAME --ckpt A --ckpt B --out DIR`.

A finished pair is not run again, unless its data, pixel statistics or versions changed: its folder is named by a hash
of config and weights. A failed pair becomes a row with its error, and the batch continues.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dino_dense import distributed
from dino_dense.config import command_line
from dino_dense.progress import Progress, progress
from dino_dense.report import check_out
from tasks.harness.jobs import run_jobs
from tasks.harness.options import BatchOptions
from tasks.harness.pairs import checkpoint_labels, open_suite, pair_line, problems, run_checkpoint
from tasks.harness.suites import load_suite

if TYPE_CHECKING:
    from dino_dense.report import Entry


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, write the report. Returns 0 if all pairs finished, 1 if one failed."""
    options = command_line.parse(
        BatchOptions,
        prog="python -m tasks",
        description="Measure checkpoints with every entry of a suite, and write one report.",
        argv=argv,
    )
    if not options.suite or not options.ckpt:
        raise ValueError("expected --suite (a name or a YAML file) and one --ckpt or more; see --help")
    entries = run_batch(options)
    return int(any(entry.report.status == "failed" for entry in entries))


def run_batch(options: BatchOptions) -> list[Entry]:
    """Run the unfinished pairs, and write the report of all pairs into `options.out`.

    Raises:
        ValueError, OSError: the suite is unusable. Errors of a pair are in its report instead.
    """
    check_out(Path(options.out))
    suite = load_suite(options.suite, options.data_root)
    total = len(suite) * len(options.ckpt)
    entries: list[Entry] = []
    if options.launcher != "none":
        with progress(total, unit="pair", desc="batch") as bar, _reporting(entries, total, options):
            for entry in run_jobs(options, suite):
                _note(entry, entries, bar)
        return entries
    with distributed.session(options.device) as (world, device):
        with (
            progress(total, unit="pair", desc="batch", disable=not world.is_main) as bar,
            _reporting(entries, total, options if world.is_main else None),
        ):
            opened = open_suite(suite)
            if world.is_main and (lines := problems(opened)):
                count = f"{len(lines)} of {len(suite)} entries cannot be measured; the others are"
                bar.write("\n  ".join([f"{count}:", *lines]), file=sys.stderr)
            for spec, label in zip(options.ckpt, checkpoint_labels(options.ckpt), strict=True):
                for entry in run_checkpoint(spec, label, suite, opened, options, device, world):
                    _note(entry, entries, bar if world.is_main else None)
        # A process that ends with status 1 makes torchrun end the others: not before the report is written.
        distributed.barrier()
    return entries


def _note(entry: Entry, entries: list[Entry], bar: Progress | None) -> None:
    entries.append(entry)
    if bar is not None:
        bar.update()
        bar.write(pair_line(entry))


@contextlib.contextmanager
def _reporting(entries: list[Entry], total: int, options: BatchOptions | None) -> Iterator[None]:
    """Write the report at the end, also of an interrupted batch; does nothing without options."""
    from dino_dense.report import open_page, write_batch

    try:
        yield
    finally:
        if options is not None and entries:
            title = f"dino_dense: {Path(options.suite).stem}"
            if len(entries) < total:
                title += f" (interrupted: {len(entries)} of {total} pairs)"
            write_batch(entries, Path(options.out), title=title)
            page = Path(options.out) / "index.html"
            print(f"Report: {page}")
            if options.open and len(entries) == total:
                open_page(page)
