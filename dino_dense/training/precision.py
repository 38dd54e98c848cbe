"""Number types by their option names; autocast, loss scaling, and exactness of products."""

import os
from typing import Any, Literal

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Option value -> type."""


def autocast_dtype(name: str) -> torch.dtype | None:
    """The type of matrix products; None without autocast (fp32, tf32, off)."""
    return DTYPES[name] if name in ("bf16", "fp16") else None


def autocast(device: torch.device, name: str) -> torch.autocast:
    """Autocast with this precision; a context without effect for fp32 and off."""
    dtype = autocast_dtype(name)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def fastest_dtype(device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """The type to train in: bf16, which needs no loss scaling, on CUDA devices that compute in it; fp16 on others."""
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def set_products(device: torch.device, name: str) -> None:
    """Let CUDA round the factors of float32 products to 10 bits (tf32), or not (every other precision).

    Raises:
        ValueError: tf32 on another device than CUDA.
    """
    tf32 = name == "tf32"
    if tf32 and device.type != "cuda":
        raise ValueError(f"dtype is tf32, but only CUDA devices compute in it, not {device.type}: use --dtype fp32")
    torch.backends.cudnn.allow_tf32 = tf32  # True by default, so that fp32 would not be fp32 in convolutions
    torch.backends.cuda.matmul.allow_tf32 = tf32


def use_deterministic_operations() -> None:
    """Make PyTorch take operations that give equal bits in every run; an error names one that has no such form.

    cuBLAS reads its variable when it is first used: call this before any product on the device.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def grad_scaler(device: torch.device, name: str) -> GradScaler:
    """Loss scaling, enabled for fp16 only: small gradients would underflow in fp16."""
    return GradScaler(device.type, enabled=name == "fp16")


def skip_on_device(optimizer: Optimizer) -> None:
    """Let the device decide whether loss scaling skips a step, as fused AdamW does, so that the host need not wait.

    `GradScaler.step` asks the device whether a gradient is not finite, unless the optimizer takes the answer itself.
    Here weights and state are copied before the step, and the device puts them back if it is skipped: the same bits as
    GradScaler's. State that such a step made becomes 0, so the optimizer must begin at 0, as a momentum does, and keep
    no count of steps on the host. The copies lie beside the gradients, when the activations are gone.
    """
    optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]  # GradScaler then sets `found_inf`
    skip = _Skip()
    optimizer.register_step_pre_hook(skip.remember)
    optimizer.register_step_post_hook(skip.put_back)


class _Skip:
    """The two hooks of `skip_on_device`."""

    def __init__(self) -> None:
        self.overflow: Tensor | None = None
        """Above 0: a gradient is not finite. None: no loss scaling."""
        self.before: dict[Tensor, Tensor] = {}
        """A tensor that the step may change -> its copy."""

    def remember(self, optimizer: Optimizer, *arguments: Any) -> None:
        self.overflow = getattr(optimizer, "found_inf", None)
        if self.overflow is None:
            return
        if optimizer.grad_scale is not None:  # type: ignore[attr-defined]
            raise RuntimeError("gradients are still scaled: call GradScaler.unscale_ before GradScaler.step")
        optimizer.found_inf = None  # type: ignore[attr-defined]  # PyTorch's unfused steps refuse it
        self.before = {tensor: tensor.clone() for tensor in _changed_by(optimizer)}

    @torch.no_grad()
    def put_back(self, optimizer: Optimizer, *arguments: Any) -> None:
        if self.overflow is None:
            return
        for tensor in _changed_by(optimizer):
            tensor.copy_(torch.where(self.overflow > 0, self.before.get(tensor, 0.0), tensor))
        self.before = {}


def _changed_by(optimizer: Optimizer) -> list[Tensor]:
    """The tensors that the next step changes: weights with a gradient, and their state."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
    state = [value for weight in weights for value in optimizer.state.get(weight, {}).values() if value is not None]
    return [*weights, *state]
