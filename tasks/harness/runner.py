"""Run one task on one checkpoint: seeds, results folder, timing, provenance, report."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data import notices
from dino_dense import distributed
from dino_dense.config import presets, schema
from dino_dense.files import clear_unfinished, write_text
from dino_dense.loaders import lost_workers_explained
from dino_dense.report import Report, current_commit, environment, peak_memory_mib, reset_peak_memory
from tasks.harness.options import RunOptions
from tasks.harness.session import DataFacts, OpenedData, Session, claim
from tasks.harness.task import Outcome, Task, mean_scores

if TYPE_CHECKING:
    import torch

    from dino_dense import Backbone

SAMPLES_FILE = "samples.csv"
BATCH_FIELDS = ("batch_size", "extraction_batch")
"""Fields for the images of a batch: they change no result on a CPU."""


@dataclass(frozen=True)
class Opened:
    """A task's data, and notices about skipped files."""

    data: Any
    notices: tuple[str, ...] = ()


def open_data(task: Task, config: Any) -> Opened:
    """List and check the files of a task.

    Raises:
        ValueError, OSError: the files are unusable.
    """
    with notices.captured() as lines:
        data = task.open(config)
    return Opened(data, tuple(lines))


def run_one(
    task: Task,
    options: RunOptions,
    config: Any,
    *,
    device: torch.device | None = None,
    world: distributed.World | None = None,
    backbone: Backbone | None = None,
    opened: Opened | None = None,
    pieces: frozenset[str] = frozenset(),
) -> Report:
    """Run a task on a checkpoint and write its results.

    Args:
        backbone: the checkpoint, if loaded already (on the device, in the dtype of `options`).
        opened: the data, if opened already.
        pieces: see `Session.pieces`.

    Raises:
        ValueError, OSError: checkpoint, data or options are unusable. Nothing is written then.
    """
    world = world or distributed.World()
    if task.fixed_layers and options.layers != (-1,):
        raise ValueError(f"{task.name}: layers is {options.layers}, but {task.fixed_layers}. Leave it out.")
    if options.upsampling > 1 and not task.upsamples:
        raise ValueError(f"{task.name} does not measure patch tokens on a grid of any size: leave out --upsampling.")
    needs_backbone = task.needs_backbone(config)
    if needs_backbone and backbone is None:
        check_has_checkpoint(options)
    opened = opened or open_data(task, config)
    if needs_backbone:
        device = device or distributed.resolve_device(options.device, world.local_rank)
        seed_everything(options.seed)
        backbone = backbone or open_backbone(options, device)
    else:
        backbone = device = None
    identity = run_identity(task, options, config, backbone, opened)
    out = _results_folder(task, options, config, backbone)
    beside = beside_bilinear(task, options, config, device, world, backbone, opened, out)
    session = Session(out, world, device, options.seed, identity, pieces)
    reset_peak_memory(device)
    start = time.perf_counter()
    again = lost_workers_explained(then="Then give the same command again.")
    with notices.captured() as lines, distributed.memory_explained(), again:
        session.commits.update(claim(session.out, identity, is_main=world.is_main))
        session.once(clear_unfinished, session.out)
        session.wait()
        outcome = measured(task, backbone, opened.data, config, session)
    seconds = time.perf_counter() - start
    report = dataclasses.replace(
        _report(task, options, config, outcome, (*beside, *opened.notices, *lines)),
        checkpoint=describe_checkpoint(backbone),
        data=dataclasses.asdict(_facts_of(opened.data, options)),
        environment=environment(device=device, dtype=options.dtype, seed=options.seed, commits=session.commits),
        seconds=seconds,
        peak_memory_mib=peak_memory_mib(device),
    )
    session.once(_write, session, report, outcome, options, config)
    return report


def beside_bilinear(
    task: Task,
    options: RunOptions,
    config: Any,
    device: torch.device | None,
    world: distributed.World,
    backbone: Backbone | None,
    opened: Opened,
    out: Path,
) -> tuple[str, ...]:
    """Measure bilinear upsampling to the same grid, in a folder beside `out`, if another upsampler is measured."""
    if backbone is None or options.upsampler == "bilinear":
        return ()
    from dino_dense.backbone.upsampling import UpsampledBackbone

    plain = UpsampledBackbone(backbone, "bilinear", options.upsampling)
    folder = out.with_name(f"{out.name}-bilinear")
    options = dataclasses.replace(options, upsampler="bilinear", out=str(folder))
    report = run_one(task, options, config, device=device, world=world, backbone=plain, opened=opened)
    scores = ", ".join(f"{score.metric} {score.value:.2f}" for score in report.scores)
    return (f"Bilinear upsampling by {options.upsampling} has {scores} ({folder.name}).",)


