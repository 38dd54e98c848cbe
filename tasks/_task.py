"""What a task is, and the runner around it: seeds, paths, timing, provenance. A task owns only the science."""

import dataclasses
import difflib
import hashlib
import importlib
import json
import os
import pkgutil
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from dino_dense import cli, distributed
from dino_dense.backbone import Backbone, load_backbone
from dino_dense.files import clear_unfinished, write_text
from dino_dense.report import (
    PAIRS_FILE,
    TASK_FILE,
    Metric,
    Picture,
    Report,
    Score,
    environment,
    peak_memory_mib,
    reset_peak_memory,
)

ENTRY_POINT_GROUP = "dino_dense.tasks"
IDENTITY_FILE = TASK_FILE
SAMPLES_FILE = "samples.csv"
COMMANDS = {
    "attention": "Look: attention, principal components, correspondence, of images and videos.",
    "studio": "Look in the browser: click an object in your own video, and play its masks.",
}
"""Public modules that make pictures and measure nothing, so that they are commands but no tasks: what number there is
to their pictures, a task gives (attention's is `saliency --method attention`, masks' is `davis`)."""
LIBRARY = frozenset({"see"})
"""Public modules that are for notebooks alone."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class OtherRunError(ValueError):
    """A results folder that holds what another run made. The message says what differs."""


@dataclass(frozen=True)
class RunOptions:
    """Which backbone, where, and how (every task)"""

    ckpt: str | None = None
    """Checkpoint file or run folder, published .pth, timm:NAME, hf-hub:NAME (these download) or random:NAME."""
    out: str | None = None
    """Folder for results; default runs/TASK/CHECKPOINT-HASH. The same command goes on where it stopped."""
    arch: str | None = None
    """Architecture, where it cannot or should not be read from the file (any timm name)."""
    network: Literal["teacher", "student"] = "teacher"
    """Which network of a training file to measure (the paper measures the teacher)."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu or cuda."""
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the backbone; reduced ones run under autocast."""
    seed: int = 0
    """Of random weights and of every draw."""


@dataclass(frozen=True)
class DataFacts:
    """Which data a number was measured on."""

    name: str
    """As people call it; says so where it is the embedded set."""
    root: str
    n: int
    """How many of `unit`."""
    unit: str
    """images, sequences, ..."""
    sha256: str
    """Of the list of files (names and sizes)."""
    benchmark: str | None = None
    """The published benchmark this is, complete and unchanged; None for any other data."""


@dataclass(frozen=True)
class Outcome:
    """What a task returns."""

    scores: tuple[Score, ...]
    data: DataFacts
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """Further tables by file name without ending; the runner writes each as CSV."""
    note: str = ""
    """What a reader must know to read the number."""
    samples: pd.DataFrame | None = None
    """Column `sample` (its name, unique), then a column a metric, named as the metric and in its unit, whose mean
    over the rows with a value is that metric's score: what paired comparisons of two checkpoints draw from."""
    pictures: tuple[Picture, ...] = ()
    """Image files the task wrote under `context.folder(...)`; the first ones say most."""


@dataclass(frozen=True)
class Context:
    """What the runner lends a task."""

    out: Path
    device: torch.device
    world: distributed.World = field(default_factory=distributed.World)
    identity: dict[str, Any] = field(default_factory=dict)
    """What makes these results these: they are kept apart from those of any other run."""
    pieces: frozenset[str] = frozenset()
    """Further pieces of image features (`_features`) that later tasks will ask for: extracted in one go."""
    seed: int = 0
    """Of every draw."""

    def bind(self, data: DataFacts) -> None:
        """Say which data the task's files are made from, before any is written or reused.

        Raises:
            OtherRunError: the results folder holds files made from other data, or by something else.
        """
        self.identity["data_sha256"] = data.sha256
        _check_same_run(self.out, self.identity)
        distributed.barrier()  # every process has looked before any writes

    def folder(self, name: str = "") -> Path:
        """A folder for the task's files, made on first use, so that a run that fails early leaves nothing."""
        path = self.out / name
        path.mkdir(parents=True, exist_ok=True)
        if self.identity and self.world.is_main and not (self.out / IDENTITY_FILE).exists():
            write_text(self.out / IDENTITY_FILE, json.dumps(self.identity, indent=2) + "\n")
        return path


Run = Callable[[Backbone | None, Any, Context], Outcome]


