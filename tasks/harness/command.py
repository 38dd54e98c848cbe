"""The command of a task: `python -m tasks.NAME` parses, runs and prints."""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Sequence

from dino_dense import distributed
from dino_dense.config import command_line, schema
from tasks.harness.options import LayerSweep, RunOptions, Sweep
from tasks.harness.registry import get
from tasks.harness.runner import print_report, run_one
from tasks.harness.sweep import is_sweep, run_sweep
from tasks.harness.task import Task


def main(name: str, argv: Sequence[str] | None = None) -> int:
    """`python -m tasks.NAME`: parse, run, print. Returns the exit status."""
    task = get(name)
    words = list(sys.argv[1:] if argv is None else argv)
    if (moved := task.moved(words)) is None:
        return run_command(task, words)
    command, words = moved
    print(f"python -m tasks.{command} does this now, and goes on with: {shlex.join(words)}", file=sys.stderr)
    return importlib.import_module(f"tasks.{command}").COMMAND.main(words)


def run_command(task: Task, argv: Sequence[str] | None = None, *, presets: str = "") -> int:
    """The command of a task: parse, run, print. Returns the exit status.

    Args:
        presets: the task with the protocol files for `--preset`; default: this task.
    """
    kind = LayerSweep if "sizes" in schema.field_names(task.config) else Sweep  # a task's own sizes are no sweep
    options, sweep, config = command_line.parse(
        RunOptions,
        kind,
        task.config,
        prog=f"python -m tasks.{task.name}",
        description=f"{task.summary} Protocol: {task.source}",
        argv=argv,
        presets=presets or task.name,
    )
    with distributed.process_group(options.device) as world:
        if is_sweep(options, sweep):
            run_sweep(task, options, sweep, config, world=world)
            return 0
        report = run_one(task, options, config, world=world)
        if world.is_main:
            print_report(report)
    return 0
