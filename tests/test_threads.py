"""Threads sleep while they wait, unless the user has said otherwise; processors are shared on a machine."""

import os
import subprocess
import sys

import pytest

from dino_dense.threads import WAIT_VARIABLES, processors

COMMAND = """
import os, sys
from dino_dense.config import command_line

def main():
    assert "torch" not in sys.modules
    print({name: os.environ.get(name) for name in sys.argv[1:]})

command_line.run(main)
"""


def seen_by_a_command(**variables: str) -> dict[str, str | None]:
    """The variables of a command when its work begins, and PyTorch is still to be imported."""
    clean = {name: value for name, value in os.environ.items() if name not in WAIT_VARIABLES}
    words = [sys.executable, "-c", COMMAND, *WAIT_VARIABLES]
    done = subprocess.run(words, env=clean | variables, capture_output=True, text=True, check=True, timeout=300)
    return eval(done.stdout)


def test_a_command_lets_its_threads_sleep():
    assert seen_by_a_command() == {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": None, "KMP_BLOCKTIME": None}


@pytest.mark.parametrize("name", WAIT_VARIABLES)
def test_the_users_own_choice_stays(name: str):
    assert seen_by_a_command(**{name: "17"}) == {**dict.fromkeys(WAIT_VARIABLES), name: "17"}


@pytest.mark.parametrize(
    ("usable", "variables", "expected"),
    [
        (16, {}, 16),
        (16, {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}, 4),
        (128, {"WORLD_SIZE": "64", "LOCAL_WORLD_SIZE": "8"}, 16),  # eight machines
        (16, {"WORLD_SIZE": "4"}, 4),
        (4, {"WORLD_SIZE": "64"}, 4),  # Slurm bound this process to four of 16
        (2, {"LOCAL_WORLD_SIZE": "8"}, 1),
    ],
)
def test_processes_of_a_machine_share_its_processors(
    usable: int, variables: dict[str, str], expected: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: max(usable, 16))
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert processors() == expected
