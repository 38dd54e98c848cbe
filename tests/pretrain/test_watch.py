"""A run that is measured while it trains: its table and curves, and the return to its best state."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from data.pretraining import open_pretraining_data
from dino_dense import load_backbone
from dino_dense.backbone.checkpoints import save_backbone
from dino_dense.checkpoint import read_tensors
from dino_dense.config import schema
from dino_dense.distributed import World
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.trainer import Trainer
from dino_dense.pretrain.watch import Measure, MeasureError, WorseError, alone, in_own_process, suite_of
from tasks.harness.batch import run_batch
from tasks.harness.options import BatchOptions
from tests.pretrain.tiny_run import TINY

PROJECT = Path(__file__).parents[2]
SMALL = [{"task": "knn", "config": {"resize": 32, "crop": 32}}]


@pytest.fixture
def suite(tmp_path: Path) -> str:
    file = tmp_path / "suite.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    return str(file)


def in_this_process(suite: Path, checkpoint: Path, out: Path) -> bool:
    """The batch command without a new process."""
    state = torch.random.get_rng_state()
    run_batch(BatchOptions(suite=str(suite), ckpt=(str(checkpoint),), out=str(out), device="cpu"))
    torch.random.set_rng_state(state)
    return True


@pytest.fixture
def watched(pictures: Path) -> Callable[..., pd.DataFrame]:
    """Train TINY with changes and measure in this process; returns watch.csv."""

    def run(out: Path, measure: Measure = in_this_process, **changes: Any) -> pd.DataFrame:
        config = replace(TINY, out=str(out), **changes)
        trainer = Trainer(config, open_pretraining_data(pictures), World(), torch.device("cpu"))
        trainer.measure = measure
        trainer.train()
        return pd.read_csv(out / "watch.csv")

    return run


def weights(file: Path) -> dict[str, torch.Tensor]:
    return read_tensors(file)[0]


def test_measurements_are_tabled_drawn_and_change_nothing(
    watched: Callable[..., pd.DataFrame], train: Callable[..., pd.DataFrame], tmp_path: Path, suite: str
):
    table = watched(tmp_path / "run", watch=(suite,), watch_every=2, max_steps=4)
    assert table["step"].tolist() == [0, 2, 4]
    assert set(table["metric"]) == {"top-1"}
    assert table["difference"][0] == 0
    assert (table["start"] == table["value"][0]).all()
    assert table["verdict"][1:].isin(["better", "worse", "undecided"]).all()
    assert (table["low"] <= table["high"]).all()
    assert (tmp_path / "run" / "watch.png").stat().st_size > 1000
    train(tmp_path / "unwatched", max_steps=4)
    ours, theirs = (weights(tmp_path / name / "last.safetensors") for name in ("run", "unwatched"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_that_becomes_worse_is_stopped_and_its_best_state_restored(
    watched: Callable[..., pd.DataFrame], tmp_path: Path, suite: str
):
    """The later checkpoint is measured with equal features for all images, which cannot tell classes apart."""
    saved: dict[str, dict[str, torch.Tensor]] = {}

    def spoiling(suite: Path, checkpoint: Path, out: Path) -> bool:
        saved[out.name] = weights(checkpoint)
        if len(saved) > 1:
            module = load_backbone(str(checkpoint)).module
            torch.nn.init.zeros_(module.norm.weight)
            checkpoint = checkpoint.with_name("spoiled.safetensors")
            save_backbone(checkpoint, module)
        return in_this_process(suite, checkpoint, out)

    with pytest.raises(WorseError, match=r"stopped at step 3.*top-1.*worse.*step 0") as caught:
        watched(tmp_path / "run", spoiling, watch=(suite,), watch_every=3, max_steps=9, rollback=True)
    assert caught.value.exit_status == 1
    teacher = weights(tmp_path / "run" / "teacher.safetensors")
    assert teacher.keys() == saved["step-0"].keys()
    assert all(torch.equal(teacher[name], saved["step-0"][name]) for name in teacher)
    state = read_tensors(tmp_path / "run" / "last.safetensors")
    assert state[1]["step"] == 0
    assert all(torch.equal(state[0][f"teacher.backbone.{name}"], value) for name, value in teacher.items())


def test_a_resumed_run_replaces_later_rows(watched: Callable[..., pd.DataFrame], tmp_path: Path, suite: str):
    options = {"watch": (suite,), "watch_every": 2, "save_every": 2}
    watched(tmp_path, max_steps=4, **options)
    table = watched(tmp_path, max_steps=6, resume=True, **options)
    assert table["step"].tolist() == [0, 2, 4, 6]


def test_a_failed_measurement_is_named(watched: Callable[..., pd.DataFrame], tmp_path: Path):
    file = tmp_path / "suite.yaml"
    file.write_text(yaml.safe_dump([{"task": "knn", "config": {"data": str(tmp_path / "nowhere")}}]))
    with pytest.raises(MeasureError, match=r"1 of 1 entries of suite\.yaml could not be measured"):
        watched(tmp_path / "run", watch=(str(file),), max_steps=1)


def test_unknown_names_are_refused(watched: Callable[..., pd.DataFrame], tmp_path: Path):
    with pytest.raises(ValueError, match=r"watch has 'davies', expected some of knn, incontext, davis, tokens"):
        watched(tmp_path / "run", watch=("davies",), max_steps=1)
    with pytest.raises(ValueError, match="rollback is on, but watch is empty"):
        PretrainConfig(rollback=True)
    assert [entry["task"] for entry in suite_of(("davis", "knn"))] == ["davis", "knn"]


def test_a_measuring_process_joins_no_group():
    variables = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x", "HOME": "/home"}
    assert alone(variables) == {"HOME": "/home"}


@pytest.mark.slow
def test_the_tasks_command_measures(tmp_path: Path, pictures: Path):
    """The way that a run takes by itself: a process of its own; its failure has the command's last lines."""
    file = tmp_path / "suite.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    config = replace(TINY, out=str(tmp_path / "run"), max_steps=1, watch=(str(file),), watch_every=5)
    Trainer(config, open_pretraining_data(pictures), World(), torch.device("cpu")).train()
    assert pd.read_csv(tmp_path / "run" / "watch.csv")["step"].tolist() == [0, 1]
    with pytest.raises(MeasureError, match=r"status 2:(.|\n)*no such suite file"):
        in_own_process("cpu")(tmp_path / "none.yaml", tmp_path / "run", tmp_path / "out")


@pytest.mark.slow
def test_two_processes_wait_for_the_measurement_and_stop_together(tmp_path: Path, pictures: Path, suite: str):
    """Process 0 measures; the second measurement is worse, so both stop, and the state of the start is restored."""
    settings = replace(TINY, out=str(tmp_path / "run"), data=str(pictures), max_steps=6, save_every=6)
    settings = replace(settings, watch=(suite,), watch_every=2, rollback=True)
    (tmp_path / "recipe.yaml").write_text(schema.to_yaml(settings))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.pretrain.watched_processes", "--config", str(tmp_path / "recipe.yaml")]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=PROJECT, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.count("error:") == done.stderr.count("stopped at step 2, worse than at the start") == 2
    assert read_tensors(tmp_path / "run" / "last.safetensors")[1]["step"] == 0
