"""A task in a package of its own: found by its entry point, run in a batch beside ours, shown in the report."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

TASK = '''
"""Share of images whose class token points the way of the first one's."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from data.images import list_images, read_rgb
from data.sample import sample_data
from dino_dense import Metric
from tasks import DataFacts, Outcome, Task


@dataclass(frozen=True)
class CosineConfig:
    """Which images"""

    data: str | None = None
    """Unused: the embedded images."""
    n: int = 4
    """Images."""


@dataclass(frozen=True)
class Images:
    paths: list
    facts: DataFacts


def open_images(config):
    paths = list_images(sample_data().images / "val")[: config.n]
    return Images(paths, DataFacts("embedded images", "", len(paths), "images", "0" * 64))


def measure(backbone, images, config, session):
    pixels = torch.stack([torch.from_numpy(np.array(read_rgb(path).resize((64, 64)))) for path in images.paths])
    cls = backbone.extract(pixels.permute(0, 3, 1, 2) / 255, {"cls"}).cls
    cosine = torch.cosine_similarity(cls, cls[:1]).clamp(0, 1)
    samples = pd.DataFrame({"sample": [path.name for path in images.paths], "cosine": 100 * cosine.double().numpy()})
    return Outcome(samples=samples)


TASK = Task("cosine", "Cosines.", "none", CosineConfig, (Metric("cosine"),), open_images, measure, CosineConfig())
'''
METADATA = "Metadata-Version: 2.1\nName: tiny-task\nVersion: 1.0\n"
ENTRY_POINTS = "[dino_dense.tasks]\ncosine = tiny_task:TASK\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """What an installer leaves of a package."""
    site = tmp_path / "site"
    about = site / "tiny_task-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "tiny_task.py").write_text(TASK)
    (about / "METADATA").write_text(METADATA)
    (about / "entry_points.txt").write_text(ENTRY_POINTS)
    return site


def test_it_is_listed_run_and_reported(site: Path, tmp_path: Path):
    suite = tmp_path / "suite.yaml"
    suite.write_text("- {task: cosine, config: {n: 3}}\n- {task: knn, config: {resize: 64, crop: 64}}\n")
    root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, str(site)]), "OMP_NUM_THREADS": "1"}
    out = tmp_path / "out"

    def call(*words: str) -> str:
        command = [sys.executable, "-m", "tasks", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "cosine" in call()
    call("--suite", str(suite), "--ckpt", "random:vit_micro_patch8_64", "--out", str(out), "--device", "cpu")
    pairs = pd.read_csv(out / "pairs.csv").set_index(["entry", "metric"])
    assert 0 < pairs.loc[("cosine", "cosine"), "value"] <= 100
    assert pairs.loc[("cosine", "cosine"), "n"] == 3
    assert "cosine" in (out / "index.html").read_text()
    alone = call("cosine", "--ckpt", "random:vit_micro_patch8_64", "--out", str(tmp_path / "alone"))
    assert "random:vit_micro_patch8_64" in alone
