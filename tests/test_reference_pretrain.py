"""Head, loss and schedules against the published reference's arrays (dino_head, dino_loss, schedules)."""

import zlib

import numpy as np
import pytest
import torch

from dino_dense.pretrain.head import DINOHead
from dino_dense.pretrain.loss import DINOLoss
from dino_dense.pretrain.optim import scaled_lr
from dino_dense.pretrain.schedules import cosine_schedule
from tests.reference_files import reference


def recipe(name: str, shape: torch.Size) -> torch.Tensor:
    """The reference's deterministic weight for a parameter of the head, from its name."""
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(tuple(shape))
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    scale = 0.5 / np.sqrt(fan_in) if len(shape) >= 2 else 0.02
    return torch.from_numpy((draw * scale).astype(np.float32))


# Hidden and bottleneck sizes are not in the file; the README of the reference states them.
HIDDEN, BOTTLENECK = 64, 32


def test_head_matches_reference():
    arrays = reference("dino_head")
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    head = DINOHead(x.shape[1], y.shape[1], HIDDEN, BOTTLENECK)
    weights = {name: recipe(name, value.shape) for name, value in head.state_dict().items()}
    weights["last_layer.weight_g"] = torch.ones_like(weights["last_layer.weight_g"])
    head.load_state_dict(weights)
    torch.testing.assert_close(head(x), y, rtol=0, atol=1e-5)


def test_loss_gradient_center_and_temperature_match_reference_step_by_step():
    arrays = reference("dino_loss")
    steps = sorted({int(key.split(".")[0]) for key in arrays.files})
    # The file does not say the number of views; the teacher has 2 of the same images.
    n_views = 2 * len(arrays["0.student"]) // len(arrays["0.teacher"])
    loss = DINOLoss(arrays["0.student"].shape[1], n_views, 0.04, 0.07, 30)
    for i in steps:
        student = torch.from_numpy(arrays[f"{i}.student"]).requires_grad_()
        epoch = int(arrays[f"{i}.epoch"])
        assert loss.teacher_temp(epoch) == pytest.approx(float(arrays[f"{i}.teacher_temp"]), rel=1e-12)
        output = loss(student, torch.from_numpy(arrays[f"{i}.teacher"]), epoch)
        output.loss.backward()
        loss.update_center(output.teacher_mean)
        assert output.loss.item() == pytest.approx(float(arrays[f"{i}.loss"]), rel=1e-5)
        assert_relative(student.grad, arrays[f"{i}.grad"])
        assert_relative(loss.center, arrays[f"{i}.center_after"])


def assert_relative(ours: torch.Tensor | None, theirs: np.ndarray) -> None:
    """Largest error at most 1e-5 of the largest value."""
    assert ours is not None
    assert ours.shape == theirs.shape
    assert np.abs(ours.numpy() - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize(
    ("name", "base", "final", "warmup"),
    [
        ("lr", scaled_lr(0.0005, 512), 1e-6, 10),
        ("wd", 0.04, 0.4, 0),
        ("momentum", 0.996, 1.0, 0),
    ],
)
def test_schedules_match_reference(name: str, base: float, final: float, warmup: int):
    published = reference("schedules")[name]
    epochs = 100
    ours = cosine_schedule(base, final, epochs, len(published) // epochs, warmup)
    np.testing.assert_allclose(ours, published, rtol=0, atol=1e-12)
