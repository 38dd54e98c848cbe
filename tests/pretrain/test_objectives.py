"""A new loss is one file and one YAML: a toy trains through the ordinary command, and its state survives a kill."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from dino_dense.checkpoint import read_tensors
from dino_dense.config import schema
from dino_dense.pretrain import objectives
from tests.pretrain.tiny_run import TINY, write_pictures

PROJECT = Path(__file__).parents[2]
TOY = '''
"""A toy: features of all views are drawn to a running mean, with a head of its own."""

import copy
from dataclasses import dataclass

import torch
from torch import nn

from dino_dense.pretrain.objective import Objective, Terms
from dino_dense.pretrain.options import COUNT, Options


@dataclass(frozen=True)
class ToyOptions(Options):
    """Objective toy"""

    toy_width: int = 5
    """Channels of the head. (nobody)"""

    RANGES = {"toy_width": COUNT}


class Toy(Objective):
    """Squared distance to a running mean."""

    Options = ToyOptions
    columns = ("toy_distance", "toy_rate")

    def __init__(self, options, width):
        super().__init__(options, width)
        self.student_head = nn.Linear(width, options.toy_width)
        self.teacher_head = copy.deepcopy(self.student_head).requires_grad_(False)
        self.register_buffer("mean", torch.zeros(options.toy_width))

    def forward(self, student, teacher, step):
        distance = (self.student_head(student.cls) - self.mean - 1).square().mean()
        with torch.no_grad():
            statistics = {"mean": self.teacher_head(teacher.cls).mean(0)}
        return Terms(distance, {"toy_distance": distance.detach()}, statistics)

    def after_step(self, statistics):
        self.mean.lerp_(statistics["mean"], 0.1)

    def scheduled(self, step):
        return {"toy_rate": 1 / (1 + step.number)}


OBJECTIVE = Toy
'''


def command(clone: Path, run: str) -> list[str]:
    return [sys.executable, "-m", "dino_dense.pretrain", "--config", "toy.yaml", "--out", run, "--resume", "auto"]


def test_a_toy_objective_is_one_file_and_one_yaml(tmp_path: Path):
    clone = tmp_path / "clone"
    for room in ("data", "dino_dense", "configs"):
        shutil.copytree(PROJECT / room, clone / room, ignore=shutil.ignore_patterns("__pycache__"))
    (clone / "dino_dense/pretrain/objectives/toy.py").write_text(TOY)
    write_pictures(clone / "pictures", 26)
    settings = replace(TINY, data="pictures", epochs=10, save_every=3)
    (clone / "toy.yaml").write_text(schema.to_yaml(settings) + "toy_width: 7\n")
    text = (clone / "toy.yaml").read_text().replace("objectives:\n- dino\n", "objectives: [dino, toy]\n")
    (clone / "toy.yaml").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"}

    def start(run: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(command(clone, run), cwd=clone, env=environment, stderr=subprocess.PIPE, text=True)

    peaceful, killed = start("peaceful"), start("killed")
    while not (clone / "killed/last.safetensors").exists():
        assert killed.poll() is None, killed.communicate()[1]
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    again = start("killed")
    for process in (peaceful, again):
        assert process.wait(300) == 0, process.communicate()[1]
    states = [read_tensors(clone / run / "last.safetensors")[0] for run in ("peaceful", "killed")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert states[0]["objectives.toy.mean"].any()
    assert states[0]["objectives.toy.student_head.weight"].shape[0] == 7
    assert not torch.equal(
        states[0]["objectives.toy.student_head.weight"], states[0]["objectives.toy.teacher_head.weight"]
    )
    log = pd.read_csv(clone / "killed/log.csv")
    assert {"toy_distance", "toy_rate", "toy_loss", "dino_loss", "kl"} <= set(log.columns)
    assert log["step"].tolist() == list(range(1, 31))
    pd.testing.assert_series_equal(log["loss"], log["dino_loss"] + log["toy_loss"], check_names=False, rtol=1e-4)
    assert log["toy_distance"].iloc[-1] < log["toy_distance"].iloc[0]


def test_an_unknown_objective_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"objectives has 'dyno', expected some of .*dino.*did you mean dino"):
        replace(TINY, objectives=("dyno",))
    with pytest.raises(ValueError, match="expected one or more, each once"):
        replace(TINY, objectives=("dino", "dino"))


@pytest.mark.parametrize("name", objectives.names())
def test_every_objective_has_its_own_columns_and_options(name: str):
    others = [objectives.get(other) for other in objectives.names() if other != name]
    one = objectives.get(name)
    assert not set(one.columns) & {column for other in others for column in other.columns}
    if one.Options is not None:
        assert schema.field_docs(one.Options)
