"""Linear segmentation probe: metrics against loops, windows, continuation, void pixels, bad trees."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_to_tensor, resize

from data import DataError
from dino_dense import Backbone, Report, load_backbone
from dino_dense.checkpoint import read_tensors
from dino_dense.distributed import World
from dino_dense.probes.pixels import (
    LinearHead,
    PixelProbe,
    crop_draws,
    distorted,
    dropped,
    head_step,
    joined,
    look_at_losses,
    lr_factor,
    mixed_corner,
    predict,
    size_at,
    squared,
    train_head,
)
from dino_dense.probes.readout import slide_logits, window_starts
from dino_dense.training.losses import PendingLosses
from tasks import RunOptions, get, run_one
from tasks.scores.segmentation import class_iou, confusion, mean_iou, pixel_accuracy
from tasks.segprobe import SegprobeConfig, compared
from tasks.semantic.options import LabeledImages
from tasks.semantic.splits import open_splits
from tests.data.test_segmentation import halves, make_tree
from tests.device import chosen_name

RANDOM = "random:vit_micro_patch8_64"


# --- Metrics ---


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(0, 1000))
def test_confusion_and_iou_are_the_naive_ones(classes: int, seed: int):
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, classes, (2, 7, 9))
    truth[rng.random((7, 9)) < 0.2] = 255
    matrix = confusion(predicted, truth, classes)
    for wanted in range(classes):
        hit = sum(t == p == wanted for t, p in zip(truth.flat, predicted.flat, strict=True))
        union = sum(wanted in (t, p) for t, p in zip(truth.flat, predicted.flat, strict=True) if t != 255)
        expected = 100 * hit / union if union else np.nan
        assert class_iou(matrix)[wanted] == pytest.approx(expected, nan_ok=True)
    assert matrix.sum() == (truth != 255).sum()
    swapped = confusion(np.where(truth == 255, predicted, truth), np.where(truth == 255, 255, predicted), classes)
    np.testing.assert_array_equal(swapped, matrix.T)


def test_perfect_and_wrong_predictions():
    truth = halves(0, 2)
    perfect = confusion(truth, truth, 4)
    np.testing.assert_array_equal(class_iou(perfect), [100, np.nan, 100, np.nan])
    assert pixel_accuracy(perfect) == 100
    assert pixel_accuracy(confusion(2 - truth, truth, 4)) == 0
    with pytest.raises(ValueError, match="below 2"):
        confusion(truth, truth, 2)
    with pytest.raises(ValueError, match="one shape"):
        confusion(truth[1:], truth, 4)


# --- Training and prediction ---


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 100), st.integers(1, 100))
def test_windows_cover_every_pixel(side: int, window: int, stride: int):
    stride = min(stride, window)
    starts = window_starts(side, window, stride)
    covered = np.zeros(side, bool)
    for start in starts:
        covered[start : start + window] = True
    assert covered.all()
    assert starts[-1] + window == side or side < window
    assert len(set(starts)) == len(starts)


def test_one_window_is_the_whole_picture():
    backbone, head = load_backbone(RANDOM), LinearHead(128, 3).eval()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    found = [predict(backbone, head, picture, PixelProbe(crop=64, stride=64, window=w)) for w in ("whole", "slide")]  # type: ignore[arg-type]
    np.testing.assert_array_equal(*found)
    assert found[0].shape == (64, 64)


def test_windows_are_averaged_where_they_overlap():
    """A head of the pixels' own mean: any average of windows of a constant picture is that constant."""
    backbone = load_backbone(RANDOM)
    torch.manual_seed(0)
    head = LinearHead(128, 5).eval()
    picture = Image.new("RGB", (200, 64), (90, 30, 200))
    config = PixelProbe(crop=64, stride=40, window="slide")
    whole = predict(backbone, head, Image.new("RGB", (64, 64), (90, 30, 200)), config)
    assert predict(backbone, head, picture, config).shape == (64, 200)
    assert set(np.unique(predict(backbone, head, picture, config))) <= set(np.unique(whole))


