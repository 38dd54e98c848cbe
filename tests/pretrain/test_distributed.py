"""Two processes under torchrun against one: the same curve, and the command line end to end."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from dino_dense.config import command_line, schema
from dino_dense.pretrain.__main__ import main
from tests.pretrain.tiny_run import TINY

PROJECT = Path(__file__).parents[2]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dino_dense.pretrain"]


@pytest.fixture
def options(pictures: Path, tmp_path: Path) -> list[str]:
    settings = {**schema.to_plain(TINY), "data": str(pictures), "max_steps": 10, "accumulate": 2}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return ["--config", str(tmp_path / "recipe.yaml")]


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one_and_resume_as_one(
    options: list[str], tmp_path: Path, train: Callable[..., pd.DataFrame]
):
    command = [sys.executable, *TORCHRUN, *options, "--out", str(tmp_path / "two"), "--max-steps", "7"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(pd.read_csv(tmp_path / "two" / "log.csv")) == 7
    two = train(tmp_path / "two", max_steps=10, resume=True)
    one = train(tmp_path / "one", max_steps=10, accumulate=1)
    assert two["step"].tolist() == one["step"].tolist() == list(range(1, 11))
    for column in ("loss", "teacher_entropy", "kl", "feature_std"):
        np.testing.assert_allclose(two[column], one[column], atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/no/such/folder"], "/no/such/folder: no such folder"),
        (["--batch-size", "1000"], "26 image(s) do not fill one batch of 1000"),
        (["--arch", "vit_smal_patch16_224"], "vit_small_patch16_224"),
    ],
)
def test_errors_are_one_plain_message_and_leave_nothing(
    arguments: list[str],
    message: str,
    options: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(sys, "argv", ["pretrain", *options, "--out", str(tmp_path / "run"), *arguments])
    with pytest.raises(SystemExit) as end:
        command_line.run(main)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
