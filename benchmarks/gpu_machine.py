"""Rows of the table of `python -m benchmarks.gpu`, and the machine that its checks run on."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import torch

ROOT = Path(__file__).parents[1]
LIMIT = 600  # seconds of one command
LONGEST = 200  # characters of a message in the table
Verdict = Literal["yes", "no", "", "skipped"]
Size = TypeVar("Size")


class Line(NamedTuple):
    """A row of the table."""

    measures: str
    """The row's work, and what it is compared with."""
    expected: str = ""
    found: str = ""
    as_expected: Verdict = ""
    """Empty for a figure without expectation."""


class SkippedError(Exception):
    """The machine lacks something that a check needs; the message names it."""


@dataclass(frozen=True)
class Machine:
    """The device, and a folder for files."""

    device: torch.device
    folder: Path

    @property
    def is_trial(self) -> bool:
        """Whether the checks are tested at a tiny size, on a CPU."""
        return self.device.type == "cpu"

    def size(self, full: Size, trial: Size) -> Size:
        """The size of a check."""
        return trial if self.is_trial else full

    def run(self, *words: str, variables: dict[str, str] | None = None) -> str:
        """Standard output and error of `python -m WORDS`.

        Raises:
            RuntimeError: the command failed; the message is its last line.
        """
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(variables or {})}
        command = [sys.executable, "-m", *words]
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        if done.returncode:
            last = (done.stdout.strip().splitlines() or ["no output"])[-1]
            raise RuntimeError(f"exit status {done.returncode} of {' '.join(words)}: {last}")
        return done.stdout


class Check(NamedTuple):
    """A check and its cost."""

    measure: Callable[[Machine], Iterator[Line]]
    minutes: float
    """On an H100, an estimate."""

    @property
    def text(self) -> str:
        """The first line of its description."""
        return (self.measure.__doc__ or "").strip().splitlines()[0]


def message(error: Exception) -> str:
    """The first line of an error, cut to fit the table."""
    return (str(error).strip().splitlines() or [""])[0][:LONGEST]


def verdict(right: bool) -> Verdict:
    """yes or no."""
    return "yes" if right else "no"