def test_sizes_and_mirror_images_are_averaged_as_softmax():
    """Against a loop over the views; and with the mirror image, a mirrored picture has the mirrored answer."""
    torch.manual_seed(0)
    backbone, head = load_backbone(RANDOM), LinearHead(128, 5).eval()
    nn.init.normal_(head[1].weight, std=3.0)
    pixels = np.random.default_rng(0).integers(0, 255, (72, 96, 3), np.uint8)
    picture, mirrored = Image.fromarray(pixels), Image.fromarray(pixels[:, ::-1].copy())
    plain = PixelProbe(crop=64, stride=40)
    config = replace(plain, test_scales=(1.0, 1.32), test_flip=True)
    total = np.zeros((5, 72, 96))
    for scale in config.test_scales:
        size = list(size_at(72, 96, int(64 * scale)))
        for flipped in (False, True):
            image = pil_to_tensor(resize(mirrored if flipped else picture, size, InterpolationMode.BILINEAR))[None]
            with torch.no_grad():
                logits = slide_logits(
                    lambda part: F.interpolate(head(backbone.extract(part).patches), part.shape[-2:], mode="bilinear"),
                    image / 255,
                    64,
                    40,
                )
            shares = F.interpolate(logits, (72, 96), mode="bilinear")[0].softmax(0).numpy()
            total += shares[..., ::-1] if flipped else shares
    answer = predict(backbone, head, picture, config)
    assert (answer == total.argmax(0)).mean() > 0.99
    assert (answer[:, ::-1] == predict(backbone, head, mirrored, config)).mean() > 0.99
    assert (answer != predict(backbone, head, picture, plain)).mean() > 0.02
    assert (predict(backbone, head, picture, plain)[:, ::-1] != predict(backbone, head, mirrored, plain)).mean() > 0.02


def test_the_last_layers_are_joined():
    backbone = load_backbone(RANDOM)
    assert joined(backbone, PixelProbe()) is backbone
    several = joined(backbone, PixelProbe(blocks=3))
    images = torch.rand(1, 3, 64, 64)
    assert several.embed_dim == 3 * 128
    expected = backbone.extract(images, layers=(-3, -2, -1)).patches
    torch.testing.assert_close(several.extract(images).patches, expected)
    with pytest.raises(ValueError, match="give one of both"):
        joined(several, PixelProbe(blocks=2))
    with pytest.raises(ValueError, match="numbered 0"):
        joined(backbone, PixelProbe(blocks=99))
    with pytest.raises(ValueError, match="1 or more"):
        PixelProbe(test_scales=(0.5, 1.0))
    with pytest.raises(ValueError, match="squares have one size"):
        PixelProbe(window="square", test_scales=(1.0, 1.5))


def test_draws_take_every_image_once_a_turn_and_do_not_depend_on_where_one_starts():
    config = PixelProbe(steps=10, batch_size=4)
    draws = list(crop_draws(6, config, seed=0, first_step=0))
    assert draws[3:] == list(crop_draws(6, config, seed=0, first_step=3))
    images = [image for batch in draws for _, image in batch]
    for turn in range(6):
        assert sorted(images[6 * turn : 6 * turn + 6]) == list(range(6))


def test_learning_rate_is_dinov3s():
    """WarmupOneCycleLR with its YAML's constants; train.py moves it after every step but the first."""

    def scheduled(moves: int, total: int = 40_000, warmup: int = 1500, ratio: float = 1e-6) -> float:
        if moves < warmup:
            return (1 - (1 - moves / warmup) * (1 - ratio)) * (1 - moves / total)
        return (1 + math.cos(math.pi * (moves + 1) / total)) / 2

    for step in (0, 1, 2, 700, 1499, 1500, 1501, 1502, 20_000, 39_999):
        assert lr_factor(step, 40_000, 1500) == pytest.approx(scheduled(max(step - 1, 0)), abs=1e-12)
    short = [lr_factor(step, 100, 1500) for step in range(100)]
    assert max(short) == short[11], "the warm-up is a tenth of a short run"
    assert all(later <= earlier for earlier, later in itertools.pairwise(short[11:]))


def test_learning_rate_of_the_other_dialects():
    """mmcv's poly of power 1 with a linear warm-up (DINOv2); a tenth from epoch 20 of 25 on (NeCo)."""
    for step in (0, 1, 749, 1499, 1500, 20_000, 39_999):
        k = (1 - step / 1500) * (1 - 1e-6) if step < 1500 else 0
        assert lr_factor(step, 40_000, 1500, "linear") == pytest.approx((1 - step / 40_000) * (1 - k), abs=1e-12)
    steps = PixelProbe(epochs=25, batch_size=128).with_steps(10_582).steps
    assert steps == 25 * 82
    factors = [lr_factor(step, steps, 0, "step") for step in range(steps)]
    assert factors == [1.0] * (20 * 82) + [0.1] * (5 * 82)
    assert PixelProbe(epochs=3, batch_size=128).with_steps(5).steps == 3
    assert PixelProbe(steps=7).with_steps(5).steps == 7


