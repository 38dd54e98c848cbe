"""Runs that begin with a checkpoint's weights, and runs in which only parts of the network learn."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from dino_dense import load_backbone
from dino_dense.backbone.checkpoints import save_backbone
from dino_dense.checkpoint import read_tensors, write_tensors
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.start import LEAST_FALL, WINDOW, HeadsFirst, StartOptions, freeze
from tests.pretrain.tiny_run import TINY

Train = Callable[..., pd.DataFrame]
UNSAID = PretrainConfig.arch
"""The default, as of a person who does not name an architecture."""
OTHER = "vit_micro_patch8_64"
"""Another grid than TINY's."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("start") / "published.safetensors"
    save_backbone(file, load_backbone(f"random:{OTHER}", seed=3).module)
    return file


def weights(run: Path, prefix: str) -> dict[str, Tensor]:
    tensors, _ = read_tensors(run / "last.safetensors")
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    """Names of tensors with equal values."""
    assert a.keys() == b.keys()
    return {name for name in a if torch.equal(a[name], b[name])}


def test_student_and_teacher_begin_with_the_files_weights(checkpoint: Path, tmp_path: Path, train: Train):
    """A step of rate 0 changes nothing; the run's folder names the file's architecture."""
    train(
        tmp_path,
        start=str(checkpoint),
        arch=UNSAID,
        lr=1e-9,
        min_lr=0.0,
        weight_decay=0.0,
        weight_decay_end=0.0,
        max_steps=1,
    )
    source = read_tensors(checkpoint)[0]
    for network in ("student.backbone.", "teacher.backbone."):
        assert equal(weights(tmp_path, network), source) == set(source)
    assert f"arch: {OTHER}" in (tmp_path / "config.yaml").read_text()
    assert load_backbone(str(tmp_path)).name == OTHER


def test_drop_path_and_other_crop_sizes_are_the_runs_own(checkpoint: Path, tmp_path: Path, train: Train):
    log = train(tmp_path, start=str(checkpoint), arch=UNSAID, drop_path_rate=0.3, max_steps=3)
    assert log["loss"].notna().all()
    assert len(log) == 3


def test_another_architecture_than_the_files_is_refused(checkpoint: Path, tmp_path: Path, train: Train):
    with pytest.raises(ValueError, match=f"start is a {OTHER}: leave arch out"):
        train(tmp_path, start=str(checkpoint), arch="vit_tiny_patch16_224")


def test_other_pixels_are_refused(tmp_path: Path, train: Train):
    """Crops are normalized with ImageNet's statistics; DINOv3's satellite weights have their own."""
    backbone = load_backbone(f"random:{OTHER}")
    file = tmp_path / "satellite.safetensors"
    save_backbone(file, backbone.module, extra={"mean": [0.43, 0.411, 0.296], "std": [0.213, 0.156, 0.143]})
    with pytest.raises(ValueError, match=r"0\.296.*ImageNet"):
        train(tmp_path / "run", start=str(file), arch=UNSAID)


def test_a_run_continues_with_its_heads(tmp_path: Path, train: Train):
    """A run that starts from another run has its heads too; published files without heads get new ones."""
    train(tmp_path / "first", max_steps=2)
    unchanged = {"lr": 1e-9, "min_lr": 0.0, "weight_decay": 0.0, "weight_decay_end": 0.0, "max_steps": 1}
    train(tmp_path / "second", start=str(tmp_path / "first"), **unchanged)
    head = weights(tmp_path / "first", "objectives.dino.teacher_head.")
    for side in ("teacher_head.", "student_head."):
        assert equal(weights(tmp_path / "second", f"objectives.dino.{side}"), head) == set(head)
    train(tmp_path / "third", start=str(tmp_path / "first"), out_dim=24, **unchanged)
    assert len(weights(tmp_path / "third", "objectives.dino.teacher_head.")["last_layer.weight_v"]) == 24


@pytest.mark.parametrize("newer_names", [False, True])
def test_heads_of_published_training_files(tmp_path: Path, train: Train, newer_names: bool):
    """DINO's checkpoint.pth, and DINOv2's names in newer versions of PyTorch."""
    train(tmp_path / "run", max_steps=2)
    head = weights(tmp_path / "run", "objectives.dino.teacher_head.")
    body = weights(tmp_path / "run", "teacher.backbone.")
    stem = "dino_head" if newer_names else "head"
    named = {f"backbone.{name}": value for name, value in body.items()}
    for name, value in head.items():
        if newer_names:
            name = name.replace("weight_g", "parametrizations.weight.original0")
            name = name.replace("weight_v", "parametrizations.weight.original1")
        named[f"{stem}.{name}"] = value
    file = tmp_path / "checkpoint.pth"
    torch.save({"teacher": named, "epoch": 3}, file)
    train(tmp_path / "next", start=str(file), lr=1e-9, min_lr=0.0, weight_decay=0.0, weight_decay_end=0.0, max_steps=1)
    assert equal(weights(tmp_path / "next", "objectives.dino.teacher_head."), head) == set(head)


