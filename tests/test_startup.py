"""Commands that compute nothing start without the libraries that compute: judged by what they import, not by time."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import tasks
from tests.report.builders import VITS8, VITS16, make_entry

COMPUTING = {"torch", "torchvision", "timm"}
TABLES_AND_FIGURES = {"pandas", "sklearn", "pyarrow", "matplotlib", "scipy"}

RUN = """
import contextlib, io, json, runpy, sys
for module, words in json.loads(sys.argv[1]):
    sys.argv = [module, *words]
    status = 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as error:
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            status = stop.code
    print(json.dumps([status, error.getvalue(), sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def check(commands: Sequence[tuple[str, list[str], int]], forbidden: set[str]) -> None:
    """Run `python -m module words` one after another in one process: statuses are right, nothing forbidden is there."""
    asked = json.dumps([command[:2] for command in commands])
    result = subprocess.run(
        [sys.executable, "-c", RUN, asked], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    lines = result.stdout.splitlines()
    assert len(lines) == len(commands), result.stderr
    for (module, words, expected), line in zip(commands, lines, strict=True):
        status, error, packages = json.loads(line)
        assert status == expected, (module, words, error)
        assert not set(packages) & forbidden, (module, words)


def test_commands_that_only_read_their_command_line():
    named = [f"tasks.{name}" for name in (*tasks.names(), "track")]
    check(
        [
            *((module, ["--help"], 0) for module in named),
            *((module, ["--no-such-option", "1"], 2) for module in named),
            ("tasks.knn", ["--print-config"], 0),
            ("tasks.finetune", ["--preset", "cifar10", "--print-config"], 0),
            ("tasks", ["--help"], 0),
            ("tasks", ["quickstart", "--help"], 0),
            ("tasks", ["--suite", "dense", "--help"], 0),
            ("dino_dense.report", ["--help"], 0),
        ],
        COMPUTING | TABLES_AND_FIGURES,
    )


def test_a_comparison_of_reports(tmp_path: Path):
    for checkpoint in (VITS16, VITS8):
        make_entry(tmp_path, checkpoint=checkpoint)
    check([("dino_dense.report", [str(tmp_path), "--bootstrap", "10"], 0)], COMPUTING)