def test_a_layer_starts_and_drops_channels_as_dinov3s():
    torch.manual_seed(0)
    weights = LinearHead(512, 150)[1].weight
    assert weights.std().item() == pytest.approx(0.01, rel=0.02)
    assert not LinearHead(8, 3)[1].bias.any()
    tokens = torch.ones(4, 500, 2, 3)
    found = dropped(tokens, 0.1, seed=0, step=7)
    assert torch.equal(found, dropped(tokens, 0.1, seed=0, step=7))
    assert not torch.equal(found, dropped(tokens, 0.1, seed=0, step=8))
    assert (found.amax((2, 3)) == found.amin((2, 3))).all(), "whole channels"
    assert found.unique().tolist() == pytest.approx([0.0, 1 / 0.9])
    assert (found == 0).float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(dropped(tokens, 0.0, 0, 0), tokens)


def test_the_loss_is_a_mean_over_all_pixels_void_ones_too():
    head = LinearHead(8, 3)
    optimizer = torch.optim.SGD(head.parameters(), 1.0)
    ids = torch.zeros(1, 16, 16, dtype=torch.long)
    ids[:, :, 4:] = 255  # three quarters
    loss = head_step(head, optimizer, torch.zeros(1, 8, 4, 4), ids, 0.0)
    assert loss.item() == pytest.approx(math.log(3) / 4)


def test_the_loss_of_labeled_pixels_alone():
    head = LinearHead(8, 3)
    optimizer = torch.optim.SGD(head.parameters(), 1.0)
    ids = torch.zeros(1, 16, 16, dtype=torch.long)
    ids[:, :, 4:] = 255
    loss = head_step(head, optimizer, torch.zeros(1, 8, 4, 4), ids, 0.0, "left out")
    assert loss.item() == pytest.approx(math.log(3))
    assert head_step(head, optimizer, torch.zeros(1, 8, 4, 4), torch.full_like(ids, 255), 0.0, "left out") == 0


def test_squares_are_the_whole_picture_and_masks_go_to_the_nearest_pixel():
    ids = np.arange(30 * 41, dtype=np.uint32).reshape(30, 41).astype(np.uint8)
    image, mask = squared(Image.fromarray(ids).convert("RGB"), ids, 16)
    rows, columns = ((np.floor((np.arange(16) + 0.5) * side / 16)).astype(int) for side in ids.shape)
    np.testing.assert_array_equal(mask.numpy(), ids[rows][:, columns])
    assert image.shape == (3, 16, 16)
    small = compared(PixelProbe(crop=16, side=4), ids)
    np.testing.assert_array_equal(small, mask.numpy()[::4, ::4])
    np.testing.assert_array_equal(compared(PixelProbe(), ids), ids)


def test_absent_classes_count_not_or_as_zero():
    matrix = np.diag([5, 3, 0, 0])
    assert mean_iou(matrix) == 100
    assert mean_iou(matrix, "zero") == 50


@pytest.mark.parametrize(("size", "short", "expected"), [((300, 400), 512, (512, 683)), ((401, 300), 100, (134, 100))])
def test_sizes_are_rounded_as_dinov3_rounds_them(size: tuple[int, int], short: int, expected: tuple[int, int]):
    assert size_at(*size, short) == expected


def test_crops_are_of_several_classes_where_ten_draws_find_one():
    ids = torch.zeros(200, 200, dtype=torch.uint8)
    ids[:, 100:] = 1
    torch.manual_seed(0)
    corners = [mixed_corner(ids, 100, 0.75) for _ in range(100)]
    shares = [(ids[top : top + 100, left : left + 100] == 0).float().mean().item() for top, left in corners]
    assert sum(0.25 < share < 0.75 for share in shares) > 90
    anywhere = [mixed_corner(ids, 100, 1.0) for _ in range(100)]
    assert sum(25 < left < 75 for _, left in anywhere) < 75
    assert {mixed_corner(torch.zeros(30, 30, dtype=torch.uint8), 100, 0.75) for _ in range(20)} == {(0, 0)}


def test_pictures_are_padded_at_the_right_and_below_with_the_mean_color(tmp_path: Path):
    """What the backbone then normalizes to 0, as in dinov3, where the padding comes after the normalization."""
    splits = open_splits(LabeledImages(data=str(tree(tmp_path / "voc"))))  # 40 x 60 pixels
    config = PixelProbe(crop=64, scale=(0.5, 0.5), batch_size=2, stride=32, distort=False, class_share=1.0)
    backbone = load_backbone(RANDOM).with_normalization((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backbone, "extract", lambda self, images, *rest: seen.append(images) or real(self, images, *rest))
        train_head(
            backbone, replace(config, steps=8), splits.train, 3, state=tmp_path / "s", world=World(), seed=0, workers=0
        )
    images = torch.cat(seen)
    assert (images[:, :, 32:] == torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)).all()
    assert (images[:, :, :, 48:] == torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)).all()
    assert (images[:, :, :32, :48] != torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)).any(1).all()


