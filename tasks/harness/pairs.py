"""Pairs of checkpoint and suite entry: each runs once; a failed pair becomes a row with its error."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_dense import Report, distributed
from dino_dense.config import schema
from dino_dense.files import write_text
from dino_dense.report import REPORT_FILE, environment
from tasks.harness.options import BatchOptions, MeasuringOptions, RunOptions
from tasks.harness.runner import Opened, identity_of, open_backbone, open_data, run_one, versions_of
from tasks.harness.session import OtherRunError, changed_versions
from tasks.harness.suites import SuiteEntry

if TYPE_CHECKING:
    import torch

    from dino_dense import Backbone
    from dino_dense.report import Entry

RANK_SECONDS = 60.0  # an error that all processes have reaches all of them within this time


def checkpoint_labels(specs: Sequence[str]) -> list[str]:
    """Short unique names for tables and folders: the file's or run folder's name if it is unique.

    Raises:
        ValueError: a checkpoint is named twice.
    """
    if len(set(specs)) < len(specs):
        twice = next(spec for spec in specs if list(specs).count(spec) > 1)
        raise ValueError(f"checkpoint {twice} is named twice.")
    short = [_short_name(spec) for spec in specs]
    return [name if short.count(name) == 1 else spec for name, spec in zip(short, specs, strict=True)]


def _short_name(spec: str) -> str:
    from dino_dense.backbone.load import split_name

    if split_name(spec)[0]:
        return spec
    path = Path(spec)
    if path.suffix == ".safetensors" and path.stem in ("teacher", "last"):
        return path.resolve().parent.name
    return path.resolve().name.removesuffix(".safetensors").removesuffix(".pth")


def open_suite(suite: Sequence[SuiteEntry]) -> dict[str, Opened | Exception]:
    """Open the data of every entry before any measurement: label -> the data, or the error."""
    opened: dict[str, Opened | Exception] = {}
    for entry in suite:
        try:
            opened[entry.label] = open_data(entry.task, entry.config)
        except Exception as error:  # a task of another package may raise anything; the report shows it
            opened[entry.label] = error
    return opened


def problems(opened: Mapping[str, Opened | Exception]) -> list[str]:
    """A line for each entry with unusable data."""
    return [f"{label}: {error}" for label, error in opened.items() if isinstance(error, Exception)]


def run_checkpoint(
    spec: str,
    label: str,
    suite: Sequence[SuiteEntry],
    opened: Mapping[str, Opened | Exception],
    options: BatchOptions,
    device: torch.device,
    world: distributed.World,
) -> Iterator[Entry]:
    """Run every entry of the suite on one checkpoint, which is loaded once; `opened` is from `open_suite`."""
    from dino_dense.report import Entry

    run = run_options(spec, options)
    folder = Path(options.out) / folder_name(spec)
    backbone: Backbone | None = None
    broken: Exception | None = None
    if any(entry.task.needs_backbone(entry.config) for entry in suite):
        try:
            backbone = open_backbone(run, device)
        except Exception as error:  # any error of an unknown file becomes a row of the report
            broken = error
    traces = [folder / f"{entry.label}.failed.{world.rank}.txt" for entry in suite]
    for trace in traces:
        trace.unlink(missing_ok=True)
    distributed.barrier()  # error traces of an earlier batch are removed before this batch writes any
    for entry, trace in zip(suite, traces, strict=True):
        try:
            if broken is not None and entry.task.needs_backbone(entry.config):
                raise broken
            used = backbone if entry.task.needs_backbone(entry.config) else None
            pair = folder / f"{entry.label}-{_digest(entry, run, used)}"
            data = opened[entry.label]
            # Files that are only scored, such as masks of another program, may have changed: that takes seconds.
            report = finished_report(pair, versions_of(entry.task, used), data) if used is not None else None
            distributed.barrier()  # all processes check before any writes
            if report is None:
                if isinstance(data, Exception):
                    raise data
                pieces = _pieces_for(entry, suite, backbone)
                report = _run_pair(entry, replace(run, out=str(pair)), device, world, backbone, data, pieces)
            yield Entry(entry.label, label, report, pair)
        except Exception as error:
            report = failed_report(entry, spec, error, device, run)
            write_text(trace, "".join(traceback.format_exception(error)))
            if not _all_failed(trace, world):
                raise OSError(
                    f"{entry.label} of {label} failed in process {world.rank} alone, and the others wait for it: "
                    f"{report.error} (more in {trace}). Mend that, or take the pair out, and run the same command."
                ) from error
            yield Entry(entry.label, label, report, folder)


def _all_failed(trace: Path, world: distributed.World) -> bool:
    """Whether every process had an error in this pair, so that the batch can continue.

    If only some had, the others wait in a collective call, so they can only be asked through files.
    """
    everyone = [trace.with_name(trace.name.replace(f".{world.rank}.txt", f".{rank}.txt")) for rank in range(world.size)]
    until = time.monotonic() + RANK_SECONDS
    while not (all_present := all(file.is_file() for file in everyone)) and time.monotonic() < until:
        time.sleep(0.1)
    return all_present


def _run_pair(
    entry: SuiteEntry,
    run: RunOptions,
    device: torch.device,
    world: distributed.World,
    backbone: Backbone | None,
    opened: Opened,
    pieces: frozenset[str],
) -> Report:
    """Run a pair. Deletes the partial results of a run on other data (for example, an image was replaced)."""

    def attempt() -> Report:
        return run_one(
            entry.task, run, entry.config, device=device, world=world, backbone=backbone, opened=opened, pieces=pieces
        )

    try:
        return attempt()
    except OtherRunError:
        distributed.barrier()
        if world.is_main:
            shutil.rmtree(str(run.out))
        distributed.barrier()
        return attempt()


def run_options(spec: str, options: BatchOptions) -> RunOptions:
    shared = {field.name: getattr(options, field.name) for field in dataclasses.fields(MeasuringOptions)}
    return RunOptions(ckpt=spec, **shared)


def _digest(entry: SuiteEntry, run: RunOptions, backbone: Backbone | None) -> str:
    """A hash of config and weights for a pair's folder."""
    identity = identity_of(entry.task, run, entry.config, backbone)
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]


