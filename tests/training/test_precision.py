"""Number types by their names, and the type that training takes by itself."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.amp import GradScaler
from torch.optim import SGD

import tasks
from dino_dense.objects.lanczos import full_float32
from dino_dense.training.lars import Lars
from dino_dense.training.precision import (
    DTYPES,
    autocast_dtype,
    fastest_dtype,
    grad_scaler,
    set_products,
    skip_on_device,
)
from tasks import RunOptions
from tasks.harness.runner import identity_of


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "fp16")])
def test_bf16_where_the_device_has_it(has_bf16: bool, expected: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has_bf16)
    assert fastest_dtype(torch.device("cuda")) == expected
    assert fastest_dtype(torch.device("cpu")) == "fp32"


def test_loss_scaling_is_for_fp16_alone():
    assert [grad_scaler(torch.device("cpu"), name).is_enabled() for name in ("fp32", "bf16", "fp16")] == [
        False,
        False,
        True,
    ]


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda weights: SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.01, foreach=True),
    "nesterov": lambda weights: SGD(weights, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "lars": lambda weights: Lars(weights, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("overflows", [(), (0,), (0, 1), (2,), (1, 3)], ids=str)
def test_the_device_skips_the_steps_that_loss_scaling_skips(name: str, overflows: tuple[int, ...]):
    """Same bits as the host's decision: in the first step, which makes the momenta, and for weights that join later."""

    def trained(on_device: bool) -> tuple[list[torch.Tensor], float]:
        torch.manual_seed(0)
        module = nn.Linear(3, 2)
        late = nn.Parameter(torch.randn(2, 2))
        optimizer = OPTIMIZERS[name]([*module.parameters(), late])
        if on_device:
            skip_on_device(optimizer)
        scaler = GradScaler("cpu", init_scale=4.0)
        for step in range(6):
            optimizer.zero_grad(set_to_none=True)
            scores = module(torch.randn(4, 3))
            loss = (scores @ late if step > 1 else scores).square().mean()
            scaler.scale(loss * (float("inf") if step in overflows else 1.0)).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        return [weight.detach() for weight in (*module.parameters(), late)], scaler.get_scale()

    (ours, our_scale), (expected, expected_scale) = trained(True), trained(False)
    assert our_scale == expected_scale
    for weight, other in zip(ours, expected, strict=True):
        assert torch.equal(weight, other)


def test_a_step_with_scaled_gradients_is_refused():
    weight = nn.Parameter(torch.ones(2))
    optimizer, scaler = SGD([weight], lr=0.1), GradScaler("cpu")
    skip_on_device(optimizer)
    scaler.scale(weight.sum()).backward()
    with pytest.raises(RuntimeError, match=r"still scaled: call GradScaler\.unscale_"):
        scaler.step(optimizer)


@pytest.fixture
def flags():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_fp32_is_fp32_in_products_and_convolutions(flags: None):
    set_products(torch.device("cuda"), "tf32")
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32
    with full_float32():
        assert not torch.backends.cuda.matmul.allow_tf32, "TokenCut's products of whole numbers stay exact"
    assert torch.backends.cuda.matmul.allow_tf32
    for name in ("fp32", "bf16", "fp16"):
        set_products(torch.device("cuda"), name)
        assert not torch.backends.cuda.matmul.allow_tf32
        assert not torch.backends.cudnn.allow_tf32


def test_tf32_is_refused_where_there_is_none(flags: None):
    with pytest.raises(ValueError, match=r"dtype is tf32, but only CUDA devices .* not cpu: use --dtype fp32"):
        set_products(torch.device("cpu"), "tf32")
    assert DTYPES["tf32"] == torch.float32
    assert autocast_dtype("tf32") is None


def test_on_a_gpu_results_of_other_batches_and_devices_are_not_mixed():
    """Another batch is another matrix product there; on a CPU it changes nothing."""
    knn = tasks.get("knn")

    def identity(device: str, batch: int) -> dict:
        backbone = SimpleNamespace(weights_sha256="0", name="n", device=torch.device(device))
        return identity_of(knn, RunOptions(ckpt="x"), knn.config(batch_size=batch), backbone)

    assert identity("cpu", 8) == identity("cpu", 16)
    assert identity("cuda", 8) != identity("cuda", 16)
    assert identity("cuda", 8) != identity("cpu", 8)
