"""Linear probe: the grid against heads trained one by one, choices, continuation, and bad settings."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from dino_dense import Report, load_backbone
from dino_dense.checkpoint import read_tensors
from dino_dense.config import presets
from dino_dense.probes.classes import (
    Evaluation,
    HeadGrid,
    cosine_factor,
    hold_out,
    logistic_regressions,
    random_tenth,
    resident,
    shuffled_batches,
    train_heads,
)
from tasks import RunOptions, get, run_one
from tasks.images.features import CLS, check_finite, cls_pieces, extract_pieces, finite_rows
from tasks.linear import LinearConfig, pieces_of
from tests.device import chosen_name
from tests.tasks.test_knn_task import RANDOM, make_folder


@pytest.fixture
def blobs() -> Evaluation:
    """Three classes of 40 points that lines can tell apart, nearly."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    return Evaluation(torch.randn(120, 5, generator=generator) + 4.0 * F.one_hot(labels, 5), labels)


def one_head(images: Evaluation, lr: float, epochs: int, batch: int) -> torch.nn.Linear:
    """The published loop, written out for one learning rate."""
    start = HeadGrid([lr], 5, 3, 0.9, seed=0)
    head = torch.nn.Linear(5, 3)
    head.weight.data, head.bias.data = start.weight.detach()[0].T.clone(), start.bias.detach()[0, 0].clone()
    optimizer = torch.optim.SGD(head.parameters(), lr, momentum=0.9)
    batches = shuffled_batches(*images, batch, torch.device("cpu"), seed=0)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = lr * cosine_factor(epoch, epochs)
        for features, labels in batches(epoch):
            optimizer.zero_grad()
            F.cross_entropy(head(features), labels).backward()
            optimizer.step()
    return head


