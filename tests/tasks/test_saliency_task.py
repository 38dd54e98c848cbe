"""Saliency from folders to scores: against loops, on every layout, with input that cannot be used."""

import os
import subprocess
import sys
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
from torch import Tensor

from data import DataError
from data.images import read_rgb
from data.known_sets import SALIENCY_SETS
from data.masks import write_mask
from dino_dense import Backbone, Report
from dino_dense.config import presets
from tasks import RunOptions, get, main, run_one
from tasks.saliency import SaliencyConfig, open_images, saliency_maps
from tasks.scores.saliency import accuracy, best_jaccard, f_at_best_threshold, f_curve, iou
from tests.device import chosen_name
from tests.oracles import NoiseReader, stub_backbone

RANDOM = "random:vit_micro_patch8_64"
SALIENCY = get("saliency")
SIDE = 64  # pixels
RED, GREEN, GRAY = (230, 20, 20), (20, 230, 20), (90, 90, 90)


class RedGreenReader(NoiseReader):
    """Keys are one-hot: red, green, anything else. Head 0 attends to what is red, head 1 to green."""

    embed_dim, num_heads = 3, 2

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def features(self, images: Tensor) -> dict[str, Tensor]:
        self.seen.append(images)
        red, green, _ = F.avg_pool2d(images, self.patch_size).unbind(1)
        kinds = torch.stack([red > green + 0.3, green > red + 0.3], dim=1).float()
        keys = torch.cat([kinds, 1 - kinds.sum(1, keepdim=True)], dim=1)
        attention = (kinds + 1e-6) / (kinds + 1e-6).sum((-2, -1), keepdim=True)
        return {"keys": keys, "attention": attention, "patches": keys}


def red_green_backbone(reader: RedGreenReader | None = None) -> Backbone:
    return stub_backbone("red-green", reader or RedGreenReader())


def picture(red: bool = True, green: bool = False, size: tuple[int, int] = (SIDE, SIDE)) -> tuple[np.ndarray, ...]:
    """An image and its ids: a red square (1) at the upper left, a green one (2) at the lower right, on patches."""
    ids = np.zeros(size, np.uint8)
    if red:
        ids[8:32, 8:32] = 1
    if green:
        ids[40:56, 40:56] = 2
    return np.array([GRAY, RED, GREEN], np.uint8)[ids], ids