@dataclass(frozen=True)
class Task:
    """One way to measure a backbone: a value, found by its module's name."""

    name: str
    """The module's name: `python -m tasks.NAME`."""
    summary: str
    """One line, for help texts and tables."""
    source: str
    """The paper or script whose protocol this is."""
    config: type
    """Frozen dataclass, every field defaulted and documented."""
    metrics: tuple[Metric, ...]
    """Declared metrics; the first is the headline."""
    run: Run
    smoke: Any
    """A config that takes seconds on the embedded data."""
    presets: str = ""
    """Prefix of the protocol files that `--preset` may name; "" where there are none."""
    free: frozenset[str] = frozenset()
    """Fields that change no result, only speed or memory: a run may go on with other values of them."""
    needs_backbone: Callable[[Any], bool] = lambda config: True
    """Whether a run with this config uses a backbone at all."""
    pieces: Callable[[Any, Backbone], frozenset[str]] = lambda config, backbone: frozenset()
    """Pieces of image features (`_features`) that a run asks for, so that tasks on one data set share one pass."""


def names() -> list[str]:
    """Every task: the public modules of `tasks`, and the entry points of other packages."""
    return sorted({*_own_names(), *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def _own_names() -> list[str]:
    import tasks

    public = {module.name for module in pkgutil.iter_modules(tasks.__path__) if not module.name.startswith("_")}
    return sorted(public - set(COMMANDS) - LIBRARY)


def get(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: there is none (with those there are).
    """
    if name in _own_names():  # no other package takes the name of one of ours
        return importlib.import_module(f"tasks.{name}").TASK
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == name:
            return point.load()
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(f"unknown task {name!r}; there are: {', '.join(names())}.{hint}")


def main(name: str, argv: Sequence[str] | None = None) -> int:
    """`python -m tasks.NAME`: parse, run, print. The exit status."""
    task = get(name)
    options, config = cli.parse(
        RunOptions,
        task.config,
        prog=f"python -m tasks.{name}",
        description=f"{task.summary} Protocol: {task.source}",
        argv=argv,
        presets=task.presets,
    )
    with distributed.session(options.device) as (world, device):
        report = run_one(task, options, config, device=device, world=world)
        if world.is_main:
            print_report(report)
    return 0


def run_one(
    task: Task,
    options: RunOptions,
    config: Any,
    *,
    device: torch.device | None = None,
    world: distributed.World | None = None,
    backbone: Backbone | None = None,
    pieces: frozenset[str] = frozenset(),
) -> Report:
    """Run a task on a checkpoint and write its results.

    Args:
        backbone: the checkpoint, where it is loaded already (and on the device, in the dtype of `options`).
        pieces: see `Context.pieces`.

    Raises:
        ValueError, OSError: whatever of checkpoint, data or options cannot be used. Nothing is then written.
    """
    world = world or distributed.World()
    device = device or distributed.resolve_device(options.device)
    seed_everything(options.seed)
    if not task.needs_backbone(config):
        backbone = None
    elif backbone is None:
        backbone = open_backbone(options, device)
    context = _open(task, options, config, backbone, device, world, pieces)
    reset_peak_memory(device)
    start = time.perf_counter()
    outcome = task.run(backbone, config, context)
    report = Report(
        task=task.name,
        status="ok",
        metrics=task.metrics,
        scores=outcome.scores,
        note=outcome.note,
        config=cli.to_plain(config),
        checkpoint=describe_checkpoint(backbone),
        data=dataclasses.asdict(outcome.data),
        environment=environment(device=device, dtype=options.dtype, seed=options.seed),
        seconds=time.perf_counter() - start,
        peak_memory_mib=peak_memory_mib(device),
        pictures=outcome.pictures,
        samples=SAMPLES_FILE if outcome.samples is not None else "",
        free=tuple(sorted(task.free)),
    )
    if world.is_main:
        _write(context, report, outcome, options, config)
    return report


def open_backbone(options: RunOptions, device: torch.device) -> Backbone:
    """The checkpoint that the options name, on the device.

    Raises:
        ValueError, OSError: none is named, or it cannot be used (`load_backbone`).
    """
    if options.ckpt is None:
        raise ValueError(
            "which checkpoint? Give --ckpt: a file or run folder, timm:NAME or random:vit_small_patch16_224."
        )
    backbone = load_backbone(options.ckpt, arch=options.arch, seed=options.seed, network=options.network)
    return backbone.to(device, DTYPES[options.dtype])


def describe_checkpoint(backbone: Backbone | None) -> dict[str, Any]:
    """What identifies the weights; {} for a task that scores other people's results."""
    if backbone is None:
        return {}
    facts = backbone.metadata
    return {
        "spec": backbone.spec,
        "name": backbone.name,
        "sha256": backbone.sha256,
        "weights_sha256": backbone.weights_sha256,
        "patch_size": backbone.patch_size,
        "embed_dim": backbone.embed_dim,
        "depth": backbone.depth,
        **{key: facts[key] for key in ("step", "epoch") if key in facts},
    }


def print_report(report: Report) -> None:
    """The table a person reads, on standard output."""
    spec = report.checkpoint.get("spec", "")
    print(
        f"\n{report.task} · {spec or 'no backbone'} · {report.data['name']} ({report.data['n']} {report.data['unit']})"
    )
    if report.note:
        print(report.note)
    if report.scores:
        print(report.readable().to_string(index=False))
    print(f"{report.seconds:.1f} s, peak memory {report.peak_memory_mib:.0f} MiB")


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def mean_scores(samples: pd.DataFrame) -> tuple[Score, ...]:
    """A score a metric column of an `Outcome.samples`: the mean over rows with a value, and its standard error."""
    scores = []
    for name in samples.columns.drop("sample"):
        values = samples[name].dropna()
        spread = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else None
        scores.append(Score(name, float(values.mean()), len(values), spread))
    return tuple(scores)


def file_list_hash(root: Path, files: Sequence[Path]) -> str:
    """SHA-256 over relative names and sizes: says which files a number was measured on."""
    digest = hashlib.sha256()
    for file in files:
        name = Path(os.path.relpath(file, root)).as_posix()  # a data set's images may lie beside its annotations
        try:
            size = file.stat().st_size
        except FileNotFoundError:
            raise FileNotFoundError(f"{file}: a link to nowhere, or gone since it was listed. Restore it.") from None
        digest.update(f"{name}\0{size}\n".encode())
    return digest.hexdigest()


def identity_of(task: Task, options: RunOptions, config: Any, backbone: Backbone | None) -> dict[str, Any]:
    """All that the results of a run depend on, but for its data (`Context.bind`)."""
    settings = {name: value for name, value in cli.to_plain(config).items() if name not in task.free}
    return {
        "task": task.name,
        "weights": backbone.weights_sha256 if backbone else None,
        "architecture": backbone.name if backbone else None,
        "dtype": options.dtype,
        "seed": options.seed,
        "config": json.loads(json.dumps(settings)),
    }


def _open(
    task: Task,
    options: RunOptions,
    config: Any,
    backbone: Backbone | None,
    device: torch.device,
    world: distributed.World,
    pieces: frozenset[str],
) -> Context:
    """Choose the results folder, refusing one that holds another run's results."""
    identity = identity_of(task, options, config, backbone)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    label = re.sub(r"[^\w.-]+", "-", Path(options.ckpt or "masks").name.removesuffix(".safetensors"))
    out = Path(options.out) if options.out else Path("runs") / task.name / f"{label}-{digest}"
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out}: results need a folder here, found a file. Choose another --out.")
    _check_same_run(out, identity)
    if world.is_main:
        clear_unfinished(out)
    return Context(out, device, world, identity, pieces, options.seed)


def _check_same_run(out: Path, identity: Mapping[str, Any]) -> None:
    """Raise where `out` holds results that a run of this identity must not go on from."""
    before = out / IDENTITY_FILE
    if (out / PAIRS_FILE).is_file():
        raise ValueError(f"{out}: holds the report of a batch ({PAIRS_FILE}). Choose another --out.")
    if not before.is_file():
        if (out / "masks").exists():
            raise ValueError(f"{out}: holds masks but no {IDENTITY_FILE} that says of which run. Choose another --out.")
        return
    try:
        held = json.loads(before.read_text())
    except ValueError:
        raise ValueError(
            f"{before}: damaged, so that nobody knows which run's results these are. Delete {out}, or choose another "
            "--out."
        ) from None
    changed = _differences(held, identity)
    if changed:
        raise OtherRunError(
            f"{out}: holds the results of another run ({'; '.join(changed)}). Choose another --out, or delete it."
        )


def _differences(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two identities; what only the earlier one knows does not count yet."""
    if held.get("task") != wanted["task"]:
        return [f"of the task {held.get('task')}, not {wanted['task']}"]
    flat = [{**record, **record.get("config", {})} for record in (held, wanted)]
    keys = set(flat[1]) - {"config"}
    return [
        f"{key} was {_short(key, flat[0].get(key))}, now {_short(key, flat[1].get(key))}"
        for key in sorted(keys)
        if flat[0].get(key) != flat[1].get(key)
    ]


def _short(key: str, value: Any) -> Any:
    """A value as a person reads it: of a hash, what tells it from others."""
    return str(value)[:8] if key in ("weights", "data_sha256") else value


def _write(context: Context, report: Report, outcome: Outcome, options: RunOptions, config: Any) -> None:
    """The task's tables, the report, and config.yaml, which `--config` reads to repeat the run."""
    out = context.folder()
    for name, table in outcome.tables.items():
        write_text(out / f"{name}.csv", table.to_csv(index=False))
    if outcome.samples is not None:
        write_text(out / SAMPLES_FILE, outcome.samples.to_csv(index=False))
    write_text(out / "config.yaml", cli.to_yaml(options) + cli.to_yaml(config))
    report.write(out)
