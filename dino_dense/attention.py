"""Attention in bfloat16 on a CPU, where PyTorch's own kernel is no faster than in float32.

Shapes: B images, H heads, N tokens, c channels of a head.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

BLOCK = 128
"""Queries whose similarities to all keys are held at once: few enough for the caches at thousands of tokens."""
FEWEST_TOKENS = 512
"""Below, PyTorch's kernel is as fast."""


class BlockedAttention(TorchFunctionMode):
    """Within it, `scaled_dot_product_attention` of bfloat16 tensors on a CPU goes block by block of queries.

    PyTorch's flash kernel there (2.15) multiplies small float32 tiles; two large bfloat16 products and a softmax for
    each block of queries use the processor's bfloat16 instructions. Everything else is untouched: other types,
    devices, masks, and anything that needs a gradient.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention and _suits(*args, **kwargs):
            return _attend(*args, **kwargs)
        return func(*args, **kwargs)


def attend_in_blocks(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k' / sqrt(c)) v for q, k, v [B, H, N, c], in their type, without ever holding N x N numbers."""
    q, k, v = (part.flatten(0, 1) for part in (query * query.shape[-1] ** -0.5, key, value))  # [B*H, N, c]
    k, out = k.transpose(1, 2), torch.empty_like(q)
    with torch.autocast(query.device.type, enabled=False):  # which would run the softmax in float32
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
    fits = query.dtype == torch.bfloat16 and query.device.type == "cpu" and query.shape[-2] >= FEWEST_TOKENS
    return plain and fits and query.ndim == 4 and query.shape == value.shape and not torch.is_grad_enabled()
