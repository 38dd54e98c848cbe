"""`--shard` on two processes against replicas on two processes: the same curve, files and resumed run."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from dino_dense.backbone.checkpoints import load_file
from dino_dense.checkpoint import read_tensors
from dino_dense.config import schema
from dino_dense.pretrain.config import PretrainConfig
from tests.pretrain.tiny_run import TINY

PROJECT = Path(__file__).parents[2]
DENSE = {"objectives": ["dino", "ibot", "gram", "paka"], "ibot_out_dim": 48, "gram_refresh": 2}
SETTINGS = {**schema.to_plain(TINY), **DENSE, "accumulate": 2, "activation_checkpointing": True}


def two_processes(out: Path, *options: str, module: str = "dino_dense.pretrain") -> str:
    """Run a module on two processes; returns the output."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", module]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [*launcher, *options, "--out", str(out)], env=environment, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_shared_weights_give_the_run_of_replicas(pictures: Path, tmp_path: Path, train: Callable[..., pd.DataFrame]):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(SETTINGS | {"data": str(pictures), "max_steps": 7}))
    options = ["--config", str(recipe)]
    parts = two_processes(tmp_path / "shared", *options, "--shard", module="tests.pretrain.sharded_processes")
    assert parts.count("holds half") == 2
    two_processes(tmp_path / "shared", *options, "--shard", "--max-steps", "10", "--resume")
    two_processes(tmp_path / "replicas", *options, "--max-steps", "10")
    curves = [pd.read_csv(tmp_path / name / "log.csv") for name in ("shared", "replicas")]
    assert len(curves[0]) == len(curves[1]) == 10
    for column in ("loss", "grad_norm", "ibot_loss", "gram_loss", "paka_loss", "feature_std"):
        np.testing.assert_allclose(curves[0][column], curves[1][column], rtol=1e-4, atol=1e-5, err_msg=column)
    shared, replicas = (read_tensors(tmp_path / name / "last.safetensors")[0] for name in ("shared", "replicas"))
    assert {name: value.shape for name, value in shared.items()} == {n: v.shape for n, v in replicas.items()}
    for name in ("student.backbone.blocks.0.attn.qkv.weight", "teacher.backbone.cls_token"):
        np.testing.assert_allclose(shared[name], replicas[name], atol=1e-4)
    load_file(tmp_path / "shared" / "teacher.safetensors")
    # One process goes on with the shared run's files.
    dense = {name: tuple(value) if isinstance(value, list) else value for name, value in DENSE.items()}
    alone = train(tmp_path / "shared", **dense, max_steps=12, resume=True, accumulate=2)
    assert len(alone) == 12
    assert np.isfinite(alone["loss"]).all()


@pytest.mark.parametrize("other", [{"optimizer": "lars"}, {"dtype": "fp16"}])
def test_what_needs_whole_gradients_is_refused(other: dict[str, str]):
    with pytest.raises(ValueError, match=r"shard is on with .* it works with adamw"):
        schema.from_plain(PretrainConfig, {"shard": True, **other})
