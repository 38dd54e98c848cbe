"""Fine-tuning: the same weights in one go or in parts, timm's parts put together as the recipes say, whole files."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform
from timm.layers.drop import DropPath
from torch import nn

from data import DataError
from data.images import LabeledImages, read_rgb
from dino_dense import Report, load_backbone
from dino_dense.backbone.bytes import times_reciprocal
from dino_dense.backbone.dino_vit import build_module
from dino_dense.checkpoint import read_tensors
from dino_dense.config import schema
from dino_dense.distributed import World
from dino_dense.training.drop_path import KeyedDropPath
from dino_dense.training.plan import Position
from dino_dense.training.seeds import seeded
from tasks import RunOptions, get, run_one
from tasks.finetuning import batches
from tasks.finetuning.batches import PairedPlan, TrainingImages, TrainingTransform, collate
from tasks.finetuning.config import FinetuneConfig
from tasks.finetuning.figures import draw_confusion
from tasks.finetuning.loop import FineTuning
from tasks.finetuning.measure import Predictions, confusion, per_class
from tasks.finetuning.network import Classifier, DropPathMasks
from tasks.finetuning.recipe import build_mixer, build_optimizer, parameter_groups, set_learning_rate
from tasks.harness.task import no_pictures
from tasks.images.features import Preprocessing
from tests.tasks.test_knn_task import make_folder

RANDOM = "random:vit_micro_patch8_64"
PROJECT = Path(__file__).parents[2]
PLAIN = FinetuneConfig(
    epochs=3,
    batch_size=4,
    lr=1e-3,
    lr_scale_batch=None,
    warmup_epochs=1,
    smoothing=0.0,
    mixup=0.0,
    cutmix=0.0,
    drop_path=0.0,
    crop_scale=(1.0, 1.0),
    flip=0.0,
    randaugment=None,
    erasing=0.0,
    resize=16,
    crop=16,
)
RICH = replace(
    FinetuneConfig(),
    **{name: getattr(PLAIN, name) for name in ("epochs", "batch_size", "lr", "warmup_epochs", "resize", "crop")},
    drop_path=0.4,
    repeats=2,
    ema_decay=0.9,
    clip_grad=1.0,
)
"""Every part of the recipe at work; 13 images make 3 steps an epoch, 9 in all."""


class Killed(BaseException):
    """Stands for kill -9: nothing of ours runs after it."""


def kill() -> None:
    raise Killed


def event_at_read(monkeypatch: pytest.MonkeyPatch, reads: int, event: Callable[[], None]) -> None:
    """Let something happen when so many training images have been read."""
    counter = iter(range(1, 10**6))

    def reading(path: Path) -> Image.Image:
        if next(counter) == reads:
            event()
        return read_rgb(path)

    monkeypatch.setattr(batches, "read_rgb", reading)


def run(
    root: Path, out: Path, config: FinetuneConfig = PLAIN, ckpt: str = RANDOM, draw: bool = False, **changes: Any
) -> Report:
    """The whole task; its pictures, which take longest, only where they are asked for."""
    config = replace(config, data=str(root), **changes)
    task = get("finetune") if draw else replace(get("finetune"), draw=no_pictures)
    return run_one(task, RunOptions(ckpt=ckpt, out=str(out), device="cpu"), config)


def same_run(a: Path, b: Path) -> None:
    for name in ("last", "model", "best"):
        ours, theirs = (read_tensors(out / "checkpoints" / f"{name}.safetensors")[0] for out in (a, b))
        assert ours.keys() == theirs.keys()
        assert not [key for key in ours if not torch.equal(ours[key], theirs[key])], name
    for name in ("epochs.csv", "samples.csv", "per_class.csv", "confusion.csv"):
        assert (a / name).read_text() == (b / name).read_text()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("pictures"), {"dark": 6, "light": 7})


@pytest.fixture(scope="module")
def reference_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RICH from start to end, without a break."""
    out = tmp_path_factory.mktemp("runs") / "reference"
    report = run(pictures, out, RICH, draw=True)
    assert len(report.pictures) == 3
    for picture in report.pictures:
        assert np.asarray(Image.open(out / picture.file)).std() > 5, f"{picture.file} is blank"
    return out