real = Backbone.extract


def test_colors_are_distorted_within_dinov3s_ranges():
    torch.manual_seed(0)
    gray = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    values = [int(distorted(gray)[0, 0, 0]) for _ in range(400)]
    assert min(values) >= (100 - 32) * 0.5 - 1
    assert max(values) <= (100 + 32) * 1.5
    same = sum(value == 100 for value in values) / 400
    assert same == pytest.approx(0.25, abs=0.08), "neither brightness nor contrast"
    red = torch.tensor([200, 50, 50], dtype=torch.uint8).view(3, 1, 1).expand(3, 4, 4)
    assert len({tuple(distorted(red)[:, 0, 0].tolist()) for _ in range(60)}) > 30
    assert distorted(red).dtype == torch.uint8


def test_the_best_of_the_evaluations_is_reported_and_it_is_said(tmp_path: Path):
    report = run(tree(tmp_path / "voc"), tmp_path / "out", evaluations=3)
    table = pd.read_csv(tmp_path / "out" / "evaluations.csv")
    assert table["step"].tolist() == [20, 40, 60]
    assert report.scores[0].value == pytest.approx(table["score"].max())
    assert "best of 3 evaluations on these very images" in report.note


def test_a_batch_of_void_pixels_changes_no_weight_by_loss():
    head = LinearHead(8, 3)
    optimizer = torch.optim.SGD(head.parameters(), 1.0)
    before = [parameter.clone() for parameter in head.parameters()]
    loss = head_step(head, optimizer, torch.randn(2, 8, 4, 4), torch.full((2, 16, 16), 255), 1.0)
    assert loss == 0
    assert all(torch.equal(a, b) for a, b in zip(before, head.parameters(), strict=True))


def test_tokens_that_are_no_numbers_stop_the_training():
    head = LinearHead(8, 3)
    optimizer = torch.optim.SGD(head.parameters(), 1.0)
    ids, pending = torch.zeros(1, 8, 8, dtype=torch.long), PendingLosses()
    for step, value in enumerate((0.0, torch.nan, 0.0), start=1):
        pending.add(step, head_step(head, optimizer, torch.full((1, 8, 4, 4), value), ids, 1.0))
    with pytest.raises(ValueError, match="loss of the linear layer is nan in step 2:"):
        look_at_losses(pending)


def test_a_layer_that_diverges_stops_and_leaves_no_state(tmp_path: Path):
    root = make_tree(tmp_path / "data", {"train": {"t": halves(0, 1)}, "val": {"v": halves(0, 1)}})
    with pytest.raises(ValueError, match=r"loss of the linear layer is \S+ in step \d+: check the weights"):
        run(root, tmp_path / "out", lr=1e38, optimizer="sgd", steps=30, warmup=0)
    states = list((tmp_path / "out").rglob("*.safetensors"))
    assert all(value.isfinite().all() for state in states for value in read_tensors(state)[0].values())


def tree(root: Path) -> Path:
    """Every ordered pair of three classes to train on, and some of them to test."""
    pairs = list(itertools.permutations(range(3), 2))
    train = {f"t{i}": halves(*pair) for i, pair in enumerate(pairs)}
    return make_tree(root, {"train": train, "val": {f"v{i}": halves(*pair) for i, pair in enumerate(pairs[1:5])}})


def run(root: Path, out: Path, **changes: object) -> Report:
    settings_ = {"steps": 60, "crop": 64, "batch_size": 4, "lr": 0.01, "stride": 32, "evaluations": 1, **changes}
    config = SegprobeConfig(data=str(root), **settings_)  # type: ignore[arg-type]
    return run_one(get("segprobe"), RunOptions(ckpt=RANDOM, out=str(out), device=chosen_name()), config)


@pytest.mark.parametrize(
    "changes", [{"augment": False, "steps": 150}, {"window": "whole"}, {}], ids=["kept", "whole", "slide"]
)
def test_gray_levels_are_learned(tmp_path: Path, changes: dict):
    report = run(tree(tmp_path / "voc"), tmp_path / "out", **changes)
    assert report.scores[0].value > 80
    assert report.scores[0].n == 4  # images: what is drawn, not classes
    classes = pd.read_csv(tmp_path / "out" / "per_class.csv")
    assert classes["IoU"].mean() == pytest.approx(report.scores[0].value)
    assert classes["pixels"].sum() == 4 * 40 * 60
    curve = pd.read_csv(tmp_path / "out" / "curve.csv")
    assert curve["loss"].iloc[-1] < curve["loss"].iloc[0]