def _report(task: Task, options: RunOptions, config: Any, outcome: Outcome, notices: Sequence[str]) -> Report:
    """The report of a task and its outcome, before checkpoint, data and machine are filled in."""
    return Report(
        task=task.name,
        status="ok",
        metrics=task.metrics,
        scores=outcome.scores,
        note=" ".join(part for part in (outcome.note, layer_note(options), *notices) if part).strip(),
        config=schema.to_plain(config),
        pictures=outcome.pictures,
        samples=SAMPLES_FILE if outcome.samples is not None else "",
        free=task.free_fields(),
        presets=presets.matching_protocols(task.name, config),
    )


def measured(task: Task, backbone: Backbone | None, data: Any, config: Any, session: Session) -> Outcome:
    """A task's outcome with its scores and, in the main process, its pictures."""
    if backbone is not None:
        outcome = task.measure(backbone, data, config, session)
    elif task.measure_files is not None:
        outcome = task.measure_files(data, config, session)
    else:
        raise ValueError(f"{task.name}: measures nothing without a backbone. Give --ckpt.")
    if not outcome.scores and outcome.samples is not None:
        outcome = dataclasses.replace(outcome, scores=mean_scores(outcome.samples))
    if session.world.is_main:
        outcome = dataclasses.replace(outcome, pictures=tuple(task.draw(data, outcome, session.folder())))
    return outcome


def check_has_checkpoint(options: RunOptions) -> None:
    """Raise ValueError if no checkpoint is given."""
    if options.ckpt is None:
        raise ValueError("which checkpoint? Give --ckpt: a file or run folder, timm:NAME or dino_dense:micro8.")


def open_backbone(options: RunOptions, device: torch.device) -> Backbone:
    """Open the checkpoint of the options on the device.

    Raises:
        ValueError, OSError: no checkpoint is given, or it is unusable (`load_backbone`).
    """
    from dino_dense import load_backbone
    from dino_dense.training.precision import DTYPES, set_products

    check_has_checkpoint(options)
    assert options.ckpt is not None
    if isinstance(options.layers, str):
        raise ValueError("layers is all: only a task's command sweeps over layers. Give numbers: --layers=-4,-1")
    backbone = load_backbone(
        options.ckpt,
        arch=options.arch,
        seed=options.seed,
        network=options.network,
        heads=options.heads,
        positions=options.positions,
    )
    for note in backbone.notes:
        print(f"NOTE: {options.ckpt}: {note}", file=sys.stderr)
    set_products(device, options.dtype)
    backbone = backbone.to(device, DTYPES[options.dtype]).with_layers(options.layers, options.norm)
    if options.upsampling == 1:
        return backbone
    from dino_dense.backbone.upsampling import UpsampledBackbone

    return UpsampledBackbone(backbone, options.upsampler, options.upsampling)


def layer_note(read: RunOptions | Backbone) -> str:
    """A note on the measured layers and upsampling, unless they are the default (the last, after the final norm)."""
    finer = upsampling_note(read)
    if read.layers == (-1,) and read.norm:
        return finer
    layers = ", ".join(map(str, read.layers))
    note = f"Features of layers {layers} (-1 is the last), {'after' if read.norm else 'before'} the final norm."
    return f"{note} {finer}".strip()


def upsampling_note(read: RunOptions | Backbone) -> str:
    """A note on the upsampling of patch tokens, if there is one."""
    if not isinstance(read, RunOptions):
        return read.upsampled
    if read.upsampling == 1:
        return ""
    from dino_dense.backbone.upsampling import describe_upsampling

    return describe_upsampling(read.upsampler, read.upsampling)


def _facts_of(data: OpenedData, options: RunOptions) -> DataFacts:
    return dataclasses.replace(data.facts, dataset=None) if options.benchmark == "none" else data.facts


