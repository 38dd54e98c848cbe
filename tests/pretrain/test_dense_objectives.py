"""iBOT, KoLeo, Gram anchoring, PaKA and Sinkhorn in whole runs: exact to resume, alike however the batch is split."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dino_dense.checkpoint import read_tensors
from dino_dense.config import schema
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.network import build_network
from dino_dense.pretrain.objective import Step, Views
from dino_dense.pretrain.objectives.gram import Gram, at_grid, gram_loss
from dino_dense.pretrain.run_folder import RunError
from tests.pretrain.tiny_run import TINY

Train = Callable[..., pd.DataFrame]
TIMES = ["images_per_s", "seconds"]
PROJECT = Path(__file__).parents[2]
SMALL = {"ibot_out_dim": 24, "max_steps": 6, "save_every": 3}
SPLIT_FREE = {
    "ibot": {"objectives": ("dino", "ibot"), "ibot_visible_weight": 0.5, "ibot_center_over": "all"},
    "shared": {"objectives": ("dino", "ibot"), "ibot_head": "shared", "ibot_masks": "dinov3"},
    "gram": {"objectives": ("dino", "gram"), "gram_teacher": "run", "gram_begin": 2, "gram_refresh": 2},
    "gram of larger crops": {
        "objectives": ("dino", "gram"),
        "gram_teacher": "run",
        "gram_begin": 2,
        "gram_crop_size": 48,
        "gram_photometric": True,
    },
    "paka": {"objectives": ("dino", "paka"), "paka_tokens": 9},
}
"""Objectives whose loss is a mean over images."""
COUPLED = {
    "koleo": {"objectives": ("dino", "koleo"), "koleo_topk": 2},
    "sinkhorn": {"objectives": ("dino", "ibot"), "dino_targets": "sinkhorn", "ibot_targets": "sinkhorn"},
}
"""Objectives that compare the images of a micro-batch."""
ALL = {
    **COUPLED["sinkhorn"],
    "objectives": ("dino", "ibot", "koleo", "gram", "paka"),
    "gram_teacher": "start",
    "gram_crop_size": 64,
    "paka_teacher": "start",
}


@pytest.fixture(autouse=True)
def without_a_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dino_dense.pretrain.monitor.draw_curve", lambda run, levels: None)


def curve(log: pd.DataFrame) -> pd.DataFrame:
    return log.drop(columns=TIMES)


@pytest.mark.parametrize("name", [*SPLIT_FREE, *COUPLED, "all"])
def test_a_run_in_parts_is_the_run_in_one_piece(name: str, tmp_path: Path, train: Train):
    changes = {**SMALL, **({**SPLIT_FREE, **COUPLED, "all": ALL}[name])}
    whole = train(tmp_path / "whole", **changes)
    assert np.isfinite(whole.drop(columns=TIMES)).all().all()
    train(tmp_path / "parts", **{**changes, "max_steps": 3})
    parts = train(tmp_path / "parts", resume=True, **changes)
    pd.testing.assert_frame_equal(curve(parts), curve(whole), check_exact=True)
    ours, theirs = (read_tensors(tmp_path / run / "last.safetensors")[0] for run in ("parts", "whole"))
    assert ours.keys() == theirs.keys()
    assert not [key for key in ours if not torch.equal(ours[key], theirs[key])]


@pytest.mark.parametrize("name", SPLIT_FREE)
def test_micro_batches_give_the_curve_of_the_whole_batch(name: str, tmp_path: Path, train: Train):
    changes = {**SMALL, **SPLIT_FREE[name]}
    whole, parts = (train(tmp_path / f"{n}", accumulate=n, **changes) for n in (1, 4))
    own = [column for column in whole if column.endswith(("loss", "entropy", "masked", "kl"))]
    np.testing.assert_allclose(parts[own], whole[own], atol=1e-4)


@pytest.mark.parametrize("name", COUPLED)
def test_other_micro_batches_are_refused_where_images_are_compared(name: str, tmp_path: Path, train: Train):
    changes = {**SMALL, **COUPLED[name], "max_steps": 1}
    train(tmp_path / "run", **changes)
    with pytest.raises(RunError, match="a loss that compares images saw 8 images at a time, now 4"):
        train(tmp_path / "run", resume=True, **{**changes, "accumulate": 2, "max_steps": 2})


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one(pictures: Path, tmp_path: Path, train: Train):
    config = replace(TINY, **{**ALL, **SMALL}, data=str(pictures), out=str(tmp_path / "two"))
    (tmp_path / "recipe.yaml").write_text(schema.to_yaml(config))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dino_dense.pretrain"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    command = [sys.executable, *launch, "--config", str(tmp_path / "recipe.yaml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    two, one = pd.read_csv(tmp_path / "two" / "log.csv"), train(tmp_path / "one", **ALL, **SMALL)
    own = [column for column in one if column.endswith(("loss", "entropy", "masked", "kl"))]
    np.testing.assert_allclose(two[own], one[own], atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ("dino", "gram"), "gram_teacher": "run"}, "before there is a teacher: set --gram-begin"),
        ({"ibot_mask_ratios": (0.5, 0.1)}, "ibot_mask_ratios is .* expected a range"),
        ({"koleo_topk": 0}, "koleo_topk is 0, expected from 1"),
        (
            {"objectives": ("gram",), "gram_crop_size": 112},
            "smaller than global_crop_size 224: set --gram-crop-size 448",
        ),
        ({"gram_photometric": True}, "gram_photometric is on, but gram_crop_size is not set"),
        ({"gram_shrink": True}, "gram_shrink is on, but gram_crop_size is not set"),
        (
            {"gram_shrink": True, "gram_crop_size": 448, "gram_photometric": True},
            "gram_shrink is on, but gram_photometric is on: .* Set --gram-crop-size without --gram-photometric",
        ),
    ],
)
def test_settings_that_contradict_each_other(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": ("ibot",), "ibot_head": "shared"}, "dino is none of the objectives"),
        ({"objectives": ("dino", "koleo"), "koleo_topk": 8}, "its 8 nearest, but there are 8 in a micro-batch"),
        ({"objectives": ("dino", "paka"), "arch": "resnet10t"}, "learns patch tokens, but resnet10t"),
        ({"objectives": ("dino", "gram"), "gram_crop_size": 60}, "gram_crop_size is 60: expected a multiple of .* 64"),
        (
            {"objectives": ("gram",), "gram_teacher": "random:vit_micro_patch8_64", "gram_refresh": 3},
            "this run's teacher cannot replace random:vit_micro_patch8_64",
        ),
    ],
)
def test_objectives_that_cannot_work_say_why(changes: dict, message: str, tmp_path: Path, train: Train):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", max_steps=1, **changes)


def test_gram_of_its_own_start_begins_at_zero_and_a_checkpoint_may_be_the_teacher(tmp_path: Path, train: Train):
    plain = {"objectives": ("gram",), "max_steps": 2, "drop_path_rate": 0.0, "save_every": 2}
    log = train(tmp_path / "start", **plain)
    assert log["loss"].iloc[0] < 1e-10
    log = train(tmp_path / "file", gram_teacher=str(tmp_path / "start"), seed=1, **plain)
    assert log["loss"].iloc[0] > 1e-6
    tensors = read_tensors(tmp_path / "file" / "last.safetensors")[0]
    start = read_tensors(tmp_path / "start" / "last.safetensors")[0]
    name = "backbone.blocks.0.attn.qkv.weight"
    assert torch.equal(tensors[f"objectives.gram.anchor.{name}"], start[f"teacher.{name}"])


def test_the_gram_teacher_sees_larger_crops_and_its_tokens_come_back_to_the_students_grid():
    options = replace(TINY, objectives=("gram",), gram_crop_size=64)
    gram = Gram(options, width=128)
    network = build_network(TINY, TINY, needs_patches=True)
    gram.connect({}, network)
    crops, larger = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 64, 64)
    student, step = Views(torch.zeros(2, 128), torch.randn(2, 16, 128), None, crops), Step(0, 0)
    with torch.no_grad():
        tokens = network.eval()([larger]).tokens()
    assert tokens.shape[1] == 64
    expected = gram_loss(student.tokens(), at_grid(tokens, (8, 8), (4, 4)))
    assert torch.equal(gram(student, student._replace(larger=larger), step).loss, expected)
    with pytest.raises(ValueError, match="no larger crops"):
        gram(student, student, step)
