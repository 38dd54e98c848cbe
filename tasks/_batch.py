"""Every entry of a suite on every checkpoint: `python -m tasks --suite NAME --ckpt A --ckpt B --out DIR`.

A finished pair is never run again: its folder is named by a hash of config and weights. A pair that fails is a row
with its error, and the rest goes on.
"""

import contextlib
import hashlib
import importlib.resources
import json
import re
import shutil
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from tqdm import tqdm

from dino_dense import Backbone, Report, cli, distributed
from dino_dense.files import write_text
from dino_dense.report import Entry, check_out, environment, write_batch
from tasks._task import OtherRunError, RunOptions, Task, get, identity_of, open_backbone, run_one

REPORT_FILE = "report.json"
PATH_FIELDS = ("data", "distractors", "whiten", "only")  # that --data-root applies to
RANK_SECONDS = 60.0  # within which all processes meet an error that is the same for all
ENTRY_KEYS = ("task", "label", "preset", "config")


@dataclass(frozen=True)
class BatchOptions:
    """Which suite, which checkpoints, and where"""

    suite: str = ""
    """A suite of configs/suites by name (quickstart, dense, classification, paper), or a YAML file like them."""
    ckpt: tuple[str, ...] = ()
    """Checkpoints, as a task's --ckpt takes them: --ckpt A --ckpt B, or A,B."""
    out: str = "runs/batch"
    """Folder for the results. The same command runs what is not finished and writes the report anew. A finished pair
    is known by its config and weights: delete its folder if its data changed."""
    data_root: str | None = None
    """Folder that the suite's relative paths of data start from; default the current one."""
    arch: str | None = None
    """Architecture of all the checkpoints, where it cannot or should not be read from the files."""
    network: Literal["teacher", "student"] = "teacher"
    """Which network of a training file to measure."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu or cuda."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the backbone; reduced ones run under autocast."""
    seed: int = 0
    """Of random weights and of every draw."""
    launcher: Literal["none", "local", "slurm"] = "none"
    """none: one pair after another, here. local, slurm: a job a checkpoint, through submitit (pip install
    "dino_dense[slurm]")."""
    jobs: int = 1
    """Jobs that run at once with the local launcher; Slurm has its own queue."""
    partition: str | None = None
    """Slurm's partition."""
    hours: float = 24.0
    """Time limit of a job."""
    gpus: int = 1
    """GPUs of a job, where there are any."""
    cpus: int = 8
    """CPU cores of a Slurm job."""
    memory: int = 64
    """Memory of a Slurm job, GiB."""

    def __post_init__(self) -> None:
        if self.jobs < 1 or self.hours <= 0:
            raise ValueError(f"jobs is {self.jobs} and hours {self.hours}: expected 1 or more, and more than 0")


