"""A task on a new kind of data is a file in data/ and a file in tasks/; a killed run of it goes on."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image, ImageDraw

PROJECT = Path(__file__).parents[2]
DATA = '''
"""Images and the number of things on each: `counts.csv` with the columns image and count beside the images."""

import csv
from pathlib import Path

from data.files import DataError


def load_counts(root: Path) -> list[tuple[Path, int]]:
    """(image, count) of each row.

    Raises:
        DataError: no table, or a count that is no whole number.
    """
    table = root / "counts.csv"
    if not table.is_file():
        raise DataError(f"{table}: no such file. Expected columns image and count.")
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if not row["count"].isdigit():
            raise DataError(f"{table}: count {row['count']!r} of {row['image']}, expected a whole number.")
    return [(root / row["image"], int(row["count"])) for row in rows]
'''
TASK = '''
"""Counting: the count of the most similar other image."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from data.counts import load_counts
from data.images import read_rgb
from dino_dense import Metric
from dino_dense.config import command_line
from dino_dense.config.schema import path, runtime
from tasks.harness.command import main
from tasks.harness.session import DataFacts
from tasks.harness.task import Outcome, Task, file_list_hash


@dataclass(frozen=True)
class CountingConfig:
    """Which images"""

    data: str | None = path()
    """Folder with counts.csv."""
    side: int = 32
    """Side of the images, pixels."""
    killed: bool = runtime(False)
    """Kill the process half way."""


@dataclass(frozen=True)
class Counts:
    rows: list
    facts: DataFacts


def open_counts(config):
    rows = load_counts(Path(config.data))
    digest = file_list_hash(Path(config.data), [image for image, _ in rows])
    return Counts(rows, DataFacts(Path(config.data).name, config.data, len(rows), "images", digest))


def measure(backbone, counts, config, session):
    import numpy as np
    import pandas as pd
    import torch

    features = []
    for index, (image, _) in session.share(counts.rows):
        if config.killed and index == len(counts.rows) // 2:
            os.kill(os.getpid(), signal.SIGKILL)
        pixels = np.array(read_rgb(image).resize((config.side, config.side)))
        feature = backbone.extract(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255, {"patches"}).patches
        features.append((index, feature.mean((2, 3))[0]))
    features = torch.nn.functional.normalize(torch.stack(session.collect(features)), dim=1)
    nearest = (features @ features.T).fill_diagonal_(-1).argmax(1)
    truth = np.array([count for _, count in counts.rows])
    right = 100.0 * (truth[nearest.numpy()] == truth)
    return Outcome(samples=pd.DataFrame({"sample": [image.name for image, _ in counts.rows], "right": right}))


TASK = Task(
    name="counting",
    summary="Counts by the nearest image.",
    source="A test.",
    config=CountingConfig,
    metrics=(Metric("right"),),
    open=open_counts,
    measure=measure,
    smoke=CountingConfig(),
)

if __name__ == "__main__":
    command_line.run(lambda: main("counting"))
'''


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The project with two more files, and eight images of one or two squares."""
    clone = tmp_path / "clone"
    for folder in ("data", "dino_dense", "tasks", "configs"):
        shutil.copytree(PROJECT / folder, clone / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (clone / "data" / "counts.py").write_text(DATA)
    (clone / "tasks" / "counting.py").write_text(TASK)
    (clone / "set").mkdir()
    lines = ["image,count"]
    for index in range(8):
        image = Image.new("RGB", (32, 32))
        for square in range(1 + index % 2):
            ImageDraw.Draw(image).rectangle((2 + 14 * square, 2, 12 + 14 * square, 28), fill=(200, 200, 10 * index))
        image.save(clone / "set" / f"{index}.png")
        lines.append(f"{index}.png,{1 + index % 2}")
    (clone / "set" / "counts.csv").write_text("\n".join(lines))
    return clone


def run(clone: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tasks.counting", *words]
    return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_two_files_are_enough(clone: Path):
    words = ["--ckpt", "random:vit_micro_patch8_32", "--device", "cpu", "--out", "out", "--data", "set"]
    killed = run(clone, *words, "--killed")
    assert killed.returncode == -signal.SIGKILL
    assert not (clone / "out" / "report.json").exists()
    done = run(clone, *words)
    assert done.returncode == 0, done.stderr
    samples = pd.read_csv(clone / "out" / "samples.csv")
    assert samples["sample"].tolist() == [f"{index}.png" for index in range(8)]
    assert samples["right"].mean() == 100
    (clone / "set" / "counts.csv").write_text("image,count\n0.png,many\n")
    refused = run(clone, *words)
    assert refused.returncode == 2
    assert "set/counts.csv: count 'many' of 0.png, expected a whole number." in refused.stderr
