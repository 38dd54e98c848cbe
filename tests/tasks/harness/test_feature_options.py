"""--layers, --norm, --heads and --network reach the backbone, the report and the batch."""

from pathlib import Path

import pytest
import torch

from tasks import RunOptions, get, run_one
from tasks.harness.options import BatchOptions
from tasks.harness.pairs import run_options
from tasks.harness.runner import open_backbone

RANDOM = "random:vit_micro_patch8_64"


def test_layers_are_measured_noted_and_kept_apart(tmp_path: Path):
    task = get("knn")
    plain, other = (
        run_one(task, RunOptions(ckpt=RANDOM, out=str(tmp_path / name), device="cpu", **changes), task.smoke)
        for name, changes in (("a", {}), ("b", {"layers": (0, -1), "norm": False}))
    )
    assert "layers" not in plain.note
    assert "Features of layers 0, -1 (-1 is the last), before the final norm." in other.note
    assert plain.checkpoint["embed_dim"] == 128
    assert other.checkpoint["embed_dim"] == 256
    with pytest.raises(ValueError, match="another run"):
        run_one(task, RunOptions(ckpt=RANDOM, out=str(tmp_path / "a"), device="cpu", layers=(0,)), task.smoke)


def test_blocks_and_layers_are_not_asked_for_together(tmp_path: Path):
    options = RunOptions(ckpt=RANDOM, out=str(tmp_path / "a"), device="cpu", layers=(0,))
    with pytest.raises(ValueError, match=r"layers is \(0,\), and the task joins several blocks"):
        run_one(get("linear"), options, get("linear").smoke)


def test_options_of_a_batch_are_those_of_its_runs(capsys: pytest.CaptureFixture[str]):
    options = BatchOptions(suite="dense", ckpt=(RANDOM,), network="student", heads=4, layers=(-2,), norm=False)
    run = run_options(RANDOM, options)
    assert (run.network, run.heads, run.layers, run.norm) == ("student", 4, (-2,), False)
    backbone = open_backbone(RunOptions(ckpt=RANDOM, heads=4), torch.device("cpu"))
    assert backbone.num_heads == 4
    assert "heads4" in backbone.name