@dataclass(frozen=True)
class SuiteEntry:
    """One way to measure, of a suite."""

    label: str
    task: Task
    config: Any


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, write the report. 0 where every pair is finished, 1 where one failed."""
    options = cli.parse(
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
    """Run what is not finished, and write the report of all pairs into `options.out`.

    Raises:
        ValueError, OSError: the suite cannot be used. What goes wrong in a pair is in its report instead.
    """
    check_out(Path(options.out))
    suite = load_suite(options.suite, options.data_root)
    total = len(suite) * len(options.ckpt)
    entries: list[Entry] = []
    if options.launcher != "none":
        with tqdm(total=total, unit="pair", desc="batch") as bar, _reporting(entries, total, options):
            for entry in _run_jobs(options, suite):
                _note(entry, entries, bar)
        return entries
    with (
        distributed.session(options.device) as (world, device),
        tqdm(total=total, unit="pair", desc="batch", disable=not world.is_main) as bar,
        _reporting(entries, total, options if world.is_main else None),
    ):
        for spec, label in zip(options.ckpt, checkpoint_labels(options.ckpt), strict=True):
            for entry in _run_checkpoint(spec, label, suite, options, device, world):
                _note(entry, entries, bar if world.is_main else None)
    return entries


def _note(entry: Entry, entries: list[Entry], bar: "tqdm[Any] | None") -> None:
    entries.append(entry)
    if bar is not None:
        bar.update()
        bar.write(_line(entry))


@contextlib.contextmanager
def _reporting(entries: list[Entry], total: int, options: BatchOptions | None) -> Iterator[None]:
    """Write the report at the end, also of what an interrupted batch has; without options, nothing."""
    try:
        yield
    finally:
        if options is not None and entries:
            title = f"dino_dense: {Path(options.suite).stem}"
            if len(entries) < total:
                title += f" (interrupted: {len(entries)} of {total} pairs)"
            write_batch(entries, Path(options.out), title=title)
            print(f"Report: {Path(options.out) / 'index.html'}")


# --- The suite ---


def load_suite(name: str, data_root: str | None = None) -> list[SuiteEntry]:
    """The entries of a suite, every name and value checked before anything runs.

    Raises:
        FileNotFoundError: no such suite (with those there are).
        ValueError: the file is no list of entries, an unknown task, field or preset, or a label that is there twice.
    """
    text, path = _read_suite(name)
    try:
        records = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({str(error).splitlines()[0]}).") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records) or not records:
        raise ValueError(f"{path}: expected a list of entries, each with a task and its config.")
    entries = [_entry(record, path, data_root) for record in records]
    labels = [entry.label for entry in entries]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"{path}: two entries are called {label!r}; give each a label of its own.")
    return entries


def _read_suite(name: str) -> tuple[str, str]:
    """The text of a suite, and what to call it in errors."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such suite file.")
        return path.read_text(), str(path)
    folder = importlib.resources.files("configs") / "suites"
    names = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    if name not in names:
        raise FileNotFoundError(f"no suite {name!r}; there are: {', '.join(names)}, or name a .yaml file.")
    return (folder / f"{name}.yaml").read_text(), f"configs/suites/{name}.yaml"


def _entry(record: dict[str, Any], path: str, data_root: str | None) -> SuiteEntry:
    unknown = set(map(str, record)) - set(ENTRY_KEYS)
    if unknown or "task" not in record:
        found, expected = ", ".join(map(str, record)), ", ".join(ENTRY_KEYS[1:])
        raise ValueError(f"{path}: an entry has {found}; expected task, and any of {expected}.")
    label = str(record.get("label", record["task"]))
    if not re.fullmatch(r"\w[\w.+-]*", label):
        raise ValueError(f"{path}: label {label!r}; expected letters, digits, dots, plus, minus and underscores.")
    try:
        task = get(str(record["task"]))
        return SuiteEntry(label, task, cli.from_recipe(task.config, _values(record, task, data_root)))
    except ValueError as error:
        raise ValueError(f"{path}: entry {label}: {error}") from None


def _values(record: dict[str, Any], task: Task, data_root: str | None) -> dict[str, Any]:
    """What an entry says of its config, over its preset's constants."""
    values = record.get("config") or {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"config is {values!r}; expected fields and their values, as {{data: FOLDER}}.")
    if data_root is not None:
        given = {name: values[name] for name in PATH_FIELDS if isinstance(values.get(name), str)}
        values = {**values, **{name: str(Path(data_root) / path) for name, path in given.items()}}
    if "preset" not in record:
        return values
    if not task.presets:
        raise ValueError(f"preset {record['preset']!r}, but {task.name} has no presets.")
    return {**cli.load_protocol(task.presets, str(record["preset"])), **values}


def checkpoint_labels(specs: Sequence[str]) -> list[str]:
    """Short names for tables and folders, each once: the file's or run folder's name where that is enough.

    Raises:
        ValueError: a checkpoint is named twice.
    """
    if len(set(specs)) < len(specs):
        twice = next(spec for spec in specs if list(specs).count(spec) > 1)
        raise ValueError(f"checkpoint {twice} is named twice.")
    short = [_short_name(spec) for spec in specs]
    return [name if short.count(name) == 1 else spec for name, spec in zip(short, specs, strict=True)]


