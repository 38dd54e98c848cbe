"""Sweeps: one task at several layers and sizes (`--layers all`, `--sizes 256,384,512`), as one table and line plot.

Each layer at each size is a run with a results folder of its own, so that an interrupted sweep goes on where it ended.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_dense import distributed
from dino_dense.files import write_text
from dino_dense.report import SWEEP_FILE, check_out
from tasks.harness.options import LayerSweep, RunOptions, Sweep
from tasks.harness.pairs import finished_report
from tasks.harness.runner import (
    Opened,
    check_has_checkpoint,
    identity_of,
    open_backbone,
    open_data,
    run_identity,
    run_one,
    versions_of,
)
from tasks.harness.session import check_same_run
from tasks.harness.task import Task

if TYPE_CHECKING:
    import pandas as pd

    from dino_dense import Backbone
    from dino_dense.backbone.shared import SharedLayers
    from dino_dense.report import Entry

PLOT_FILE = "sweep.png"
Settings = dict[int | None, tuple[Any, Opened]]


@dataclass(frozen=True)
class Point:
    """A point of a sweep."""

    layers: tuple[int, ...]
    """Numbers from 0 to the depth - 1; several are joined."""
    size: int | None
    """Side of the network's input, pixels; None: the protocol's own."""

    @property
    def name(self) -> str:
        """For tables and plots: layer 3 at 384 px."""
        layers = f"layer{'s' if len(self.layers) > 1 else ''} {'+'.join(map(str, self.layers))}"
        return layers if self.size is None else f"{layers} at {self.size} px"

    @property
    def folder(self) -> str:
        """Name of its results folder."""
        layers = "layer" + "+".join(f"{layer:02d}" for layer in self.layers)
        return layers if self.size is None else f"{layers}-{self.size}px"


def is_sweep(options: RunOptions, sweep: LayerSweep) -> bool:
    """Whether the options ask for more than one run."""
    return options.layers == "all" or sweep.each_layer or bool(_sizes(sweep))


def run_sweep(
    task: Task,
    options: RunOptions,
    sweep: LayerSweep,
    config: Any,
    *,
    world: distributed.World | None = None,
    backbone: Backbone | None = None,
) -> pd.DataFrame:
    """Run the unfinished points of a sweep, and write the table, the plot and the page of all of them.

    Args:
        backbone: the checkpoint, if loaded already.

    Returns:
        A row for each finished point: layer, size (None: the protocol's own), and for each metric its value and
        standard error.

    Raises:
        ValueError, OSError: this task, network or data cannot be swept. Nothing is written then.
    """
    from dino_dense.backbone.shared import share_layers

    world = world or distributed.World()
    check_can_sweep(task, sweep, config)
    check_has_checkpoint(options)
    device = distributed.resolve_device(options.device, world.local_rank)
    backbone = backbone or open_backbone(dataclasses.replace(options, layers=(-1,)), device)
    points = _points(options, sweep, backbone)
    settings = _settings(task, sweep, config, backbone)
    out = _folder(task, options, config, backbone)
    check_out(out)
    shared = share_layers(backbone, sweep.sweep_memory * 2**20)
    entries: list[Entry] = []
    names = [point.name for point in points]
    try:
        for entry in _measure(task, options, points, settings, out, shared, world):
            entries.append(entry)
    finally:
        entries.sort(key=lambda entry: names.index(entry.checkpoint))
        table = _table(entries, points)
        if entries and world.is_main:
            _write(task, options, entries, table, len(points), out)
    return table


def check_can_sweep(task: Task, sweep: LayerSweep, config: Any) -> None:
    """Raise ValueError with the reason, if this task cannot be swept."""
    if not task.metrics:
        raise ValueError(f"{task.name} gives no score, so a sweep has nothing to compare. Leave out its options.")
    if not task.needs_backbone(config):
        raise ValueError(f"{task.name}: with these options no network is used, so there are no layers and sizes.")
    if task.fixed_layers:
        raise ValueError(f"{task.name} cannot be swept over layers: {task.fixed_layers}.")
    if _sizes(sweep) and task.at_size is None:
        raise ValueError(
            f"{task.name} cannot be swept over sizes: it has no single side of the network's input. Run it for each "
            "size with its own options (see --help)."
        )


def _sizes(sweep: LayerSweep) -> tuple[int, ...]:
    return sweep.sizes if isinstance(sweep, Sweep) else ()


def _points(options: RunOptions, sweep: LayerSweep, backbone: Backbone) -> list[Point]:
    """The points in the order of measuring: all layers of a size, so that they share a pass over the images."""
    every = isinstance(options.layers, str)
    layers = tuple(range(backbone.depth)) if isinstance(options.layers, str) else options.layers
    backbone.with_layers(layers)  # says what is wrong with them
    numbers = tuple(layer % backbone.depth for layer in layers)
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"layers {layers}: a layer is named twice (there are {backbone.depth}, -1 is the last)")
    groups = [(number,) for number in numbers] if every or sweep.each_layer else [numbers]
    return [Point(group, size) for size in _sizes(sweep) or (None,) for group in groups]


def _settings(task: Task, sweep: LayerSweep, config: Any, backbone: Backbone) -> Settings:
    """Size -> config and data, opened before anything is measured."""
    if not (sizes := _sizes(sweep)):
        return {None: (config, open_data(task, config))}
    assert task.at_size is not None
    configs = {size: task.at_size(config, size, backbone) for size in sizes}
    same = [size for size in sizes if list(configs.values()).count(configs[size]) > 1]
    if same:
        raise ValueError(f"sizes {same} are alike for {backbone.name} in {task.name}. Give one of them.")
    return {size: (changed, open_data(task, changed)) for size, changed in configs.items()}


def _folder(task: Task, options: RunOptions, config: Any, backbone: Backbone) -> Path:
    """The requested folder, or a folder named by the checkpoint and a hash of all but layers and sizes."""
    if options.out:
        return Path(options.out)
    identity = identity_of(task, dataclasses.replace(options, layers=(-1,)), config, backbone)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    label = re.sub(r"[^\w.-]+", "-", Path(str(options.ckpt)).name.removesuffix(".safetensors"))
    return Path("runs") / task.name / f"{label}-sweep-{digest}"


def _measure(
    task: Task,
    options: RunOptions,
    points: Sequence[Point],
    settings: Settings,
    out: Path,
    shared: SharedLayers,
    world: distributed.World,
) -> Iterator[Entry]:
    """The finished reports, and those of the points that are measured now."""
    from dino_dense.report import Entry

    unfinished: dict[Point, RunOptions] = {}
    for point in points:
        layers = (-1,) if point.layers == (shared.depth - 1,) else point.layers
        run = dataclasses.replace(options, out=str(out / point.folder), layers=layers)
        config, opened = settings[point.size]
        check_same_run(out / point.folder, run_identity(task, run, config, shared, opened))
        if (report := finished_report(out / point.folder, versions_of(task, shared), opened)) is not None:
            yield Entry(task.name, point.name, report, out / point.folder)
        else:
            unfinished[point] = run
    distributed.barrier()  # every process has looked before any writes
    for number, (point, run) in enumerate(unfinished.items()):
        later = [other for other in list(unfinished)[number + 1 :] if other.size == point.size]
        if len(point.layers) == 1:
            network: Backbone = shared.at(point.layers[0], [other.layers[0] for other in later])
        else:
            network = shared.with_layers(point.layers, shared.norm)
        if world.is_main:
            print(f"{task.name}, {point.name} ({number + 1} of {len(unfinished)})", file=sys.stderr)
        config, opened = settings[point.size]
        report = run_one(task, run, config, device=shared.device, world=world, backbone=network, opened=opened)
        yield Entry(task.name, point.name, report, out / point.folder)


def _table(entries: Sequence[Entry], points: Sequence[Point]) -> pd.DataFrame:
    """A row for each finished point, in the order of the points."""
    import pandas as pd

    reports = {entry.checkpoint: entry.report for entry in entries}
    rows = []
    for point in points:
        if (report := reports.get(point.name)) is None:
            continue
        layer = point.layers[0] if len(point.layers) == 1 else "+".join(map(str, point.layers))
        row: dict[str, Any] = {"layer": layer, "size": point.size}
        row |= {score.metric: score.value for score in report.scores}
        row |= {f"{score.metric} stderr": score.stderr for score in report.scores if score.stderr is not None}
        rows.append({**row, "seconds": round(report.seconds, 2)})
    return pd.DataFrame(rows).astype({"size": "Int64"}) if rows else pd.DataFrame(columns=["layer", "size"])


def _write(
    task: Task, options: RunOptions, entries: Sequence[Entry], table: pd.DataFrame, total: int, out: Path
) -> None:
    """Write table, plot and page, and print the table."""
    from dino_dense.report import read_curves, write_batch
    from tasks.harness import figures

    title = f"{task.name} of {options.ckpt} by layer and size"
    if len(entries) < total:
        title += f" (interrupted: {len(entries)} of {total} points)"
    write_text(out / SWEEP_FILE, table.to_csv(index=False))
    names = [metric.name for metric in task.metrics if metric.name in table]
    figures.sweep_lines(out / PLOT_FILE, table, names)
    write_batch(entries, out, title=title, curves=read_curves([out]))
    shown = table[["layer", "size", *names]].to_string(index=False, na_rep="")
    print(f"\n{title}\n{shown}\nReport: {out / 'index.html'}")