NECO = {
    "epochs": 40,
    "optimizer": "sgd",
    "schedule": "step",
    "warmup": 0,
    "dropout": 0.0,
    "batch_norm": False,
    "init": "uniform",
    "void": "left out",
    "side": 20,
    "crops": "stretched",
    "scale": (0.8, 1.0),
    "distort": False,
    "window": "square",
    "evaluations": 3,
    "absent": "zero",
    "lr": 0.1,
}


@pytest.mark.parametrize("changes", [{}, {"augment": False}], ids=["fresh", "kept"])
def test_gray_levels_are_learned_by_necos_dialect(tmp_path: Path, changes: dict):
    """On squares, compared at 20 x 20; six images make one batch of four a turn."""
    report = run(tree(tmp_path / "voc"), tmp_path / "out", **{**NECO, **changes})
    assert report.scores[0].value > 80
    classes = pd.read_csv(tmp_path / "out" / "per_class.csv")
    assert classes["pixels"].sum() == 4 * 20 * 20
    assert pd.read_csv(tmp_path / "out" / "evaluations.csv")["step"].tolist() == [13, 26, 40]
    assert classes["IoU"].fillna(0).mean() == pytest.approx(report.scores[0].value)


def test_a_class_that_is_nowhere_lowers_the_score_where_the_protocol_says_so(tmp_path: Path):
    pairs = {f"t{i}": halves(*pair) for i, pair in enumerate([(0, 3), (3, 0), (0, 1), (1, 0)])}
    root = make_tree(tmp_path / "voc", {"train": pairs, "val": {"v": halves(0, 1)}})
    light = {"steps": 10, "augment": False, "window": "whole"}
    scores = [run(root, tmp_path / a, absent=a, **light).scores[0].value for a in ("left out", "zero")]
    assert scores[1] < scores[0]


def test_a_stopped_run_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dino_dense.probes.pixels.SAVE_SECONDS", 0.0)
    splits = open_splits(LabeledImages(data=str(tree(tmp_path / "voc"))))
    config = PixelProbe(steps=12, crop=32, batch_size=2, stride=16, evaluations=3)
    backbone = load_backbone(RANDOM)

    def train(name: str) -> tuple[nn.Module, pd.DataFrame]:
        state = tmp_path / name / "last.safetensors"
        state.parent.mkdir(exist_ok=True)
        values = iter([3.0, 9.0, 5.0]) if name == "whole" else iter([9.0, 5.0])
        trained = train_head(
            *(backbone, config, splits.train, 3),
            **{"state": state, "world": World(), "seed": 0, "workers": 0},
            score=lambda head: first.pop() if first else next(values),
        )
        evaluations.append(trained.evaluations)
        return trained.head, trained.curve

    first: list[float] = []
    evaluations: list[pd.DataFrame] = []
    whole, log = train("whole")
    assert evaluations[0].to_numpy().tolist() == [[4, 3], [8, 9], [12, 5]]
    first.append(3.0)
    count = []

    def stopping(*arguments):
        count.append(1)
        if len(count) == 8:
            raise KeyboardInterrupt
        return head_step(*arguments)

    monkeypatch.setattr("dino_dense.probes.pixels.head_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train("stopped")
    monkeypatch.setattr("dino_dense.probes.pixels.head_step", head_step)
    resumed, again = train("stopped")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    pd.testing.assert_frame_equal(log, again)
    pd.testing.assert_frame_equal(*evaluations)


def test_bad_trees_and_settings(tmp_path: Path):
    root = make_tree(tmp_path / "a", {"train": {"t": halves(0, 1)}, "val": {"v": halves(0, 4)}})
    with pytest.raises(DataError, match=r"v\.png: class id 4, but the training masks have none above 1"):
        run(root, tmp_path / "out")
    root = make_tree(tmp_path / "b", {"train": {"t": halves(0, 0)}, "val": {"v": halves(0, 0)}})
    with pytest.raises(DataError, match="one class only"):
        run(root, tmp_path / "out")
    root = make_tree(tmp_path / "c", {"train": {"t": halves(0, 1)}, "val": {"v": halves(0, 1)}})
    with pytest.raises(ValueError, match="crop is 60: expected a multiple of"):
        run(root, tmp_path / "out", crop=60)
    for changes in ({"steps": 0}, {"scale": (2.0, 1.0)}, {"window": "slide", "stride": 600}):
        with pytest.raises(ValueError, match=r"expected|left out"):
            SegprobeConfig(**changes)
    assert not (tmp_path / "out").exists()
