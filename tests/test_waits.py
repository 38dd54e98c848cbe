"""The host never waits for a device while it trains or extracts, so that it can run ahead: counted without a device."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from data.pretraining import open_pretraining_data
from dino_dense import load_backbone
from dino_dense.distributed import World
from dino_dense.pretrain import step as step_module
from dino_dense.pretrain.batches import MicroBatch, build_loader, pretraining_plan
from dino_dense.pretrain.guard import Guard
from dino_dense.pretrain.optim import build_schedules
from dino_dense.pretrain.step import OptimizerStep
from dino_dense.probes.depth_training import DepthHead, depth_step, look_at_losses
from dino_dense.probes.pixels import LinearHead, PixelProbe, dropped, head_step, optimizer_of
from dino_dense.probes.protocol import DepthProbe
from dino_dense.training.losses import PendingLosses
from tasks import Session
from tasks.finetuning.config import FinetuneConfig
from tasks.finetuning.loop import FineTuning
from tasks.images.features import Preprocessing, image_features
from tasks.images.labeled import open_labeled
from tests.pretrain.tiny_run import TINY, write_pictures
from tests.waits import DEVICE, Waits

LOSSES: list[dict[str, Any]] = [
    {},
    {"accumulate": 2, "clip_mode": "global"},
    {"pack": True},
    {"activation_checkpointing": True},
    {
        "objectives": ("dino", "gram"),
        "gram_teacher": "run",
        "gram_begin": 1,
        "gram_crop_size": 64,
        "skip_dropped": True,
    },
    {"objectives": ("dino", "ibot", "koleo")},
    {
        "objectives": ("dino", "ibot"),
        "ibot_targets": "sinkhorn",
        "dino_targets": "sinkhorn",
        "ibot_visible_weight": 0.5,
    },
    {"optimizer": "sgd"},
    {"optimizer": "lars"},
    *({"optimizer": name, "dtype": "fp16"} for name in ("adamw", "sgd", "lars")),
]


class Autocast(torch.autocast):
    """Of the meta device nothing is known, so that it has none."""

    def __init__(self, device_type: str, dtype: torch.dtype | None = None, enabled: bool = True) -> None:
        super().__init__("cpu" if device_type == DEVICE.type else device_type, dtype, enabled)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "pictures", 16)
    return tmp_path / "pictures"


@pytest.fixture
def meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives the meta device two things that it lacks: autocast and the fused optimizer, which waits for nothing."""
    monkeypatch.setattr(torch, "autocast", Autocast)
    adam = importlib.import_module("torch.optim.adam")  # torch.optim hides it behind its class
    monkeypatch.setattr(adam, "_device_dtype_check_for_fused", lambda parameter: None)
    monkeypatch.setattr(torch, "_fused_adamw_", lambda *arguments, **options: None)


def steps(pictures: Path, device: torch.device, **changes: Any) -> Iterator[Callable[[], None]]:
    """The steps of a run, as the trainer makes them between two rows of its log."""
    fixed = {"out": str(pictures / "run"), "dtype": "fp32", "augment_on": "device", "batch_size": 4}
    config = replace(TINY, **{**fixed, **changes})
    images = open_pretraining_data(pictures)
    plan = pretraining_plan(len(images), config, World())
    stepper = OptimizerStep(
        config, build_schedules(config, plan.steps_per_epoch), plan.steps_per_epoch, World(), device
    )
    guard = Guard(config, images, plan, World(), stepper, 0)
    batches = build_loader(images, plan, 0, config, 0, device.type == "cuda")
    for number in range(8):
        micro_batches: list[MicroBatch] = [next(batches) for _ in range(config.accumulate)]

        def one(number: int = number, micro_batches: list[MicroBatch] = micro_batches) -> None:
            guard.record(stepper.run(number, micro_batches, guard.skips), micro_batches)

        yield one


