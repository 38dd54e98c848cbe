"""Fast attention in bfloat16 on a CPU. PyTorch's own kernel is no faster there in bfloat16 than in float32.

Shapes: B images, H heads, N tokens, c channels of a head.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

BLOCK = 128
"""Queries in a block: small enough that their similarities to thousands of keys fit the caches."""
MOST_TOKENS_TO_TRAIN = 512
"""With more tokens, training uses PyTorch's kernel: the blocked version keeps B*H*N*N numbers a layer for backward."""


def fast_attention(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """A context with the fastest attention for this autocast type on this device."""
    return BlockedAttention() if device.type == "cpu" and dtype == torch.bfloat16 else nullcontext()


class BlockedAttention(TorchFunctionMode):
    """A context in which `scaled_dot_product_attention` of bfloat16 CPU tensors computes block by block of queries.

    PyTorch's flash kernel for CPUs (2.15) multiplies small float32 tiles. Two large bfloat16 products and a softmax for
    each block use the processor's bfloat16 instructions instead. All else goes to PyTorch: other types, devices, masks,
    and long inputs that need a gradient.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and _suits(*args, **kwargs):
            return _attend(*args, **kwargs)
        return func(*args, **kwargs)


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k' / sqrt(c)) v for q, k, v [B, H, N, c], in their type.

    Without a gradient, only BLOCK x N similarities of a head are in memory at once.
    """
    q, k, v = (part.flatten(0, 1) for part in (query * query.shape[-1] ** -0.5, key, value))  # [B*H, N, c]
    k = k.transpose(1, 2)
    with torch.autocast(query.device.type, enabled=False):  # autocast would run the softmax in float32
        if torch.is_grad_enabled():
            out = torch.bmm(torch.bmm(q, k).softmax(dim=-1), v)
        else:
            out = torch.empty_like(q)
            for start in range(0, q.shape[1], BLOCK):
                block = slice(start, start + BLOCK)
                out[:, block] = torch.bmm(torch.bmm(q[:, block], k).softmax(dim=-1), v)
    return out.view_as(query)


def _attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    return attend_in_blocks(query, key, value)


def _suits(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **other: Any,
) -> bool:
    plain = attn_mask is None and not dropout_p and not is_causal and not any(other.values())
    fits = query.dtype == torch.bfloat16 and query.device.type == "cpu" and query.ndim == 4
    short = not torch.is_grad_enabled() or query.shape[-2] <= MOST_TOKENS_TO_TRAIN
    return plain and fits and short and query.shape == key.shape == value.shape
