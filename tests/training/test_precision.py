"""Which number type training takes by itself."""

import pytest
import torch

from dino_dense.training.precision import fastest_dtype, grad_scaler


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
