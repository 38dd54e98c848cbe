"""Pixel predictions from patch tokens or windows, with the order of operations of each published evaluation.

Shapes: B images, D channels, K classes, h x w patches, H x W pixels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NECO_SIDE = 100  # pixels that NeCo and Leopart train and score at (`linear_finetune.py`)


def slide_logits(predict: Callable[[Tensor], Tensor], image: Tensor, crop: int, stride: int) -> Tensor:
    """Logits of an image by sliding windows, averaged in overlaps: [1, 3, H, W] -> [1, K, H, W].

    The last window of a row is shifted back, not padded. If both sides of the image are smaller than the window, the
    windows have its short side. Source: dinov3 `eval/segmentation/inference.py`.

    Args:
        predict: a window [1, 3, h, w] -> logits [1, K, h, w].
        crop: side of a window, pixels.
        stride: distance between windows, pixels.
    """
    height, width = image.shape[-2:]
    if crop > height and crop > width:
        crop = min(height, width)
    windows = [
        (slice(top, top + crop), slice(left, left + crop))
        for top in window_starts(height, crop, stride)
        for left in window_starts(width, crop, stride)
    ]
    parts = [predict(image[..., rows, columns]) for rows, columns in windows]
    total = parts[0].new_zeros(1, parts[0].shape[1], height, width)
    counts = parts[0].new_zeros(1, 1, height, width)
    for (rows, columns), logits in zip(windows, parts, strict=True):
        total[..., rows, columns] += logits
        counts[..., rows, columns] += 1
    return total / counts


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along a side: every `stride`, the last window flush with the end."""
    last = max(side - window, 0)
    return [*range(0, last, stride), last]


def class_shares(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Class probabilities: logits [B, K, h, w] upsampled bilinearly to `size` (H, W), then softmax (dinov3)."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=False).softmax(dim=1)


def upsampled_logits(head: nn.Module, tokens: Tensor, side: int = NECO_SIDE) -> Tensor:
    """Logits [B, K, side, side] from tokens [B, D, h, w], upsampled before the 1x1 convolution (NeCo).

    DINOv3 upsamples the logits after it. For a linear head both orders are equal up to rounding.
    """
    return head(F.interpolate(tokens, (side, side), mode="bilinear", align_corners=False))


def nearest_labels(labels: Tensor, side: int = NECO_SIDE) -> Tensor:
    """Class ids [B, H, W] resized to `side` x `side` by nearest neighbor (NeCo, Leopart)."""
    return F.interpolate(labels[:, None].to(torch.float32), (side, side), mode="nearest")[:, 0].to(labels.dtype)