@pytest.mark.parametrize(("trainable", "blocks"), [("last:1", 1), ("last:3", 3), ("last:0", 0)])
def test_only_the_named_part_learns(checkpoint: Path, tmp_path: Path, train: Train, trainable: str, blocks: int):
    train(tmp_path, start=str(checkpoint), arch=UNSAID, trainable=trainable, max_steps=3)
    source = read_tensors(checkpoint)[0]
    depth = 4
    moved = set(source) - equal(weights(tmp_path, "student.backbone."), source)
    assert {name.split(".")[1] for name in moved if name.startswith("blocks.")} == {
        str(index) for index in range(depth - blocks, depth)
    }
    assert {name.split(".")[0] for name in moved} == ({"blocks", "norm"} if blocks else {"norm"})
    moved = set(source) - equal(weights(tmp_path, "teacher.backbone."), source)
    assert all(name.startswith(("blocks.", "norm.")) for name in moved), "the teacher's frozen parts move no bit"


def test_more_blocks_than_there_are_is_refused():
    with pytest.raises(ValueError, match="last:5, but the backbone has 4 blocks"):
        freeze(load_backbone(f"random:{OTHER}").module, "last:5")
    with pytest.raises(ValueError, match="no blocks"):
        freeze(nn.Linear(2, 2), "last:1")
    with pytest.raises(ValueError, match="expected all, or last:N"):
        StartOptions(trainable="first:2")


def test_heads_learn_alone_at_first(checkpoint: Path, tmp_path: Path, train: Train):
    train(tmp_path, start=str(checkpoint), arch=UNSAID, heads_first=2, freeze_last_layer=0, max_steps=2)
    source = read_tensors(checkpoint)[0]
    assert equal(weights(tmp_path, "student.backbone."), source) == set(source)
    heads = [weights(tmp_path, f"objectives.dino.{side}_head.") for side in ("student", "teacher")]
    assert not equal(*heads) & {"mlp.0.weight", "last_layer.weight_v"}
    train(tmp_path, start=str(checkpoint), arch=UNSAID, heads_first=2, freeze_last_layer=0, max_steps=3, resume=True)
    assert equal(weights(tmp_path, "student.backbone."), source) != set(source)


@pytest.mark.parametrize("heads_first", [4, "flat"])
def test_a_run_stopped_while_heads_learn_resumes_exactly(
    checkpoint: Path, tmp_path: Path, train: Train, heads_first: int
):
    options = {"start": str(checkpoint), "arch": UNSAID, "heads_first": heads_first, "save_every": 1}
    train(tmp_path / "whole", **options, max_steps=6)
    train(tmp_path / "parts", **options, max_steps=3)
    train(tmp_path / "parts", **options, max_steps=6, resume=True)
    whole, parts = (read_tensors(tmp_path / name / "last.safetensors")[0] for name in ("whole", "parts"))
    assert equal(whole, parts) == set(whole)


def test_flat_is_when_the_mean_loss_no_longer_falls():
    def steps_until_over(losses: list[float]) -> int | None:
        heads_first = HeadsFirst("flat")
        for number, loss in enumerate(losses):
            if not heads_first.rests(number):
                return number
            heads_first.record(torch.tensor(loss))
        return None

    falling = [10 * 0.9 ** (step / WINDOW) for step in range(10 * WINDOW)]
    assert steps_until_over(falling) is None
    assert steps_until_over([5.0] * 10 * WINDOW) == 2 * WINDOW
    settles = [10 - 2 * min(step, 4 * WINDOW) / WINDOW for step in range(20 * WINDOW)]
    assert 4 * WINDOW < (steps_until_over(settles) or 0) <= 6 * WINDOW
    assert LEAST_FALL == 0.01


def test_the_backbone_has_its_own_rate(checkpoint: Path, tmp_path: Path, train: Train):
    train(
        tmp_path,
        start=str(checkpoint),
        arch=UNSAID,
        backbone_lr=0.0,
        weight_decay=0.0,
        weight_decay_end=0.0,
        max_steps=3,
    )
    source = read_tensors(checkpoint)[0]
    assert equal(weights(tmp_path, "student.backbone."), source) == set(source)


def test_a_convolutional_network_starts_too(tmp_path: Path, train: Train):
    file = tmp_path / "resnet.safetensors"
    save_backbone(file, load_backbone("random:resnet18").module)
    train(tmp_path / "run", start=str(file), arch=UNSAID, drop_path_rate=0.0, max_steps=1)
    assert load_backbone(str(tmp_path / "run")).name == "resnet18"


def test_a_file_that_is_no_network_is_refused(tmp_path: Path, train: Train):
    write_tensors(tmp_path / "empty.safetensors", {"x": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="unknown architecture"):
        train(tmp_path / "run", start=str(tmp_path / "empty.safetensors"), arch=UNSAID)


def test_options_without_start_change_nothing():
    assert replace(TINY, start=None) == TINY
    assert StartOptions() == StartOptions(start=None, trainable="all", heads_first=0, backbone_lr=1.0)
