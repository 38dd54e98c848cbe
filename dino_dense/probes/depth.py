"""Depth from the logits of a linear head: bins to meters, and the training loss.

Shapes: B images, n bins, h x w cells. Source: dinov3 `eval/depth/models` (FeaturesToDepth), `eval/depth/loss.py`;
dinov2's depth heads are equal for uniform bins.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Spacing = Literal["linear", "log"]
Weighting = Literal["linear", "softmax", "sigmoid"]
FLOOR = 0.1  # added to the rectified logits of the linear weighting
LOG_EPS = 1e-3  # meters, added before the logarithm of the loss
MEAN_WEIGHT = 0.15  # of the squared mean of log differences in the loss (1 - lambda of Eigen et al. 2014, lambda 0.85)


def bin_depths(count: int, low: float, high: float, spacing: Spacing = "linear") -> Tensor:
    """Depth of each bin in meters, float32 [n], both ends included.

    Raises:
        ValueError: fewer than two bins, or a range that is not 0 < low < high (0 <= low for linear spacing).
    """
    if count < 2 or not 0 <= low < high or (spacing == "log" and low <= 0):
        raise ValueError(f"{count} bins from {low} to {high} m ({spacing}): expected two or more, and 0 < low < high.")
    if spacing == "linear":
        return torch.linspace(low, high, count)
    return torch.logspace(math.log10(low), math.log10(high), count)


def expected_depth(logits: Tensor, depths: Tensor, weighting: Weighting = "linear") -> Tensor:
    """Mean depth of the bins, weighted by the logits [B, n, h, w] -> meters [B, 1, h, w].

    Args:
        depths: [n] of `bin_depths`.
        weighting: linear (relu + 0.1), sigmoid, or softmax; each is divided by its sum over the bins.
    """
    if weighting == "softmax":
        shares = logits.softmax(dim=1)
    else:
        weights = logits.relu() + FLOOR if weighting == "linear" else logits.sigmoid()
        shares = weights / weights.sum(dim=1, keepdim=True)
    return torch.einsum("bnhw,n->bhw", shares, depths.to(logits))[:, None]


def regressed_depth(logits: Tensor, low: float) -> Tensor:
    """Meters [B, 1, h, w] of a head with one output [B, 1, h, w]: its positive part, above `low` (one bin there)."""
    return logits.relu() + low


def known_depth(truth: Tensor, max_depth: float) -> Tensor:
    """Which pixels have a depth, bool: 0 < truth <= `max_depth`."""
    return (truth > 0) & (truth <= max_depth)


def sig_loss(predicted: Tensor, truth: Tensor, max_depth: float, *, warm_up: bool = False) -> Tensor:
    """Scale-invariant loss of log depth (Eigen et al. 2014), over pixels of `known_depth`: not a number without any.

    sqrt(0.15 mean(g)^2 + var(g)), g the difference of logarithms; without the variance while `warm_up`. Sums over all
    pixels, 0 where there is no depth: a selection would have a size that the host must wait for.
    """
    blank = ~known_depth(truth, max_depth)
    count = (~blank).sum()
    g = (predicted.masked_fill(blank, 1) + LOG_EPS).log() - (truth.masked_fill(blank, 1) + LOG_EPS).log()
    mean = g.sum() / count.clamp(min=1)
    spread = g.new_zeros(()) if warm_up else (g - mean).masked_fill(blank, 0).square().sum() / (count - 1)
    squared = spread + MEAN_WEIGHT * mean.square()
    return squared.masked_fill(count == 0, 1).sqrt().masked_fill(count == 0, math.nan)  # the root has no slope at 0


def mean_of_flips(depth: Tensor, flipped: Tensor) -> Tensor:
    """Mean of the depth of an image and of its mirror image, [B, 1, h, w] each; mirrors the second back."""
    return (depth + flipped.flip(-1)) / 2


def at_size(depth: Tensor, size: tuple[int, int], low: float, high: float) -> Tensor:
    """Depth [B, 1, h, w] upsampled bilinearly to `size` (H, W), clipped to the range in meters."""
    return F.interpolate(depth, size, mode="bilinear", align_corners=False).clamp(low, high)