@pytest.mark.parametrize(("free", "lie_on"), [(4 * 120 * 5 * 4, "cuda"), (4 * 120 * 5 * 4 - 4, "cpu")])
def test_features_lie_on_a_gpu_that_has_room(free: int, lie_on: str, monkeypatch: pytest.MonkeyPatch):
    """With tensors that have a device and no content; a device that mixes them is refused there too."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    gpu = torch.device("cuda", 0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        features, labels = torch.zeros(120, 5), torch.zeros(120, dtype=torch.long)
        assert resident(features, gpu).device.type == lie_on
        batches = list(shuffled_batches(features, labels, 32, gpu, seed=0)(0))
    assert [len(part) for part, _ in batches] == [32, 32, 32, 24]
    assert {part.device for batch in batches for part in batch} == {gpu}


def test_a_grid_is_as_many_heads_trained_one_by_one(blobs: Evaluation, tmp_path: Path):
    rates = [1e-3, 0.03, 0.5]
    grid = HeadGrid(rates, 5, 3, 0.9, seed=0)
    batches = shuffled_batches(*blobs, 32, torch.device("cpu"), seed=0)
    log = train_heads(grid, batches, 7, blobs, tmp_path / "state")
    for index, lr in enumerate(rates):
        alone = one_head(blobs, lr, 7, 32)
        torch.testing.assert_close(grid.weight[index].T, alone.weight, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(grid.bias[index, 0], alone.bias, rtol=1e-4, atol=1e-6)
        top1 = 100 * (alone(blobs.features).argmax(1) == blobs.labels).float().mean().item()
        assert log[log["lr"].sub(lr).abs() < 1e-6]["top-1"].iloc[-1] == pytest.approx(top1)
        torch.testing.assert_close(grid.predict(blobs.features, index), alone(blobs.features), rtol=1e-4, atol=1e-5)


def test_a_stopped_grid_goes_on_exactly(blobs: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dino_dense.probes.classes.SAVE_SECONDS", 0.0)
    batches = shuffled_batches(*blobs, 32, torch.device("cpu"), seed=0)

    def grid() -> HeadGrid:
        return HeadGrid([0.01, 0.1], 5, 3, 0.9, seed=0)

    whole = grid()
    log = train_heads(whole, batches, 6, blobs, tmp_path / "whole")

    def stopping(epoch: int):
        if epoch == 4:
            raise KeyboardInterrupt
        return batches(epoch)

    with pytest.raises(KeyboardInterrupt):
        train_heads(grid(), stopping, 6, blobs, tmp_path / "state")
    resumed = grid()
    again = train_heads(resumed, batches, 6, blobs, tmp_path / "state")
    assert torch.equal(resumed.weight, whole.weight)
    pd.testing.assert_frame_equal(again, log)


def test_cosine_falls_from_one_to_zero():
    factors = [cosine_factor(epoch, 10) for epoch in range(11)]
    assert factors[0] == 1
    assert factors[5] == pytest.approx(0.5)
    assert factors[10] == pytest.approx(0)


def test_logistic_regression_separates_and_two_classes_have_two_scores(blobs: Evaluation):
    scores, table = logistic_regressions(blobs, [1e-6, 1.0], [blobs.features])
    assert (scores[1][0].argmax(1) == blobs.labels).double().mean() > 0.8
    assert table["converged"].all()
    two = Evaluation(blobs.features[blobs.labels < 2], blobs.labels[blobs.labels < 2])
    ((found,),), _ = logistic_regressions(two, [1.0], [two.features])
    assert found.shape == (80, 2)
    assert (found.argmax(1) == two.labels).double().mean() > 0.8


def test_a_class_that_was_not_fitted_is_never_chosen():
    features = torch.eye(3).repeat(4, 1)
    train = Evaluation(features, torch.tensor([0, 1, 3]).repeat(4))
    ((found,),), _ = logistic_regressions(train, [1.0], [features], standardize=False, double=True)
    assert found.shape == (12, 4)
    assert found[:, 2].isneginf().all()
    assert found.argmax(1).tolist() == [0, 1, 3] * 4
    assert found.dtype == torch.float64


def test_a_random_tenth_is_dinov2s():
    torch.manual_seed(0)
    order = torch.randperm(57)
    kept, held = random_tenth(57)
    assert torch.equal(held, order[:5])
    assert torch.equal(kept, order[5:])


@pytest.mark.parametrize("select", ["random", "heldout", "val"])
def test_c_is_chosen_without_the_test_images_and_fitted_again_on_all(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select: str
):
    """The steps of dinov2's log_regression.py; `val` is its --finetune-on-val."""
    calls: list[tuple[int, list[float], list[int]]] = []

    def spy(train: Evaluation, strengths: list[float], targets: list[torch.Tensor], **rest: Any) -> Any:
        calls.append((len(train.labels), list(strengths), [len(target) for target in targets]))
        assert (rest["standardize"], rest["tolerance"], rest["double"]) == (False, 1e-12, True)
        return logistic_regressions(train, strengths, targets, **rest)

    monkeypatch.setattr("tasks.images.linear_probe.logistic_regressions", spy)
    recipe = presets.load_protocol("linear", "dinov2")
    assert len(recipe["strengths"]) == 45
    assert recipe["strengths"] == pytest.approx((10 ** torch.linspace(-6, 5, 45)).tolist(), rel=1e-6)
    rule = {**recipe, "strengths": (1e-3, 1.0), "select": select, "resize": 32, "crop": 32}
    report = run(folder, tmp_path / "out", **rule)
    n, held = 26, 2  # of 26 images; of 12 and 14 by class: 1 each
    if select == "val":
        assert calls == [(n, [1e-3, 1.0], [n, n])]
    else:
        best = pd.read_csv(tmp_path / "out" / "candidates.csv")["selection"].to_numpy().argmax()
        assert calls == [(n - held, [1e-3, 1.0], [n, held]), (n, [(1e-3, 1.0)[best]], [n])]
    assert "cls1; C" in report.note
    assert ("chosen on the test images" in report.note) == (select == "val")


def test_hold_out_takes_a_tenth_of_each_class_and_loses_nothing():
    labels = torch.tensor([0] * 30 + [1] * 9 + [2] * 20)
    kept, held = hold_out(labels, 0.1, seed=0)
    assert torch.bincount(labels[held], minlength=3).tolist() == [3, 0, 2]
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(59))
    assert torch.equal(hold_out(labels, 0.1, seed=0)[1], held)


def test_pieces_are_what_extract_gives_layer_by_layer():
    backbone = load_backbone(RANDOM)
    images = torch.rand(2, 3, 32, 32)
    found = extract_pieces(backbone, images, [*cls_pieces(3), "mean", "gem"])
    for block in (1, 2, 3):
        torch.testing.assert_close(found[f"cls{block}"], backbone.extract(images, {"cls"}, layers=(-block,)).cls)
    patches = backbone.extract(images).patches
    torch.testing.assert_close(found["mean"], patches.mean((2, 3)))
    torch.testing.assert_close(found["gem"], (patches.clamp(min=1e-6) ** 4).mean((2, 3)) ** 0.25)
    assert list(extract_pieces(backbone, images, [CLS])) == [CLS]
    for wrong in ("cls0", "pooled", "cls"):
        with pytest.raises(ValueError, match="unknown piece"):
            extract_pieces(backbone, images, [wrong])
    with pytest.raises(ValueError, match="layers"):
        extract_pieces(backbone, images, ["cls9"])


