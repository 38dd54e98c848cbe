"""Bad samples, loader processes that die, steps that are not finite."""

import csv
import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torch import nn

from data import DataError
from data.pretraining import PretrainingImages, open_pretraining_data
from dino_dense.checkpoint import read_tensors
from dino_dense.distributed import World
from dino_dense.loaders import LostWorkerError
from dino_dense.pretrain import optim
from dino_dense.pretrain.bad_samples import BadSamplesError
from dino_dense.pretrain.batches import pretraining_plan
from dino_dense.pretrain.objective import Step
from dino_dense.pretrain.step import OptimizerStep
from dino_dense.training.gradients import DivergedError
from tests.faults import broken
from tests.pretrain.tiny_run import TINY, write_pictures

Train = Callable[..., pd.DataFrame]
TIMES = ["images_per_s", "seconds"]
SHORT = {"max_steps": 6, "save_every": 2}


@pytest.fixture(autouse=True)
def without_a_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dino_dense.pretrain.monitor.draw_curve", lambda run, levels: None)


def mode(name: str, size: tuple[int, int] = (48, 40)) -> broken.Break:
    return lambda path: Image.new(name, size, 0 if name != "CMYK" else (0, 9, 9, 9)).save(path)


def rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 40)).save(path, exif=exif)


def jpeg_bomb(path: Path) -> None:
    """A small JPEG whose header says 65,000 x 65,000."""
    Image.new("RGB", (48, 40)).save(path)
    content = bytearray(path.read_bytes())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = (65_000).to_bytes(2, "big") * 2
    path.write_bytes(content)