def waits_of_a_step(pictures: Path, **changes: Any) -> list[str]:
    """Of the fifth step: constants were copied before, and the last layer is no longer frozen."""
    made = steps(pictures, DEVICE, **changes)
    with Waits():
        for _ in range(4):
            next(made)()
    one = next(made)
    with Waits() as waits:
        one()
    return waits.seen


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize("changes", LOSSES, ids=str)
def test_a_training_step_never_waits_for_the_device(pictures: Path, changes: dict[str, Any]):
    assert waits_of_a_step(pictures, **changes) == []


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(
    ("asks", "expected"),
    [
        (lambda norm: norm.item(), "value"),
        (lambda norm: bool(norm > 3), "value"),
        (lambda norm: norm.cpu(), "copy to the host"),
        (lambda norm: norm + torch.tensor([1.0], device=norm.device), "constant"),
        (lambda norm: norm + torch.ones(2).to(norm.device), "copy to the device"),
        (lambda norm: norm.expand(4)[torch.arange(2)], "index of the host"),
    ],
)
def test_a_step_that_asks_for_something_is_noticed(
    pictures: Path, asks: Callable[[torch.Tensor], object], expected: str, monkeypatch: pytest.MonkeyPatch
):
    clip = step_module.clip_gradients

    def curious(*arguments: Any) -> torch.Tensor:
        norm = clip(*arguments)
        asks(norm)
        return norm

    monkeypatch.setattr(step_module, "clip_gradients", curious)
    assert waits_of_a_step(pictures) == [expected]


def test_on_cuda_a_training_step_never_waits_for_the_device(pictures: Path, device: torch.device):
    if device.type != "cuda":
        pytest.skip("needs --device cuda")
    made = steps(pictures, device)
    for _ in range(4):
        next(made)()
    one = next(made)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        one()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.usefixtures("meta")
def test_a_pass_over_images_waits_as_often_for_many_as_for_a_few(pictures: Path):
    """At its begin for constants and broken weights, and at its end; never for a batch."""
    paths = sorted(pictures.glob("*.png"))

    def waits(count: int) -> list[str]:
        backbone = load_backbone("random:vit_micro_patch8_32").to(DEVICE)
        session = Session(pictures / str(count))
        with Waits() as waits:
            image_features(
                backbone,
                paths[:count],
                Preprocessing(32, 32),
                session=session,
                pieces=("cls1", "mean"),
                batch_size=2,
                workers=0,
            )
        return waits.seen

    waits(2)  # constants of the network
    few, many = waits(4), waits(16)
    assert few == many
    assert len(few) <= 6


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize("void", ["counted", "left out"])
def test_a_step_of_a_linear_layer_on_pixels_never_waits_for_the_device(void: Literal["counted", "left out"]):
    with DEVICE:
        head = LinearHead(8, 3)
        tokens, ids = torch.zeros(2, 8, 4, 4), torch.zeros(2, 16, 16, dtype=torch.long)
    optimizer, pending = optimizer_of(head, PixelProbe()), PendingLosses()
    with Waits() as waits:
        for step in range(3):
            pending.add(step, head_step(head, optimizer, dropped(tokens, 0.1, 0, step), ids, 1e-3, void))
    assert waits.seen == []
    with Waits() as waits:
        pending.take()
    assert len(waits.seen) == 1


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize("changes", [{}, {"bins": 1}, {"batch_norm": False, "padding": "cut"}], ids=str)
def test_a_step_of_a_depth_head_never_waits_for_the_device(changes: dict[str, Any]):
    config = DepthProbe(steps=40, loss_images=2, **changes)
    with DEVICE:
        head = DepthHead(8, config)
        tokens, meters = torch.zeros(5, 8, 4, 4), torch.zeros(5, 16, 16)
    optimizer, pending = torch.optim.AdamW(head.parameters()), PendingLosses()
    with Waits() as waits:
        for step in (0, 20):
            loss, groups = depth_step(head, optimizer, tokens, meters, config, 8, step)
            pending.add(step, loss, loss / groups)
    assert waits.seen == []
    with Waits() as waits:
        look_at_losses(pending, config)
    assert len(waits.seen) == 1


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mixup": 0.0, "cutmix": 0.0},
        {"clip_grad": 1.0},
        {"amp": "fp16"},
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "amp": "fp16"},
    ],
    ids=str,
)
def test_a_step_of_fine_tuning_never_waits_for_the_device(tmp_path: Path, changes: dict[str, Any]):
    for folder in ("train/a", "train/b", "val/a", "val/b"):
        write_pictures(tmp_path / folder, 8)
    backbone = load_backbone("random:vit_micro_patch8_32").to(DEVICE)
    config = FinetuneConfig(data=str(tmp_path), crop=32, batch_size=8, drop_path=0.1, workers=0, **changes)
    run = FineTuning(backbone, config, open_labeled(config), Session(tmp_path / "out"))
    batches = run.micro_batches()
    run.optimizer_step([next(batches)])  # constants of the network
    batch = next(batches)
    with Waits() as waits:
        run.optimizer_step([batch])
    assert waits.seen == []