def test_conv_nets_have_a_last_layer_only():
    resnet = load_backbone("random:resnet18")
    assert pieces_of(LinearConfig(), resnet) == (CLS,)
    assert extract_pieces(resnet, torch.rand(1, 3, 64, 64), [CLS, "mean"])["mean"].shape == (1, 512)
    with pytest.raises(ValueError, match="one width"):
        extract_pieces(resnet, torch.rand(1, 3, 64, 64), cls_pieces(2))


def test_features_follow_the_paper():
    small, large = load_backbone(RANDOM), load_backbone("random:vit_base_patch16_224")
    assert pieces_of(LinearConfig(), small) == ("cls4", "cls3", "cls2", "cls1")
    assert pieces_of(LinearConfig(), large) == ("cls1", "mean")
    assert pieces_of(LinearConfig(blocks=2, mean_patch=True), small) == ("cls2", "cls1", "mean")
    with pytest.raises(ValueError, match="has 4; lower it"):
        pieces_of(LinearConfig(blocks=5), small)


def run(root: Path, out: Path, **changes: object) -> Report:
    settings = {"resize": 32, "crop": 32, "epochs": 5, "batch_size": 8, "features": "cached", **changes}
    config = LinearConfig(data=str(root), **settings)  # type: ignore[arg-type]
    return run_one(get("linear"), RunOptions(ckpt=RANDOM, out=str(out), device=chosen_name()), config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("set"), {"dark": 12, "light": 14})


@pytest.mark.parametrize(
    "changes",
    [{}, {"features": "augmented"}, {"solver": "lbfgs", "strengths": (0.01, 1.0)}, {"select": "heldout"}],
    ids=["cached", "augmented", "lbfgs", "heldout"],
)
def test_easy_classes_are_told_apart(folder: Path, tmp_path: Path, changes: dict):
    report = run(folder, tmp_path / "out", **changes)
    assert report.scores[0].value == 100
    table = pd.read_csv(tmp_path / "out" / "candidates.csv")
    assert table["selection"].max() == 100
    on_training = changes.get("select") == "heldout" or "solver" in changes
    assert ("a tenth of the training images" in report.note) == on_training
    assert ("then fitted again on all" in report.note) == ("solver" in changes)
    assert "published" not in report.note
    if "solver" not in changes:
        tensors, facts = read_tensors(tmp_path / "out" / "head" / "best.safetensors")
        assert tensors["weight"].shape == (2, 512)
        assert facts["classes"] == ["dark", "light"]


def test_augmented_runs_agree(folder: Path, tmp_path: Path):
    runs = [run(folder, tmp_path / name, features="augmented", epochs=2, lrs=(0.01,)) for name in ("a", "b")]
    logs = [pd.read_csv(tmp_path / name / "candidates.csv") for name in ("a", "b")]
    pd.testing.assert_frame_equal(*logs)
    assert runs[0].scores == runs[1].scores


@pytest.mark.slow
def test_two_processes_train_what_one_does(folder: Path, tmp_path: Path):
    """13 + 13 training images in batches of 8: the last batch is uneven."""
    command = ["-m", "tasks.linear", "--ckpt", RANDOM, "--data", str(folder), "--resize", "32", "--crop", "32"]
    command += ["--epochs", "2", "--batch-size", "7", "--lrs", "0.01,0.1", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517"]
    heads = []
    for name, launcher in (("one", []), ("two", torchrun)):
        out = tmp_path / name
        words = [sys.executable, *launcher, *command, "--out", str(out)]
        subprocess.run(words, check=True, env=environment, capture_output=True, timeout=300)
        heads.append(read_tensors(out / "head" / "best.safetensors")[0])
    for name in ("weight", "bias"):
        torch.testing.assert_close(heads[0][name], heads[1][name], rtol=1e-4, atol=1e-6)


def test_bad_settings_are_refused(folder: Path, tmp_path: Path):
    for changes in ({"lrs": ()}, {"lrs": (0.0,)}, {"epochs": 0}, {"blocks": 0}, {"crop": 300}, {"strengths": (-1.0,)}):
        with pytest.raises(ValueError, match="expected"):
            LinearConfig(**changes)
    few = make_folder(tmp_path / "few", {"dark": 3, "light": 3})
    with pytest.raises(ValueError, match="none can be held out"):
        run(few, tmp_path / "out", select="heldout")


def test_no_features_that_are_not_numbers_give_a_number(blobs: Evaluation):
    spoiled = Evaluation(blobs.features.clone(), blobs.labels)
    spoiled.features[3, 2] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        logistic_regressions(spoiled, [1.0], [blobs.features])
    backbone = load_backbone(RANDOM)
    backbone.module.norm.bias.data[0] = float("nan")
    with pytest.raises(ValueError, match="not finite numbers for 1 of 1 images, first for dark"):
        check_finite(
            backbone, finite_rows(extract_pieces(backbone, torch.rand(1, 3, 32, 32), [CLS])), ["dark"].__getitem__
        )