BAD: dict[str, broken.Break] = {
    "truncated.jpg": broken.cut,
    "zero.jpg": broken.text(b""),
    "text.jpg": broken.text("no image"),
    "bomb.png": broken.bomb,
    "bomb.jpg": jpeg_bomb,
    "link.jpg": broken.dangling,
    "sixteen.png": broken.wide,
}
GOOD: dict[str, broken.Break] = {
    "one.png": mode("RGB", (1, 1)),
    "one.jpg": mode("L", (1, 1)),
    "gray.jpg": mode("L"),
    "cmyk.jpg": mode("CMYK"),
    "palette.png": mode("P"),
    "alpha.png": mode("RGBA"),
    "rotated.jpg": rotated,
    "a picture.png": broken.text(b""),  # a PNG's content under .jpg, below
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine good pictures, eight odd ones, seven bad ones: every step meets some."""
    root = tmp_path / "pictures"
    write_pictures(root, 9)
    for name, make in (GOOD | BAD).items():
        write_pictures(root / "new", 1, name.rpartition(".")[2])
        new = next((root / "new").iterdir())
        make(new)
        new.rename(root / name)
    (root / "a picture.png").unlink()
    Image.new("RGB", (40, 40), "red").save(root / "a picture.jpg", format="PNG")
    (root / "new").rmdir()
    return root


def bad_samples(run: Path) -> list[dict[str, str]]:
    with (run / "bad_samples.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def curve(log: pd.DataFrame) -> pd.DataFrame:
    return log.drop(columns=TIMES)


def test_bad_samples_are_replaced_listed_and_change_nothing_else(folder: Path, tmp_path: Path, train: Train):
    images = open_pretraining_data(folder)
    assert len(images) == 24
    log = train(tmp_path / "run", images, max_bad_samples=0.5, **SHORT)
    rows = bad_samples(tmp_path / "run")
    assert {row["sample"] for row in rows} == set(BAD)  # six steps of eight see all 24 pictures twice
    assert all(row["sample"] in row["reason"] for row in rows)
    assert not {row["replaced_by"] for row in rows} & set(BAD)
    # The same in loader processes, in parts, and in micro-batches of another size.
    train(tmp_path / "parts", images, max_bad_samples=0.5, num_workers=1, max_steps=3, save_every=3)
    parts = train(tmp_path / "parts", images, max_bad_samples=0.5, resume=True, **SHORT)
    pd.testing.assert_frame_equal(curve(parts), curve(log), check_exact=True)
    assert bad_samples(tmp_path / "parts") == rows
    halves = train(tmp_path / "halves", images, max_bad_samples=0.5, accumulate=2, **SHORT)
    np.testing.assert_allclose(halves["loss"], log["loss"], atol=1e-4)


def test_too_many_bad_samples_stop_the_run(folder: Path, tmp_path: Path, train: Train):
    with pytest.raises(BadSamplesError, match=r"of 24 images are bad, more than 1\.0% \(--max-bad-samples\)"):
        train(tmp_path / "run", open_pretraining_data(folder), **SHORT)
    assert bad_samples(tmp_path / "run")


def test_raise_stops_at_the_first(folder: Path, tmp_path: Path, train: Train):
    with pytest.raises((DataError, OSError)) as error:
        train(tmp_path / "run", open_pretraining_data(folder), on_bad_sample="raise", **SHORT)
    assert any(name in str(error.value) for name in BAD)


def test_a_file_that_vanishes_after_listing_is_replaced(pictures: Path, tmp_path: Path, train: Train):
    write_pictures(tmp_path / "pictures", 24)
    images = open_pretraining_data(tmp_path / "pictures")
    (tmp_path / "pictures" / "7.png").unlink()
    train(tmp_path / "run", images, max_bad_samples=0.05, **SHORT)
    assert [row["sample"] for row in bad_samples(tmp_path / "run")] == ["7.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_that_may_not_be_read_is_replaced(tmp_path: Path, train: Train):
    write_pictures(tmp_path / "pictures", 24)
    (tmp_path / "pictures" / "7.png").chmod(0)
    train(tmp_path / "run", open_pretraining_data(tmp_path / "pictures"), max_bad_samples=0.05, **SHORT)
    assert [row["sample"] for row in bad_samples(tmp_path / "run")] == ["7.png"]


class Deadly(PretrainingImages):
    """Kills the process that reads picture 5."""

    def __getitem__(self, index: int):
        if self.name(index) == "5.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_loader_process_that_dies_is_reported_with_its_sample(pictures: Path, tmp_path: Path, train: Train):
    images = open_pretraining_data(pictures)
    images.__class__ = Deadly
    with pytest.raises(LostWorkerError, match=r"loader process \d+ died while reading 5\.png"):
        train(tmp_path / "run", images, num_workers=1, **SHORT)


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make the loss of some steps (0-based) NaN, as a bad batch would."""
    inner = OptimizerStep.forward_backward

    def poisoned(self: OptimizerStep, batch: object, step: Step, **options: object):
        if step.number in steps:
            batch = batch._replace(global_views=batch.global_views * float("nan"))  # type: ignore[attr-defined]
        return inner(self, batch, step, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(OptimizerStep, "forward_backward", poisoned)


def test_a_step_that_is_not_finite_is_reported_with_its_files(
    pictures: Path, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
):
    poison(monkeypatch, {4})
    run = tmp_path / "run"
    with pytest.raises(DivergedError, match=r"since step 5\. The last checkpoint.*not_finite-5\.json lists the files"):
        train(run, save_every=2, log_every=3)
    report = json.loads((run / "not_finite-5.json").read_text())
    images = open_pretraining_data(pictures)
    assert report["files"] == [images.name(i) for i in expected_images(images, 4)]
    assert report["mean_losses_from_this_step_on"][0] == "nan"
    assert report["not_finite_weights"]
    assert read_tensors(run / "not_finite.safetensors")[1]["step"] >= 5
    tensors, metadata = read_tensors(run / "last.safetensors")
    assert metadata["step"] == 4
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def expected_images(images: PretrainingImages, step: int) -> list[int]:
    plan = pretraining_plan(len(images), replace(TINY, out=""), World())
    return [position.image for position in next(plan.micro_batches(step))]


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_step_that_is_not_finite_can_be_skipped(
    tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch, dtype: str
):
    skipping = {"on_not_finite": "skip", "drop_path_rate": 0.0, "dtype": dtype, **SHORT}
    plain = train(tmp_path / "plain", **skipping)
    poison(monkeypatch, {3})
    log = train(tmp_path / "run", **skipping)
    assert log["loss"].isna().tolist() == [False, False, False, True, False, False]
    pd.testing.assert_frame_equal(curve(log)[:3], curve(plain)[:3], check_exact=True)
    assert json.loads((tmp_path / "run" / "not_finite-4.json").read_text())["not_finite_weights"] == []
    tensors = read_tensors(tmp_path / "run" / "last.safetensors")[0]
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_skipping_without_end_stops(tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch):
    poison(monkeypatch, set(range(2, 100)))
    with pytest.raises(DivergedError, match="11 steps in a row are not finite"):
        train(tmp_path / "run", on_not_finite="skip", save_every=2)
    assert all(t.isfinite().all() for t in read_tensors(tmp_path / "run" / "last.safetensors")[0].values())


@pytest.mark.parametrize("on_not_finite", ["stop", "skip"])
def test_gradients_that_overflow_at_every_scale_stop_a_run_with_loss_scaling(
    on_not_finite: str, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
):
    """One tensor's gradient is never finite. Loss scaling would skip every step, and the run would seem trained."""
    build = optim.build_optimizer

    def with_hook(name: str, learner: nn.Module, *more: Any) -> Any:
        next(learner.parameters()).register_hook(lambda gradient: gradient * float("nan"))
        return build(name, learner, *more)

    monkeypatch.setattr(optim, "build_optimizer", with_hook)
    with pytest.raises(DivergedError, match=r"gradients of 11 steps in a row are not finite since step 1"):
        train(tmp_path / "run", dtype="fp16", on_not_finite=on_not_finite)


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch):
    """Broken by something other than a loss: the teacher's average, after the fourth step."""
    inner, calls = optim.update_teacher, 0

    def breaking(teacher: nn.Module, *args: object) -> None:
        nonlocal calls
        calls += 1
        inner(teacher, *args)  # type: ignore[arg-type]
        if calls == 4:
            next(teacher.parameters()).data.view(-1)[0] = float("inf")

    monkeypatch.setattr(optim, "update_teacher", breaking)
    with pytest.raises(DivergedError, match=r"some weights are not finite since step 4"):
        train(tmp_path / "run", **SHORT)
    assert read_tensors(tmp_path / "run" / "last.safetensors")[1]["step"] == 2
    assert json.loads((tmp_path / "run" / "not_finite-4.json").read_text())["not_finite_weights"]
