"""Number types by their names, and the type that training takes by itself."""

from types import SimpleNamespace

import pytest
import torch

import tasks
from dino_dense.objects.lanczos import full_float32
from dino_dense.training.precision import DTYPES, autocast_dtype, fastest_dtype, grad_scaler, set_products
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