def save(root: Path, name: str, image: np.ndarray, mask: np.ndarray) -> None:
    for folder, pixels in (("images", image), ("masks", mask)):
        (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / folder / f"{name}.png")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Four pairs; the mask of "worse" is half of what is red."""
    root = tmp_path / "pairs"
    for name in ("a", "b", "c", "worse"):
        image, ids = picture()
        ids[20:] *= name != "worse"
        save(root, name, image, 255 * (ids > 0).astype(np.uint8))
    return root


def run(data: Path, out: Path, **changes: object) -> Report:
    config = SaliencyConfig(data=str(data), **changes)  # type: ignore[arg-type]
    return run_one(SALIENCY, RunOptions(out=str(out)), config, backbone=red_green_backbone())


def values(report: Report) -> dict[str, float]:
    return {score.metric: score.value for score in report.scores}


def test_images_that_cannot_be_cut_are_counted(pairs: Path, tmp_path: Path):
    report = run(pairs, tmp_path / "uncut", method="tokencut", tau=-0.99)
    assert values(report)["IoU"] == 0
    assert "4 of 4 images have no object: the cosines of all their patches are on one side of tau -0.99" in report.note
    assert "have no object" not in run(pairs, tmp_path / "cut", method="tokencut").note


# --- Scores ---


def naive_f(prediction: np.ndarray, truth: np.ndarray, threshold: float) -> float:
    positive = [float(value) > threshold for value in prediction.ravel()]
    hits = sum(p and t for p, t in zip(positive, truth.ravel(), strict=True))
    precision = hits / sum(positive) if sum(positive) else 1.0
    recall = hits / truth.sum() if truth.sum() else 1.0
    return 1.3 * precision * recall / (0.3 * precision + recall) if precision + recall else 0.0


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.floats(0, 1))
def test_f_curve_is_the_naive_one(seed: int, share: float):
    rng = np.random.default_rng(seed)
    # Values on the thresholds themselves too: a prediction must be above.
    prediction = np.where(rng.random((5, 6)) < 0.5, rng.integers(0, 256, (5, 6)) / 255, rng.random((5, 6)))
    truth = rng.random((5, 6)) < share
    curve = f_curve(prediction, truth)
    assert curve.shape == (255,)
    np.testing.assert_allclose(curve, [naive_f(prediction, truth, i / 255) for i in range(255)], atol=1e-12)


def test_the_best_threshold_is_one_for_all_images():
    curves = [np.zeros(255), np.zeros(255)]
    curves[0][[10, 20]], curves[1][[20, 30]] = (0.9, 0.6), (0.5, 0.8)
    best, threshold = f_at_best_threshold(curves)
    assert best.tolist() == [0.6, 0.5]
    assert threshold == 20 / 255


def test_nothing_to_find_and_nothing_found():
    nothing, something = np.zeros((3, 3)), np.eye(3)
    empty = nothing > 0
    assert iou(nothing, empty) == 1
    assert iou(something, empty) == 0
    assert accuracy(nothing, empty) == 1
    assert f_curve(nothing, empty).min() == 1
    assert f_curve(something, empty).max() == 0
    assert f_curve(nothing, something > 0).max() == 0
    assert best_jaccard([empty], []) == 1
    assert best_jaccard([something > 0], []) == 0
    with pytest.raises(ValueError, match="no pixel"):
        accuracy(np.zeros(0), np.zeros(0, bool))


def test_jaccard_takes_the_best_candidate_for_each_object():
    one, two = np.array([1, 1, 0, 0], bool), np.array([0, 0, 1, 1], bool)
    half = np.array([1, 0, 0, 0], bool)
    assert best_jaccard([half, two], [one, two]) == (0.5 + 1) / 2
    assert best_jaccard([half], [one, two]) == 0.25


# --- The task ---


@pytest.mark.parametrize("method", ["tokencut", "lost"])
def test_scores_of_what_is_found(method: str, pairs: Path, tmp_path: Path):
    report = run(pairs, tmp_path / "out", method=method)
    table = pd.read_csv(tmp_path / "out" / "images.csv").set_index("sample")
    assert table["IoU"].to_dict() == pytest.approx({"a": 100, "b": 100, "c": 100, "worse": 50})
    assert values(report)["IoU"] == pytest.approx(87.5)
    assert values(report)["Accuracy"] == pytest.approx(100 * (1 - 12 * 24 / SIDE**2 / 4))
    worst_f = 1.3 * 0.5 / (0.3 * 0.5 + 1)
    assert values(report)["max-F"] == pytest.approx(100 * (3 + worst_f) / 4)
    assert values(report)["Jaccard"] == pytest.approx(87.5)
    assert report.pictures[0].caption.startswith("worse (worst): IoU 50.0")
    assert table["confidence"].between(0, 1).all()


@pytest.mark.parametrize("method", ["tokencut", "attention"])
def test_images_of_one_size_go_together_and_change_nothing(method: str, pairs: Path, tmp_path: Path):
    save(pairs, "bb", *(part.repeat(2, axis=0) for part in picture()))  # another size in between
    tables = []
    for size in (None, 1, 3):
        run(pairs, tmp_path / str(size), method=method, batch_size=size)
        tables.append(pd.read_csv(tmp_path / str(size) / "images.csv"))
    for other in tables[1:]:
        pd.testing.assert_frame_equal(other, tables[0], rtol=1e-5)


def test_saved_masks_are_the_prediction(pairs: Path, tmp_path: Path):
    run(pairs, tmp_path / "out", save_masks=True)
    mask = np.asarray(Image.open(tmp_path / "out" / "masks" / "a.png"))
    np.testing.assert_array_equal(mask, 255 * picture()[1])
    run(pairs, tmp_path / "without")
    assert not (tmp_path / "without" / "masks").exists()


def test_images_of_any_size_are_fitted_to_the_patches_and_back(tmp_path: Path):
    reader = RedGreenReader()
    backbone = red_green_backbone(reader)
    rgb, ids = picture(size=(61, 75))
    config = SaliencyConfig()
    ((found,), _) = saliency_maps(backbone, rgb, config)
    assert reader.seen[-1].shape[-2:] == (64, 72)
    assert found.values.shape == found.mask.shape == (61, 75)
    assert iou(found.values, ids > 0) > 0.75
    saliency_maps(backbone, rgb, replace(config, short_side=32))
    assert reader.seen[-1].shape[-2:] == (32, 40)
    saliency_maps(backbone, rgb, replace(config, squash=48))
    assert reader.seen[-1].shape[-2:] == (48, 48)
    saliency_maps(backbone, rgb[:3, :5], config)
    assert reader.seen[-1].shape[-2:] == (8, 8), "at least one patch"


def write_voc(root: Path) -> Path:
    image, ids = picture(green=True)
    ids[0:8] = 255
    (root / "JPEGImages").mkdir(parents=True)
    Image.fromarray(image).save(root / "JPEGImages" / "a.jpg", quality=95)
    write_mask(root / "SegmentationObject" / "a.png", ids)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("a\n")
    return root


def test_jaccard_over_objects_is_the_best_heads(tmp_path: Path):
    root = write_voc(tmp_path / "voc")
    report = run(root, tmp_path / "best", method="attention", attention_heads="best", mass=0.999)
    assert values(report)["Jaccard"] == pytest.approx(100), "each object has a head of its own"
    red, green = 24 * 24, 16 * 16
    assert values(report)["IoU"] == pytest.approx(100 * red / (red + green))
    assert "upper bound" in report.note
    second = run(root, tmp_path / "second", method="attention", attention_heads=1, mass=0.999)
    assert values(second)["IoU"] == pytest.approx(100 * green / (red + green))
    assert values(second)["Jaccard"] == pytest.approx(100), "whatever head is predicted with"
    assert "upper bound" not in second.note
    with pytest.raises(ValueError, match="head 2: this backbone has 2"):
        run(root, tmp_path / "third", method="attention", attention_heads=2)
    assert not (tmp_path / "third").exists()


def test_void_pixels(tmp_path: Path):
    """The upper rows are void and predicted as background."""
    root = write_voc(tmp_path / "voc")
    found = {
        void: values(run(root, tmp_path / void, method="attention", mass=0.999, attention_heads=0, void=void))[
            "Accuracy"
        ]
        for void in ("background", "ignore", "object")
    }
    missed, void, total = 16 * 16, 8 * SIDE, SIDE**2
    assert found["background"] == pytest.approx(100 * (1 - missed / total))
    assert found["ignore"] == pytest.approx(100 * (1 - missed / (total - void)))
    assert found["object"] == pytest.approx(100 * (1 - (missed + void) / total))


def test_a_mask_of_void_alone_cannot_be_scored(tmp_path: Path):
    root = write_voc(tmp_path / "voc")
    write_mask(root / "SegmentationObject" / "a.png", np.full((SIDE, SIDE), 255, np.uint8))
    with pytest.raises(DataError, match=r"a\.png: every pixel is void"):
        run(root, tmp_path / "out", void="ignore")


def test_empty_masks_and_images_without_structure_have_numbers(tmp_path: Path):
    image, _ = picture(red=False)
    save(tmp_path / "set", "nothing", image, np.zeros((SIDE, SIDE), np.uint8))
    image, ids = picture()
    save(tmp_path / "set", "thing", image, np.zeros_like(ids))
    run(tmp_path / "set", tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "images.csv").set_index("sample")
    assert table.loc["nothing", ["IoU", "Accuracy", "max-F", "Jaccard"]].tolist() == [100] * 4
    assert table.loc["nothing", "confidence"] == 0
    assert table.loc["thing", ["IoU", "max-F", "Jaccard"]].tolist() == [0] * 3


def test_refining_draws_masks_to_the_edges(tmp_path: Path):
    """Objects beside the patch borders: the patches alone miss, the bilateral solver does not."""
    image, ids = (np.roll(array, (3, 3), (0, 1)) for array in picture(size=(96, 96)))
    save(tmp_path / "set", "a", image, 255 * ids)
    coarse = values(run(tmp_path / "set", tmp_path / "coarse"))
    fine = values(run(tmp_path / "set", tmp_path / "fine", refine="bilateral", save_masks=True))
    assert coarse["IoU"] < 85
    assert fine["IoU"] > coarse["IoU"] + 10
    assert fine["max-F"] > coarse["max-F"]
    saved = np.asarray(Image.open(tmp_path / "fine" / "masks" / "a.png"))
    assert iou(saved / 255, ids > 0) > 0.95


def test_davis_frames_with_sequences(tmp_path: Path):
    for name in ("dog", "cat"):
        image, ids = picture()
        for index in range(3):
            folder = tmp_path / "davis" / "JPEGImages" / "480p" / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{index:05d}.jpg", quality=95)
            write_mask(tmp_path / "davis" / "Annotations" / "480p" / name / f"{index:05d}.png", 255 * ids)
    (tmp_path / "davis" / "ImageSets" / "2016").mkdir(parents=True)
    (tmp_path / "davis" / "ImageSets" / "2016" / "val.txt").write_text("dog\ncat\n")
    report = run(tmp_path / "davis", tmp_path / "out", sequences=("cat",), save_masks=True)
    assert values(report)["IoU"] == pytest.approx(100)
    samples = pd.read_csv(tmp_path / "out" / "samples.csv")["sample"]
    assert samples.tolist() == ["cat/00000", "cat/00001", "cat/00002"]
    assert (tmp_path / "out" / "masks" / "cat" / "00001.png").is_file()


def test_part_of_a_set_is_spread_and_named(pairs: Path):
    images, facts = open_images(SaliencyConfig(data=str(pairs), max_images=2))
    assert [image.name for image in images] == ["a", "worse"]
    assert facts.name == "pairs (part: 2 of 4)"
    assert facts.dataset is None
    assert facts.sha256 != open_images(SaliencyConfig(data=str(pairs)))[1].sha256


def test_a_published_set_is_known_by_its_folder_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    image, ids = picture()
    for name in ("a", "b"):
        save(tmp_path / "ECSSD", name, image, 255 * ids)
    config = SaliencyConfig(data=str(tmp_path / "ECSSD"))
    assert open_images(config)[1].dataset is None, "two images are not ECSSD"
    monkeypatch.setitem(SALIENCY_SETS, "ECSSD", 2)
    assert open_images(config)[1].dataset is None, "images of one size were resized"
    save(tmp_path / "ECSSD", "b", image[:-8], 255 * ids[:-8])
    assert open_images(config)[1].dataset == "ECSSD"
    (tmp_path / "ECSSD").rename(tmp_path / "ECSSD-blurred")
    assert open_images(SaliencyConfig(data=str(tmp_path / "ECSSD-blurred")))[1].dataset is None


def test_the_default_is_tokencuts():
    assert presets.matching_protocols("saliency", SaliencyConfig()) == ("tokencut",)


def test_unusable_input_is_an_error_and_leaves_nothing(pairs: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="max_images is 0"):
        SaliencyConfig(max_images=0)
    with pytest.raises(DataError, match="missing: no such folder"):
        run(tmp_path / "missing", tmp_path / "out")
    path = pairs / "images" / "c.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"c\.png"):
        run(pairs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_network_without_keys_uses_its_last_map(pairs: Path, tmp_path: Path):
    options = RunOptions(ckpt="random:resnet18", out=str(tmp_path / "out"), device=chosen_name())
    config = SaliencyConfig(data=str(pairs), method="lost", max_images=1)
    report = run_one(SALIENCY, options, config)
    assert "resnet18 has no keys: its last map was compared instead" in report.note
    named = replace(options, out=str(tmp_path / "patches"))
    assert run_one(SALIENCY, named, replace(config, features="patches")).scores == report.scores
    with pytest.raises(ValueError, match="has no attention"):
        run_one(SALIENCY, replace(options, out=str(tmp_path / "no")), replace(config, method="attention"))


def test_command_line(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--ckpt", RANDOM, "--data", str(pairs), "--preset", "voc12", "--squash", "32", "--device", "cpu"]
    assert main("saliency", [*arguments, "--attention-heads", "0", "--out", str(tmp_path / "out")]) == 0
    assert "Jaccard" in capsys.readouterr().out
    assert (tmp_path / "out" / "overlays" / "a.jpg").is_file()
    assert read_rgb(tmp_path / "out" / "overlays" / "a.jpg").size[0] > SIDE


@pytest.mark.slow
@pytest.mark.parametrize("task", ["saliency", "discovery"])
def test_two_processes_give_the_results_of_one(task: str, tmp_path: Path):
    """An odd number of images, so that the shares differ."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    arguments = ["-m", f"tasks.{task}", "--ckpt", RANDOM, "--max-images", "5", "--device", "cpu", "--out"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, start in (("one", []), ("two", launcher)):
        command = [sys.executable, *start, *arguments, str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    for file in ("images.csv", "samples.csv"):
        assert (tmp_path / "one" / file).read_text() == (tmp_path / "two" / file).read_text()
