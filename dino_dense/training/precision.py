"""Number types by their option names; autocast, loss scaling, and exactness of products."""

import os
from typing import Literal

import torch
from torch.amp import GradScaler

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