def _short_name(spec: str) -> str:
    if spec.partition(":")[0] in ("random", "timm", "hf-hub", "hf_hub"):
        return spec
    path = Path(spec)
    if path.suffix == ".safetensors" and path.stem in ("teacher", "last"):
        return path.resolve().parent.name
    return path.resolve().name.removesuffix(".safetensors").removesuffix(".pth")


# --- Pairs ---


def _run_checkpoint(
    spec: str,
    label: str,
    suite: Sequence[SuiteEntry],
    options: BatchOptions,
    device: torch.device,
    world: distributed.World,
) -> Iterator[Entry]:
    """Every entry of the suite on one checkpoint, which is loaded once."""
    run = _run_options(spec, options)
    folder = Path(options.out) / folder_name(spec)
    backbone: Backbone | None = None
    broken: Exception | None = None
    if any(entry.task.needs_backbone(entry.config) for entry in suite):
        try:
            backbone = open_backbone(run, device)
        except Exception as error:  # whatever a stranger's file does to us is a row of the report
            broken = error
    traces = [folder / f"{entry.label}.failed.{world.rank}.txt" for entry in suite]
    for trace in traces:
        trace.unlink(missing_ok=True)
    distributed.barrier()  # none takes a trace of an earlier batch for one of this
    for entry, trace in zip(suite, traces, strict=True):
        try:
            if broken is not None and entry.task.needs_backbone(entry.config):
                raise broken
            pair = folder / f"{entry.label}-{_digest(entry, run, backbone)}"
            report = _finished(pair)
            distributed.barrier()  # every process has looked before any writes
            if report is None:
                pieces = _pieces_for(entry, suite, backbone)
                report = _run_pair(entry, replace(run, out=str(pair)), device, world, backbone, pieces)
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
    """Whether every process met an error in this pair, so that the batch can go on.

    Where only some did, the others wait in the middle of a gather, and no collective call could ask them.
    """
    everyone = [trace.with_name(trace.name.replace(f".{world.rank}.txt", f".{rank}.txt")) for rank in range(world.size)]
    until = time.monotonic() + RANK_SECONDS
    while not (found := all(file.is_file() for file in everyone)) and time.monotonic() < until:
        time.sleep(0.1)
    return found


def _run_pair(
    entry: SuiteEntry,
    run: RunOptions,
    device: torch.device,
    world: distributed.World,
    backbone: Backbone | None,
    pieces: frozenset[str],
) -> Report:
    """One pair. What an unfinished run on other data left in its folder is thrown away: say, an image was mended."""

    def attempt() -> Report:
        return run_one(entry.task, run, entry.config, device=device, world=world, backbone=backbone, pieces=pieces)

    try:
        return attempt()
    except OtherRunError:
        distributed.barrier()
        if world.is_main:
            shutil.rmtree(str(run.out))
        distributed.barrier()
        return attempt()


def _run_options(spec: str, options: BatchOptions) -> RunOptions:
    names = ("arch", "network", "device", "dtype", "seed")
    return RunOptions(ckpt=spec, **{name: getattr(options, name) for name in names})


def _digest(entry: SuiteEntry, run: RunOptions, backbone: Backbone | None) -> str:
    """Says which config and weights a pair's folder is for."""
    used = backbone if entry.task.needs_backbone(entry.config) else None
    identity = identity_of(entry.task, run, entry.config, used)
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]


def _finished(pair: Path) -> Report | None:
    """The report of a pair that is done; None where there is none, or one that cannot be read."""
    try:
        report = Report.from_json((pair / REPORT_FILE).read_text())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return report if report.status == "ok" else None


def _pieces_for(entry: SuiteEntry, suite: Sequence[SuiteEntry], backbone: Backbone | None) -> frozenset[str]:
    """What the suite's tasks on the same data ask of this backbone, so that one pass over the images serves them."""
    pieces: set[str] = set()
    if backbone is not None:
        for other in suite:
            if getattr(other.config, "data", None) == getattr(entry.config, "data", None):
                with contextlib.suppress(ValueError):  # it will say so in a row of its own
                    pieces |= other.task.pieces(other.config, backbone)
    return frozenset(pieces)