def finished_report(pair: Path, versions: Mapping[str, Any], opened: Opened | Exception) -> Report | None:
    """The report of a finished pair; None if missing, unreadable, or of other versions or data.

    Data that cannot be opened today leave the report as it is.
    """
    try:
        report = Report.from_json((pair / REPORT_FILE).read_text())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    current = not changed_versions(pair, {"versions": versions})
    if isinstance(opened, Opened):
        current = current and report.data.get("sha256") == opened.data.facts.sha256
    return report if report.status == "ok" and current else None


def _pieces_for(entry: SuiteEntry, suite: Sequence[SuiteEntry], backbone: Backbone | None) -> frozenset[str]:
    """The pieces that the suite's tasks on the same data need, so that they share one pass over the images."""
    pieces: set[str] = set()
    if backbone is not None:
        for other in suite:
            if getattr(other.config, "data", None) == getattr(entry.config, "data", None):
                with contextlib.suppress(ValueError):  # the task's own row will report it
                    pieces |= other.task.pieces(other.config, backbone)
    return frozenset(pieces)


def failed_report(
    entry: SuiteEntry, spec: str, error: BaseException, device: torch.device | None, run: RunOptions
) -> Report:
    """The report of a failed pair."""
    expected = isinstance(error, ValueError | OSError)
    return Report(
        task=entry.task.name,
        status="failed",
        metrics=entry.task.metrics,
        error=str(error) if expected and str(error) else f"{type(error).__name__}: {error}",
        config=schema.to_plain(entry.config),
        checkpoint={"spec": spec},
        environment=environment(device=device, dtype=run.dtype, seed=run.seed),
        free=entry.task.free_fields(),
    )


def folder_name(spec: str) -> str:
    """A checkpoint's folder name, independent of the other checkpoints of a batch."""
    short = _short_name(spec)
    whole = spec if short == spec else str(Path(spec).resolve())
    plain = re.sub(r"[^\w.-]+", "-", short).strip("-.")[-80:] or "checkpoint"
    return f"{plain}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"


def pair_line(entry: Entry) -> str:
    """The line to print when a pair is finished."""
    report = entry.report
    head = f"{entry.label} · {entry.checkpoint}: "
    if report.status == "failed":
        return f"{head}failed: {report.error.splitlines()[0]}"
    if not report.scores:
        return head + (report.note or "done")
    unit = next(metric.unit for metric in report.metrics if metric.name == report.scores[0].metric)
    return f"{head}{report.scores[0].metric} {report.scores[0].value:.1f} {unit} ({report.seconds:.0f} s)"
