"""Number types by their option names; autocast and loss scaling."""

from typing import Literal

import torch
from torch.amp import GradScaler

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Option value -> type."""


def autocast_dtype(name: str) -> torch.dtype | None:
    """The type of matrix products; None without autocast (fp32, off)."""
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


def grad_scaler(device: torch.device, name: str) -> GradScaler:
    """Loss scaling, enabled for fp16 only: small gradients would underflow in fp16."""
    return GradScaler(device.type, enabled=name == "fp16")
