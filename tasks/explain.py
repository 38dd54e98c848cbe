"""Say why two protocols of a task give one checkpoint two scores: swap their constants one at a time, and in pairs."""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_dense import distributed
from dino_dense.config import command_line, presets, schema
from dino_dense.config.schema import runtime
from dino_dense.files import write_text
from dino_dense.report import Report
from tasks.harness.options import RunOptions
from tasks.harness.registry import get
from tasks.harness.runner import open_backbone, run_one, seed_everything
from tasks.harness.task import Command, Task

if TYPE_CHECKING:
    import torch

    from dino_dense import Backbone

SUMMARY = "Why two protocols of a task differ: swap their constants one at a time, and in pairs where they interact."
PROTOCOLS = 2
DEFAULT_TASK = "segprobe"


@dataclass(frozen=True)
class ExplainOptions:
    """Which protocols of which task"""

    protocols: tuple[str, ...] = ()
    """Two names as --preset takes them: the one to begin at, and the one whose constants are put into it."""
    task: str = DEFAULT_TASK
    """The task. Its own options follow, and hold for every run: data, or constants that both protocols are to share."""
    pairs: int = runtime(3)
    """Fields of largest effect that are also swapped two at a time."""


@dataclass(frozen=True)
class Swap:
    """A run with some constants of the other protocol."""

    fields: tuple[str, ...]
    score: float | None = None
    """None where these constants cannot be measured."""
    note: str = ""
    """Why they cannot."""


