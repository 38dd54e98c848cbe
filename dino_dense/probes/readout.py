"""From patch tokens or windows to a class for every pixel, in the order that each published evaluation takes.

Shapes: B images, D channels, K classes, h x w patches, H x W pixels.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NECO_SIDE = 100  # pixels that NeCo and Leopart train and score at (`linear_finetune.py`)


def slide_logits(predict: Callable[[Tensor], Tensor], image: Tensor, crop: int, stride: int) -> Tensor:
    """Mean, over the windows that hold a pixel, of its logits: [1, 3, H, W] -> [1, K, H, W].

    The last window of a row is shifted back, not padded. An image that is smaller than the window both ways is read in
    windows of its short side. Source: dinov3 `eval/segmentation/inference.py`.

    Args:
        predict: a window [1, 3, h, w] -> logits [1, K, h, w].
        crop: side of a window, pixels.
        stride: between windows, pixels.
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
    """First pixels of the windows along a side: every `stride`, the last one flush with the end."""
    last = max(side - window, 0)
    return [*range(0, last, stride), last]


def class_shares(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Logits [B, K, h, w] bilinearly at `size` (H, W), then a softmax over the classes (dinov3)."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=False).softmax(dim=1)


def upsampled_logits(head: nn.Module, tokens: Tensor, side: int = NECO_SIDE) -> Tensor:
    """Logits [B, K, side, side] of tokens [B, D, h, w] that are upsampled before the 1x1 map (NeCo).

    DINOv3 upsamples the logits after the map. For a head of one linear layer both orders are equal but for rounding.
    """
    return head(F.interpolate(tokens, (side, side), mode="bilinear", align_corners=False))


def nearest_labels(labels: Tensor, side: int = NECO_SIDE) -> Tensor:
    """Class ids [B, H, W] at `side` x `side`, nearest (NeCo, Leopart)."""
    return F.interpolate(labels[:, None].to(torch.float32), (side, side), mode="nearest")[:, 0].to(labels.dtype)
