"""Object masks from the attention of the class token (DINO)."""

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dino_dense.objects.segment import Segment, check_finite

# --- Attention ---------------------------------------------------------------------------------------------


def attention_masks(attention: Tensor, mass: float = 0.6) -> npt.NDArray[np.bool_]:
    """Patches with most of the class token's attention (visualize_attention.py).

    Args:
        attention: [heads, h, w], not negative.
        mass: share of a head's attention that its mask keeps.

    Returns:
        [heads, h, w]: the smallest set of patches with at least `mass`.
    """
    check_finite(attention)
    values, order = attention.flatten(1).sort(dim=1)
    cumulated = (values / values.sum(1, keepdim=True)).cumsum(1)
    kept = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order, cumulated > 1 - mass)
    return kept.view(attention.shape).cpu().numpy()


def attention_segments(
    attention: Tensor, mass: float = 0.6, heads: Literal["mean", "best"] | int = "mean"
) -> list[Segment]:
    """Masks of the mean over heads, of one head (counted from 0), or of each head ("best").

    Args:
        attention: [heads, h, w].

    Returns:
        Segments with confidence 1 - kept / mass, where kept is the mask's share of the patches: 0 for uniform
        attention, near 1 for attention to few patches.

    Raises:
        ValueError: there is no such head.
    """
    if isinstance(heads, int) and not 0 <= heads < len(attention):
        raise ValueError(f"head {heads}: this backbone has {len(attention)} attention heads, counted from 0")
    chosen = attention.mean(0, keepdim=True) if heads == "mean" else attention
    chosen = chosen[heads : heads + 1] if isinstance(heads, int) else chosen
    masks = attention_masks(chosen, mass)
    return [Segment(mask, max(0.0, 1 - float(mask.mean()) / mass)) for mask in masks]