@dataclass(frozen=True)
class Study:
    """Two protocols on one checkpoint."""

    task: Task
    names: tuple[str, str]
    first: Any
    second: Any
    options: RunOptions
    out: Path

    def differing(self) -> tuple[str, ...]:
        """Constants of the protocols that are not equal, in the order of the config."""
        constants = schema.fields_of(self.task.config, "protocol")
        names = [name for name in schema.field_names(self.task.config) if name in constants]
        return tuple(name for name in names if getattr(self.first, name) != getattr(self.second, name))

    def config(self, fields: Sequence[str]) -> Any:
        """The first protocol with these constants of the second.

        Raises:
            ValueError: the task refuses the combination.
        """
        return dataclasses.replace(self.first, **{name: getattr(self.second, name) for name in fields})


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m tasks explain A B --task T --ckpt X [...]`: measure, and print the table. The exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    study, pairs = parse(words)
    with distributed.process_group(study.options.device) as world:
        table = explain(study, pairs, world)
        if world.is_main:
            print(table_text(study, table))
    return 0


def parse(words: list[str]) -> tuple[Study, int]:
    """The two configs that a command line names, and how many fields to pair.

    Raises:
        ValueError: not two protocols, or --preset among the words.
    """
    task = get(_task_named(words))

    def parsed(extra: Sequence[str]) -> tuple[ExplainOptions, RunOptions, Any]:
        result: tuple[ExplainOptions, RunOptions, Any] = command_line.parse(
            ExplainOptions,
            RunOptions,
            task.config,
            prog="python -m tasks explain",
            description=SUMMARY,
            argv=[*words, *extra],
            presets=task.name,
            positional="protocols",
        )
        return result

    if any(word.startswith("--preset") for word in words):
        raise ValueError("name the two protocols as words, without --preset: explain dinov3 neco --task segprobe")
    options = parsed([])[0]
    there = presets.protocol_names(task.name)
    if len(options.protocols) != PROTOCOLS or not set(options.protocols) <= set(there):
        raise ValueError(
            f"protocols are {' '.join(options.protocols) or 'not named'}: expected two of {task.name}'s: "
            f"{', '.join(there)}"
        )
    first, second = (parsed([f"--preset={name}"]) for name in options.protocols)
    run_options = first[1]
    out = Path(run_options.out or Path("runs") / "explain" / f"{task.name}-{'-'.join(options.protocols)}")
    names = (options.protocols[0], options.protocols[1])
    return Study(task, names, first[2], second[2], run_options, out), options.pairs


def _task_named(words: Sequence[str]) -> str:
    """The value of --task in a command line: it decides which other options there are."""
    for index, word in enumerate(words):
        if word.startswith("--task="):
            return word.partition("=")[2]
        if word == "--task" and index + 1 < len(words):
            return words[index + 1]
    return DEFAULT_TASK


def explain(study: Study, pairs: int, world: distributed.World) -> list[Swap]:
    """Measure both protocols, every constant swapped alone, and pairs: those that no task takes alone, and those of the
    `pairs` largest effects. The table is written into the study's folder.

    Raises:
        ValueError: the protocols are equal, or one of them cannot be measured.
    """
    fields = study.differing()
    if not fields:
        raise ValueError(f"{' and '.join(study.names)} have the same constants with these options: nothing to explain.")
    from dino_dense.backbone.remembering import RememberingBackbone

    device = distributed.resolve_device(study.options.device, world.local_rank)
    seed_everything(study.options.seed)
    backbone: Backbone = RememberingBackbone(open_backbone(study.options, device))
    measured = [measure_swap(study, part, backbone, device, world) for part in ((), fields)]
    for swap in measured:
        if swap.score is None:
            raise ValueError(f"{study.names[len(swap.fields) > 0]} cannot be measured: {swap.note}")
    if len(fields) > 1:
        measured += [measure_swap(study, (name,), backbone, device, world) for name in fields]
        chosen = [pair for pair in pairs_of(measured, fields, pairs) if len(pair) < len(fields)]
        measured += [measure_swap(study, pair, backbone, device, world) for pair in chosen]
    if world.is_main:
        frame = table_of(study, measured)
        study.out.mkdir(parents=True, exist_ok=True)
        write_text(study.out / "explain.csv", frame.to_csv(index=False))
        write_text(study.out / "explain.md", table_text(study, measured) + "\n")
    return measured


def pairs_of(measured: Sequence[Swap], fields: Sequence[str], most: int) -> list[tuple[str, ...]]:
    """Which two constants to swap together: every partner of one that is refused alone, then those of most effect."""
    start = measured[0].score or 0.0
    alone = {swap.fields[0]: swap.score for swap in measured if len(swap.fields) == 1}
    refused = [name for name in fields if alone.get(name) is None]
    ranked = sorted(
        (name for name in fields if name not in refused), key=lambda name: -abs((alone[name] or 0.0) - start)
    )
    of_refused = [pair for pair in itertools.combinations(fields, 2) if set(pair) & set(refused)]
    of_ranked = [tuple(sorted(pair, key=list(fields).index)) for pair in itertools.combinations(ranked[:most], 2)]
    return list(dict.fromkeys([*of_refused, *of_ranked]))


def measure_swap(
    study: Study, fields: tuple[str, ...], backbone: Backbone, device: torch.device, world: distributed.World
) -> Swap:
    """The score of the first protocol with these constants of the second; a finished run is not run again."""
    try:
        config = study.config(fields)
        everything = len(fields) == len(study.differing())
        name = study.names[1] if everything else "+".join([study.names[0], *fields])
        folder = study.out / re.sub(r"[^\w.+-]", "-", name)
        report = finished(folder, config, backbone)
        if report is None:
            options = dataclasses.replace(study.options, out=str(folder))
            report = run_one(study.task, options, config, device=device, world=world, backbone=backbone)
    except (ValueError, OSError) as error:
        return Swap(fields, None, str(error).partition("\n")[0])
    return Swap(fields, report.scores[0].value)


def finished(folder: Path, config: Any, backbone: Backbone) -> Report | None:
    """The report of an earlier run of this config on these weights."""
    file = folder / "report.json"
    if not file.is_file():
        return None
    report = Report.from_json(file.read_text())
    wanted = Report(task=report.task, status="ok", config=schema.to_plain(config))
    same = Report.from_json(wanted.to_json()).config == report.config
    return report if same and report.checkpoint.get("weights_sha256") == backbone.weights_sha256 else None


def table_of(study: Study, measured: Sequence[Swap]) -> Any:
    """A row a run, as a table of pandas: what was swapped, the score, its change, and what a pair adds to its parts."""
    import pandas as pd

    metric = study.task.metrics[0].name
    start = measured[0].score or 0.0
    effects = {swap.fields: swap.score - start for swap in measured if swap.score is not None}
    rows = []
    for swap in sorted(measured, key=lambda swap: (_rank(swap, study), -abs(effects.get(swap.fields, 0.0)))):
        parts = [effects.get((name,)) for name in swap.fields]
        joint = len(swap.fields) > 1 and swap.score is not None and None not in parts
        rows.append(
            {
                "changed": _label(swap, study),
                "from": ", ".join(str(getattr(study.first, name)) for name in swap.fields if len(swap.fields) < 3),
                "to": ", ".join(str(getattr(study.second, name)) for name in swap.fields if len(swap.fields) < 3),
                metric: swap.score,
                "change": effects.get(swap.fields),
                "beyond the sum": effects[swap.fields] - sum(part or 0.0 for part in parts) if joint else None,
                "note": swap.note,
            }
        )
    return pd.DataFrame(rows)


def _rank(swap: Swap, study: Study) -> int:
    """The two protocols, then single constants, then pairs."""
    if not swap.fields or len(swap.fields) == len(study.differing()):
        return int(bool(swap.fields))
    return 1 + len(swap.fields)


def _label(swap: Swap, study: Study) -> str:
    if not swap.fields:
        return study.names[0]
    if len(swap.fields) == len(study.differing()):
        return f"{study.names[1]} (all {len(swap.fields)})"
    return " and ".join(swap.fields)


def table_text(study: Study, measured: Sequence[Swap]) -> str:
    """The table as Markdown, with the constant that matters most."""
    import pandas as pd

    frame = table_of(study, measured)
    shown = frame.map(lambda value: "" if pd.isna(value) else f"{value:.2f}" if isinstance(value, float) else value)
    singles = [swap for swap in measured if len(swap.fields) == 1 and swap.score is not None]
    start = measured[0].score or 0.0
    lines = [f"{study.task.name}: from {study.names[0]} to {study.names[1]}, {study.options.ckpt}", ""]
    lines += [shown.to_markdown(index=False, disable_numparse=True), ""]
    if singles:
        most = max(singles, key=lambda swap: abs((swap.score or 0.0) - start))
        change = f"{(most.score or 0.0) - start:+.2f} {study.task.metrics[0].name}"
        lines.append(f"{most.fields[0]} alone matters most: {change}.")
    return "\n".join(lines)


COMMAND = Command(name="explain", summary=SUMMARY, main=main)

if __name__ == "__main__":
    command_line.run(main)
