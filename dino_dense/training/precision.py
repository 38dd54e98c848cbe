"""The number types by the names that options use, and autocast with loss scaling in them."""

import torch
from torch.amp import GradScaler

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""Option -> type."""


def autocast_dtype(name: str) -> torch.dtype | None:
    """The type that products are computed in; None where autocast is off (fp32, off)."""
    return DTYPES[name] if name in ("bf16", "fp16") else None


def autocast(device: torch.device, name: str) -> torch.autocast:
    """Autocast in that precision; a context without effect for fp32 and off."""
    dtype = autocast_dtype(name)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def grad_scaler(device: torch.device, name: str) -> GradScaler:
    """Loss scaling, at work for fp16 alone: small gradients are below fp16's smallest number."""
    return GradScaler(device.type, enabled=name == "fp16")