# --- In parts ---


def test_one_seed_one_result(reference_run: Path, pictures: Path, tmp_path: Path):
    run(pictures, tmp_path / "again", RICH)
    same_run(tmp_path / "again", reference_run)


@pytest.mark.parametrize("reads", [3, 4 * 4 + 2, 4 * 8])
def test_a_killed_run_goes_on_bit_for_bit(
    reads: int, reference_run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Killed in step 1 (nothing saved), 5 (mid-epoch, after a saved state) and 8 of 9."""
    with monkeypatch.context() as patch:
        event_at_read(patch, reads, kill)
        with pytest.raises(Killed):
            run(pictures, tmp_path / "run", RICH, save_every=2)
    report = run(pictures, tmp_path / "run", RICH)
    same_run(tmp_path / "run", reference_run)
    assert report.status == "ok"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_state(
    number: signal.Signals, reference_run: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        event_at_read(patch, 4 * 4 + 2, lambda: os.kill(os.getpid(), number))
        with pytest.raises(KeyboardInterrupt):
            run(pictures, tmp_path / "run", RICH)
    assert read_tensors(tmp_path / "run" / "checkpoints" / "last.safetensors")[1]["step"] == 5
    run(pictures, tmp_path / "run", RICH)
    same_run(tmp_path / "run", reference_run)


@pytest.mark.parametrize("changes", [{"optimizer": "sgd"}, {"amp": "bf16"}, {"amp": "fp16"}, {"workers": 1}])
def test_every_setting_goes_on_bit_for_bit(
    changes: dict, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run(pictures, tmp_path / "whole", RICH, **{**changes, "workers": 0})
    with monkeypatch.context() as patch:
        event_at_read(patch, 4 * 3 + 2, kill)
        with pytest.raises(Killed):
            run(pictures, tmp_path / "parts", RICH, **{**changes, "workers": 0})
    run(pictures, tmp_path / "parts", RICH, **changes)
    same_run(tmp_path / "parts", tmp_path / "whole")


def test_states_are_saved_at_the_end_of_each_epoch_and_as_often_as_asked(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    saved: list[int] = []
    monkeypatch.setattr(FineTuning, "save", lambda self: saved.append(self.step))
    run(pictures, tmp_path / "run", RICH, save_every=2)
    assert saved == [2, 3, 4, 6, 8, 9]  # three steps an epoch


def test_a_finished_run_is_only_measured_again(reference_run: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch):
    before = json.loads((reference_run / "report.json").read_text())["scores"]
    event_at_read(monkeypatch, 1, kill)
    run(pictures, reference_run, RICH)
    assert json.loads((reference_run / "report.json").read_text())["scores"] == before


def test_another_recipe_or_other_images_are_not_mixed_in(pictures: Path, tmp_path: Path):
    run(pictures, tmp_path / "out", max_steps=1)
    with pytest.raises(ValueError, match=r"another run \(lr was 0\.001, now 0\.01\)"):
        run(pictures, tmp_path / "out", max_steps=1, lr=0.01)
    other = make_folder(tmp_path / "set", {"dark": 6, "light": 7})
    Image.new("RGB", (30, 20)).save(other / "train" / "dark" / "0.png")
    with pytest.raises(ValueError, match="another run"):
        run(other, tmp_path / "out", max_steps=1)


def test_parts_of_a_batch_give_the_whole_batchs_weights(reference_run: Path, pictures: Path, tmp_path: Path):
    """Mixing pairs and drop paths do not depend on how a batch is cut."""
    run(pictures, tmp_path / "cut", RICH, accumulate=2)
    whole, cut = (pd.read_csv(out / "epochs.csv") for out in (reference_run, tmp_path / "cut"))
    np.testing.assert_allclose(cut["train_loss"], whole["train_loss"], atol=1e-4)
    np.testing.assert_allclose(cut["test_loss"], whole["test_loss"], atol=1e-4)


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(reference_run: Path, pictures: Path, tmp_path: Path):
    settings = {
        **schema.to_plain(RICH),
        "data": str(pictures),
        "ckpt": RANDOM,
        "device": "cpu",
        "out": str(tmp_path / "two"),
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "-m", "tasks.finetune", "--config", str(tmp_path / "run.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = (pd.read_csv(out / "epochs.csv") for out in (reference_run, tmp_path / "two"))
    pd.testing.assert_frame_equal(two, one, atol=1e-4)
    names = [pd.read_csv(out / "samples.csv")["sample"].tolist() for out in (reference_run, tmp_path / "two")]
    assert names[0] == names[1]


# --- What comes out ---


def test_it_learns_what_is_easy(pictures: Path, tmp_path: Path):
    report = run(pictures, tmp_path / "out", epochs=10)
    log = pd.read_csv(tmp_path / "out" / "epochs.csv")
    assert [score.value for score in report.scores] == [100.0, 100.0]
    assert log["train_loss"].iloc[0] == pytest.approx(math.log(2), abs=0.05)
    assert log["train_loss"].iloc[-1] < 0.1 < log["train_loss"].iloc[0]
    assert log["epoch"].tolist() == list(range(1, 11))


def test_three_images_of_two_classes_are_enough(tmp_path: Path):
    """One batch of an odd number; top-5 of two classes."""
    root = make_folder(tmp_path / "set", {"dark": 1, "light": 2})
    report = run(root, tmp_path / "out", RICH, batch_size=128)
    assert [score.n for score in report.scores] == [3, 3]
    assert report.scores[1].value == 100
    assert "The batch is 3: there are 3 training images" in report.note
    (root / "val" / "dark" / "0.png").unlink()
    (root / "val" / "dark").rmdir()
    run(root, tmp_path / "lacking", epochs=1)
    table = pd.read_csv(tmp_path / "lacking" / "per_class.csv")
    assert table["n"].tolist() == [0, 2]
    assert math.isnan(table["accuracy"][0])


def test_the_note_tells_the_last_from_the_best(pictures: Path, tmp_path: Path):
    report = run(pictures, tmp_path / "out", max_steps=4)
    log = pd.read_csv(tmp_path / "out" / "epochs.csv")
    assert log["step"].tolist() == [3, 4]
    assert report.scores[0].value == log["top-1"].iloc[-1]
    assert f"{log['top-1'].max():.2f} %" in report.note
    assert "Stopped after 4 of 9 steps" in report.note


def test_files_hold_the_network_that_was_measured(reference_run: Path, pictures: Path):
    samples = pd.read_csv(reference_run / "samples.csv")
    lent, fine_tuned = load_backbone(RANDOM), load_backbone(str(reference_run / "checkpoints"))
    load_backbone(str(reference_run / "checkpoints" / "best.safetensors"))
    assert fine_tuned.weights_sha256 != lent.weights_sha256
    tensors, facts = read_tensors(reference_run / "checkpoints" / "model.safetensors")
    transform = Preprocessing(facts["crop"], facts["crop"]).transform()
    images = torch.stack([transform(read_rgb(pictures / name)) for name in samples["sample"]])
    cls = fine_tuned.extract(times_reciprocal(images), {"cls"}).cls
    guesses = (cls @ tensors["head.weight"].T + tensors["head.bias"]).argmax(dim=1)
    right = [
        name.split("/")[1] == facts["classes"][guess] for name, guess in zip(samples["sample"], guesses, strict=True)
    ]
    assert (100.0 * np.array(right)).tolist() == samples["top-1"].tolist()


def test_lent_weights_and_global_generators_stay(pictures: Path, tmp_path: Path):
    backbone = load_backbone(RANDOM)
    before = {name: value.clone() for name, value in backbone.module.state_dict().items()}
    run_one(
        get("finetune"),
        RunOptions(ckpt=RANDOM, out=str(tmp_path / "out"), device="cpu"),
        replace(RICH, data=str(pictures), max_steps=2),
        backbone=backbone,
    )
    assert all(torch.equal(value, before[name]) for name, value in backbone.module.state_dict().items())
    assert not any(isinstance(module, KeyedDropPath) for module in backbone.module.modules())
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())
    states = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[union-attr]
    with seeded(3):
        np.random.rand(), torch.rand(1)
    assert np.array_equal(np.random.get_state()[1], states[0])
    assert torch.equal(torch.get_rng_state(), states[1])


@pytest.mark.parametrize("name", ["resnet18", "xcit_nano_12_p16_224"])
def test_other_bodies(name: str, pictures: Path, tmp_path: Path):
    run(pictures, tmp_path / "out", RICH, ckpt=f"random:{name}", max_steps=2, resize=32, crop=32)
    assert load_backbone(str(tmp_path / "out" / "checkpoints" / "model.safetensors")).name == name


# --- The recipe ---


def classifier(classes: int = 3) -> Classifier:
    return Classifier(build_module("vit_micro_patch8_64"), classes, 0.001, seed=0)


def test_layer_decay_is_the_formula():
    model, decay, blocks = classifier(), 0.75, 4
    groups = parameter_groups(model, FinetuneConfig(layer_decay=decay, weight_decay=0.05, head_lr_scale=2.0))
    found = {id(p): (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        part = name.split(".")
        if part[0] == "head":
            scale = 2.0
        elif part[1] == "blocks":
            scale = decay ** (blocks - int(part[2]))
        else:
            scale = decay if part[1] == "norm" else decay ** (blocks + 1)
        exempt = parameter.ndim == 1 or part[-1] in ("pos_embed", "cls_token")
        assert found[id(parameter)] == (pytest.approx(scale), 0.0 if exempt else 0.05), name
    assert len(found) == len(list(model.parameters()))
    flat = parameter_groups(model, FinetuneConfig(layer_decay=1.0))
    assert {group["lr_scale"] for group in flat} == {1.0}


def test_schedule_warms_up_and_follows_the_cosine():
    config = FinetuneConfig(epochs=10, warmup_epochs=2, batch_size=64, lr=1e-3, warmup_lr=1e-5, min_lr=1e-4)
    plan = PairedPlan(640, config, World(), seed=0)
    optimizer = build_optimizer(classifier(), config, plan.batch_size)
    peak, total, warmup = 1e-3 * 64 / 512, 100, 20
    for step in range(total):
        set_learning_rate(optimizer, config, plan, step)
        cosine = 1e-4 + (peak - 1e-4) * (1 + math.cos(math.pi * step / total)) / 2
        expected = 1e-5 + (peak - 1e-5) * step / warmup if step < warmup else cosine
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(expected * group["lr_scale"])
    assert build_optimizer(classifier(), replace(config, lr_scale_batch=None), 64).defaults["lr"] == 1e-3


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 9), st.integers(2, 6), st.sampled_from([0.0, 0.8]), st.sampled_from([0.0, 1.0]), st.integers(0, 50)
)
def test_mixing_keeps_the_sum_of_labels_and_the_middle_image(
    count: int, classes: int, mixup: float, cutmix: float, step: int
):
    mix = build_mixer(FinetuneConfig(mixup=mixup, cutmix=cutmix, smoothing=0.1), classes, seed=0)
    labels = torch.arange(count) % classes
    images = torch.arange(count, dtype=torch.float)[:, None, None, None].expand(-1, 3, 8, 8)
    slots = torch.arange(count)
    mixed, targets = mix(images.clone(), labels, slots, step)
    again, _ = mix(images.clone(), labels, slots, step)
    assert torch.equal(mixed, again)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(count))
    torch.testing.assert_close(mixed + mixed.flip(0), torch.full_like(mixed, count - 1))
    # The label of image i counts as much as its pixels.
    share = ((mixed.mean((1, 2, 3)) - images.flip(0)[:, 0, 0, 0]) / (images - images.flip(0))[:, 0, 0, 0]).nan_to_num(1)
    plain = torch.nn.functional.one_hot(labels, classes) * 0.9 + 0.1 / classes
    torch.testing.assert_close(
        targets, plain * share[:, None] + plain.flip(0) * (1 - share[:, None]), atol=1e-4, rtol=0
    )
    if not mixup and not cutmix:
        assert torch.equal(mixed, images)


def test_mixing_does_mix_both_ways():
    mix = build_mixer(FinetuneConfig(smoothing=0.0), 2, seed=0)
    kinds = set()
    for step in range(20):
        pair = torch.stack([torch.zeros(3, 16, 16), torch.ones(3, 16, 16)])
        mixed, _ = mix(pair, torch.tensor([0, 1]), torch.arange(2), step)
        kinds.add("cutmix" if set(mixed.unique().tolist()) <= {0.0, 1.0} else "mixup")
    assert kinds == {"cutmix", "mixup"}


@pytest.mark.parametrize(("group", "draws"), [(None, 1), (4, 4), (6, 3), (16, 1)])
def test_a_draw_of_mixing_is_for_as_many_images_as_a_gpu_of_deits_has(group: int | None, draws: int):
    """Whatever part of the batch a process has: the draws follow the slots."""
    mix = build_mixer(FinetuneConfig(cutmix=0.0, mixing_batch=group, smoothing=0.0), 2, seed=0)
    images = (torch.arange(16) < 8).float()[:, None, None, None].expand(-1, 3, 4, 4)
    mixed, _ = mix(images.clone(), torch.zeros(16, dtype=torch.long), torch.arange(16), 3)
    shares = mixed[:8, 0, 0, 0]
    assert len(shares.unique()) == draws
    for front in (slice(0, 4), slice(4, 8)):  # two processes
        slots = torch.cat([torch.arange(16)[front], 15 - torch.arange(16)[front].flip(0)])
        part, _ = mix(images[slots].clone(), torch.zeros(8, dtype=torch.long), slots, 3)
        torch.testing.assert_close(part[:4, 0, 0, 0], shares[front])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 4), st.integers(1, 3))
def test_plan_walks_through_the_images(n: int, batch: int, repeats: int, shares: int):
    config = replace(PLAIN, epochs=2, batch_size=2 * shares * batch, accumulate=shares, repeats=repeats)
    if n < 2 * shares and shares > 1:
        with pytest.raises(ValueError, match="too few"):
            PairedPlan(n, config, World(), seed=0)
        return
    plan = PairedPlan(n, config, World(), seed=0)
    slots = [plan.slots(share) for share in range(shares)]
    assert sorted(slot for share in slots for slot in share) == list(range(plan.batch_size))
    for share in slots:
        assert [plan.batch_size - 1 - slot for slot in reversed(share)] == share
    steps = list(plan.micro_batches(0))
    assert len(steps) == plan.last_step * shares
    assert list(plan.micro_batches(1)) == steps[shares:]
    first = [position for positions in steps for position in positions if position.epoch == 0]
    assert sorted(position.turn for position in first) == list(range(plan.steps_per_epoch * plan.batch_size))
    times = np.bincount([position.image for position in first], minlength=n)
    assert times.max() <= repeats
    assert len(set(plan.order(0))) == -(-n // repeats)


def test_repeats_of_an_image_are_cut_apart(pictures: Path):
    paths = sorted((pictures / "train").rglob("*.png"))
    transform = TrainingTransform(RICH, (0.0, 0.0, 0.0))
    dataset = TrainingImages(LabeledImages(paths, [0] * len(paths), ["a", "b"]), transform, seed=0)
    position = Position(epoch=0, turn=0, image=1, slot=0)
    first, again, later = (dataset[p] for p in (position, position._replace(slot=3), position._replace(turn=1)))
    assert isinstance(first, tuple)
    assert isinstance(again, tuple)
    assert isinstance(later, tuple)
    assert torch.equal(first[0].pixels, again[0].pixels)
    assert not torch.equal(first[0].pixels, later[0].pixels)


@pytest.mark.parametrize("erasing", [0.0, 0.25, 1.0])
def test_crops_are_sent_as_bytes_and_become_the_images_of_timms_transforms(erasing: float):
    """Bit for bit: normalized, then erased by noise, on the device."""
    config, mean, std = replace(RICH, erasing=erasing, resize=24, crop=24), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    plain = create_transform(
        24,
        is_training=True,
        scale=config.crop_scale,
        hflip=config.flip,
        color_jitter=None,
        auto_augment=config.randaugment,
        interpolation="bicubic",
        mean=mean,
        std=std,
        re_prob=erasing,
        re_mode="pixel",
    )
    ours = TrainingTransform(config, mean)
    pictures = [Image.effect_noise((40, 30), 80).convert("RGB") for _ in range(12)]

    def drawn(transform: Callable[[Image.Image], Any]) -> list[Any]:
        changed = []
        for seed, picture in enumerate(pictures):
            with seeded(seed):
                changed.append(transform(picture))
        return changed

    batch = collate([(crop, 0, 0) for crop in drawn(ours)])
    assert batch.pixels.dtype == torch.uint8
    assert (len(batch.noise) > 0) == (erasing > 0)
    assert torch.equal(batch.images(mean, std, torch.device("cpu")), torch.stack(drawn(plain)))


def test_the_strongest_augmentation_is_no_error():
    """At its full strength, timm asks Pillow for pictures of 0 bits."""
    transform = TrainingTransform(replace(RICH, randaugment="rand-m10-inc1"), (0.5, 0.5, 0.5))
    picture = Image.effect_noise((20, 20), 64).convert("RGB")
    for seed in range(150):
        with seeded(seed):
            assert transform(picture).pixels.shape == (3, RICH.crop, RICH.crop)


def test_drop_path_rises_over_the_blocks_and_is_off_outside_training():
    body: Any = build_module("vit_micro_patch8_64")
    draws = DropPathMasks(body, 0.6, batch=8, seed=0)
    rates = [1 - module.keep_prob for module in draws.modules]
    np.testing.assert_allclose(rates, [0.2, 0.2, 0.4, 0.4, 0.6, 0.6], atol=1e-6)
    assert [type(block.drop_path1) for block in body.blocks] == [nn.Identity, *[KeyedDropPath] * 3]
    images, slots = torch.randn(8, 3, 16, 16), torch.arange(8)
    with torch.no_grad():
        plain = body.eval()(images)
        torch.testing.assert_close(plain, build_with(body.state_dict())(images))
        body.train()
        draws.set_masks(0, slots, torch.device("cpu"))
        dropped = body(images)
        draws.set_masks(0, slots[4:], torch.device("cpu"))
        torch.testing.assert_close(body(images[4:]), dropped[4:])
        draws.set_masks(1, slots, torch.device("cpu"))
        assert not torch.allclose(body(images), dropped)
    assert not torch.allclose(dropped, plain)
    with pytest.raises(ValueError, match=r"drop_path is 0\.1, but Linear has no blocks"):
        DropPathMasks(nn.Linear(2, 2), 0.1, batch=8, seed=0)
    assert not any(isinstance(module, DropPath) for module in body.modules())


def build_with(weights: dict[str, torch.Tensor]) -> nn.Module:
    body = build_module("vit_micro_patch8_64")
    body.load_state_dict(weights)
    return body.eval()


def test_the_new_layer_begins_small():
    model = classifier()
    assert model.head.weight.std().item() == pytest.approx(0.02 * 0.001, rel=0.2)
    assert not model.head.bias.any()


# --- Tables ---


def test_tables_count_every_image():
    rng = np.random.default_rng(0)
    labels, guesses = rng.integers(0, 4, 60), rng.integers(0, 5, 60)
    images = LabeledImages([Path(str(i)) for i in range(60)], labels.tolist(), list("abcde"))
    predictions = Predictions(torch.from_numpy(guesses)[:, None], torch.ones(60), torch.ones(60))
    table = per_class(predictions, images)
    matrix = confusion(predictions, images).set_index("class")
    for row in range(5):
        counts = [int(((labels == row) & (guesses == column)).sum()) for column in range(5)]
        assert matrix.iloc[row].tolist() == counts
        assert table["n"][row] == sum(counts)
        assert table["correct"][row] == counts[row]
        wrong = [0 if column == row else count for column, count in enumerate(counts)]
        assert table["times"][row] == max(wrong)
        assert wrong["abcde".index(table["most_confused_with"][row])] == max(wrong) if max(wrong) else True
    assert table["accuracy"][:4].to_numpy() == pytest.approx(100 * table["correct"][:4] / table["n"][:4])
    assert predictions.top1(labels.tolist()) == pytest.approx(100 * table["correct"].sum() / 60)


def test_many_classes_are_drawn_as_the_worst_hundred(tmp_path: Path):
    labels = np.arange(150)
    images = LabeledImages([Path(str(i)) for i in labels], labels.tolist(), [f"c{i}" for i in labels])
    predictions = Predictions(torch.from_numpy(labels[::-1].copy())[:, None], torch.ones(150), torch.ones(150))
    assert draw_confusion(tmp_path / "confusion.png", predictions, images) == 100
    assert Image.open(tmp_path / "confusion.png").size[0] > 1000


# --- What cannot be used ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"lr": 0.0}, r"lr is 0\.0, expected"),
        ({"lr": math.nan}, "lr is nan, expected"),
        ({"weight_decay": math.nan}, "weight_decay is nan, expected"),
        ({"layer_decay": 1.5}, r"layer_decay is 1\.5, expected 0 to 1"),
        ({"epochs": 3}, "warmup_epochs is 5, expected at most epochs, 3"),
        ({"crop": 300}, "crop is 300, expected 1 to resize, 256"),
        ({"crop_scale": (0.9, 0.1)}, "crop_scale is"),
        ({"randaugment": "rond-m9"}, "randaugment is 'rond-m9', expected"),
        ({"drop_path": 1.0}, r"drop_path is 1\.0, expected"),
        ({"max_steps": 0}, "max_steps is 0, expected at least 1"),
    ],
)
def test_bad_settings_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        FinetuneConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 12}, "crop is 12: expected a multiple of .* patch size 8"),
        ({"accumulate": 4}, "batch_size is 4, expected a multiple of 8"),
        ({"data": "/no/such/folder"}, "/no/such/folder: no such folder"),
    ],
)
def test_what_does_not_fit_leaves_nothing(changes: dict, message: str, pictures: Path, tmp_path: Path):
    root = Path(changes.pop("data", pictures))
    with pytest.raises((ValueError, OSError), match=message):
        run(root, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(workers: int, tmp_path: Path):
    root = make_folder(tmp_path / "set", {"dark": 2, "light": 2})
    (root / "train" / "light" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^\S*light/1\.png: not an image"):
        run(root, tmp_path / "out", workers=workers)


def test_a_loss_that_is_no_number_stops_the_run(pictures: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"out: stopped, the loss or its gradient is not finite in step [2-9]\."):
        run(pictures, tmp_path / "out", lr=1e30, warmup_epochs=0, optimizer="sgd", layer_decay=1.0)
    states = tmp_path / "out" / "checkpoints" / "last.safetensors"
    assert not states.exists() or all(value.isfinite().all() for value in read_tensors(states)[0].values())