def failed_report(entry: SuiteEntry, spec: str, error: BaseException, device: torch.device, run: RunOptions) -> Report:
    """A row that says what went wrong."""
    expected = isinstance(error, ValueError | OSError)
    return Report(
        task=entry.task.name,
        status="failed",
        metrics=entry.task.metrics,
        error=str(error) if expected and str(error) else f"{type(error).__name__}: {error}",
        config=cli.to_plain(entry.config),
        checkpoint={"spec": spec},
        environment=environment(device=device, dtype=run.dtype, seed=run.seed),
        free=tuple(sorted(entry.task.free)),
    )


def folder_name(spec: str) -> str:
    """A checkpoint's folder: the same whatever other checkpoints a batch has."""
    short = _short_name(spec)
    whole = spec if short == spec else str(Path(spec).resolve())
    plain = re.sub(r"[^\w.-]+", "-", short).strip("-.")[-80:] or "checkpoint"
    return f"{plain}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"


def _line(entry: Entry) -> str:
    """What a person reads when a pair is done."""
    report = entry.report
    head = f"{entry.label} · {entry.checkpoint}: "
    if report.status == "failed":
        return f"{head}failed: {report.error.splitlines()[0]}"
    if not report.scores:
        return head + (report.note or "done")
    unit = next(metric.unit for metric in report.metrics if metric.name == report.scores[0].metric)
    return f"{head}{report.scores[0].metric} {report.scores[0].value:.1f} {unit} ({report.seconds:.0f} s)"


# --- Jobs ---


def _run_jobs(options: BatchOptions, suite: Sequence[SuiteEntry]) -> Iterator[Entry]:
    """A job a checkpoint, through submitit; waits for each, and cancels what is left when it is stopped itself."""
    executor = _executor(options)
    labels = checkpoint_labels(options.ckpt)
    at_once = len(labels) if options.launcher == "slurm" else options.jobs
    pairs = list(zip(options.ckpt, labels, strict=True))
    for start in range(0, len(pairs), at_once):
        chosen = pairs[start : start + at_once]
        jobs = [executor.submit(_job, replace(options, launcher="none"), *pair) for pair in chosen]
        try:
            for job, (spec, label) in zip(jobs, chosen, strict=True):
                yield from _collect(job, spec, label, suite, options)
        finally:
            for job in jobs:
                if not job.done():
                    job.cancel()


def _executor(options: BatchOptions) -> Any:
    try:
        import submitit
    except ImportError:
        raise ValueError(
            f'--launcher {options.launcher} needs submitit: pip install "dino_dense[slurm]", or leave --launcher out.'
        ) from None
    executor = submitit.AutoExecutor(folder=Path(options.out) / "jobs", cluster=options.launcher)
    here = torch.cuda.device_count()  # submitit's local jobs see only the GPUs they ask for
    gpus = options.gpus if options.launcher == "slurm" else min(options.gpus, here)
    executor.update_parameters(name="dino_dense", timeout_min=round(60 * options.hours), gpus_per_node=gpus)
    if options.launcher == "slurm":
        executor.update_parameters(cpus_per_task=options.cpus, mem_gb=options.memory)
        if options.partition:
            executor.update_parameters(slurm_partition=options.partition)
    return executor


def _job(options: BatchOptions, spec: str, label: str) -> list[Entry]:
    """What a job does: all entries on one checkpoint. Its pairs are on disk; the main process writes the report."""
    suite = load_suite(options.suite, options.data_root)
    device = distributed.resolve_device(options.device)
    return list(_run_checkpoint(spec, label, suite, options, device, distributed.World()))


def _collect(job: Any, spec: str, label: str, suite: Sequence[SuiteEntry], options: BatchOptions) -> list[Entry]:
    """A job's entries; a job that died is a failed row for each."""
    try:
        return job.result()
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        died = ValueError(f"the job ended without a result ({reason[-1]}); its output is in {job.paths.stderr}.")
        run, folder = _run_options(spec, options), Path(options.out) / folder_name(spec)
        return [
            Entry(entry.label, label, failed_report(entry, spec, died, torch.device("cpu"), run), folder)
            for entry in suite
        ]