def describe_checkpoint(backbone: Backbone | None) -> dict[str, Any]:
    """Identity of the weights, and how features are read; {} for a run without backbone."""
    if backbone is None:
        return {}
    metadata = backbone.metadata
    return {
        "spec": backbone.spec,
        "name": backbone.name,
        "sha256": backbone.sha256,
        "weights_sha256": backbone.weights_sha256,
        "patch_size": backbone.patch_size,
        "embed_dim": backbone.embed_dim,
        "depth": backbone.depth,
        "pixels": _pixels_text(backbone),
        **({"features": layer_note(backbone)} if layer_note(backbone) else {}),
        **{key: metadata[key] for key in ("step", "epoch", "timm", "official") if key in metadata},
    }


def _pixels_text(backbone: Backbone) -> str:
    """Mean and deviation of the pixel normalization, with their source."""
    has_source = backbone.metadata.get("hub") or "mean" in backbone.metadata
    stated = "stated with the weights" if has_source else "ImageNet's, as nothing states others"
    return f"{_numbers_text(backbone)} ({stated})"


def _numbers_text(backbone: Backbone) -> str:
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (backbone.mean, backbone.std))
    return f"mean {mean}, std {std}"


def print_report(report: Report) -> None:
    """Print the results table on standard output."""
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
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def identity_of(task: Task, options: RunOptions, config: Any, backbone: Backbone | None) -> dict[str, Any]:
    """All that determines the results of a run, except its data."""
    runtime = schema.fields_of(task.config, "runtime")
    settings = {name: value for name, value in schema.to_plain(config).items() if name not in runtime}
    return {
        "task": task.name,
        "weights": backbone.weights_sha256 if backbone else None,
        "architecture": backbone.name if backbone else None,
        "dtype": options.dtype,
        "seed": options.seed,
        **({"features": layer_note(options)} if layer_note(options) else {}),
        **({"benchmark": options.benchmark} if options.benchmark != "auto" else {}),
        **_device_identity(config, backbone),
        "config": json.loads(json.dumps(settings)),
    }


def _device_identity(config: Any, backbone: Backbone | None) -> dict[str, Any]:
    """Device and batch sizes where they change last digits: another batch is another matrix product on a GPU."""
    if backbone is None or backbone.device.type == "cpu":
        return {}
    batches = {name: value for name, value in schema.to_plain(config).items() if name in BATCH_FIELDS}
    return {"device": backbone.device.type, **batches}


def run_identity(
    task: Task, options: RunOptions, config: Any, backbone: Backbone | None, opened: Opened
) -> dict[str, Any]:
    """All that determines the results of a run, and the versions and the commit that compute them."""
    return {
        **identity_of(task, options, config, backbone),
        "data_sha256": opened.data.facts.sha256,
        "versions": versions_of(task, backbone),
        "commits": [commit] if (commit := current_commit()) else [],
    }


def versions_of(task: Task, backbone: Backbone | None) -> dict[str, Any]:
    """Versions of all code that determines a task's numbers, and the pixel statistics that it found for the weights.

    Results of other versions are computed again.
    """
    if backbone is None:
        return dict(task.versions)
    return {**task.versions, "features": backbone.reader_version, "pixels": _numbers_text(backbone)}


def _results_folder(task: Task, options: RunOptions, config: Any, backbone: Backbone | None) -> Path:
    """The requested folder, or a folder named by the checkpoint and a hash of all that determines the results."""
    if options.out:
        return Path(options.out)
    identity = identity_of(task, options, config, backbone)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    label = re.sub(r"[^\w.-]+", "-", Path(options.ckpt or "masks").name.removesuffix(".safetensors"))
    return Path("runs") / task.name / f"{label}-{digest}"


def _write(session: Session, report: Report, outcome: Outcome, options: RunOptions, config: Any) -> None:
    """Write the task's tables, the report, and config.yaml (for `--config`, to repeat the run)."""
    out = session.folder()
    for name, table in outcome.tables.items():
        write_text(out / f"{name}.csv", table.to_csv(index=False))
    if outcome.samples is not None:
        write_text(out / SAMPLES_FILE, outcome.samples.to_csv(index=False))
    write_text(out / "config.yaml", schema.to_yaml(options) + schema.to_yaml(config))
    report.write(out)
