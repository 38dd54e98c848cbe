"""In-context segmentation: labels of the most similar patches of a memory, without training (Hummingbird).

Shapes: n images of H x W pixels, h x w patches of `patch` pixels, N queries, D features, C classes, M rows of the
memory. Sources: open-hummingbird-eval `hbird/hbird_eval.py` (arXiv 2306.01667); CAPI `eval_segmentation.py`.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dino_dense.neighbors.exact import SEARCH_BYTES, nearest

VOID = 255  # pixels without a label


def patch_histograms(labels: Tensor, patch: int, classes: int) -> Tensor:
    """Share of each class among the pixels of each patch, float32 [n, h, w, C].

    Void pixels count as class 0, as in the reference: void teaches background there.

    Args:
        labels: class ids [n, H, W], integers; H and W are multiples of `patch`.

    Raises:
        ValueError: a side is no multiple of `patch`, or an id is not below `classes`.
    """
    if labels.shape[1] % patch or labels.shape[2] % patch:
        raise ValueError(f"labels are {tuple(labels.shape[1:])} (HxW): expected multiples of the patch size {patch}.")
    ids = labels.long().masked_fill(labels == VOID, 0)
    if int(ids.max()) >= classes:
        raise ValueError(f"class id {int(ids.max())}: expected ids below {classes}, or {VOID} for void.")
    pixels = rearrange(ids, "n (h a) (w b) -> n h w (a b)", a=patch, b=patch)
    counts = torch.zeros(*pixels.shape[:3], classes).scatter_add_(-1, pixels, torch.ones(pixels.shape))
    return counts / patch**2


def patch_scores(histograms: Tensor) -> Tensor:
    """Frequency of each patch's classes in its image, [n, h*w]; patches of rare classes are sampled first.

    The sum, over the classes in a patch, of the number of patches of the image with this class.
    """
    held = (histograms > 0).flatten(1, 2).float()  # [n, h*w, C]
    return (held * held.sum(1, keepdim=True)).sum(-1)


def sample_patches(scores: Tensor, draws: Tensor, count: int) -> Tensor:
    """The `count` patches of each image with the smallest score * draw, in ascending order, int64 [n, count].

    Args:
        scores: [n, h*w] of `patch_scores`.
        draws: random numbers [n, h*w], uniform in (0, 1).
    """
    return (scores * draws).topk(count, dim=1, largest=False, sorted=True).indices


def soft_labels(
    queries: Tensor,
    memory: Tensor,
    memory_labels: Tensor,
    *,
    neighbors: int,
    temperature: float,
    max_bytes: int = SEARCH_BYTES,
) -> Tensor:
    """Labels of the most similar rows of the memory, weighted by a softmax of cosine / temperature, [N, C].

    Args:
        queries: features [N, D], of any length.
        memory: features [M, D] of length 1.
        memory_labels: class shares [M, C], of any type: counts give counts.
        neighbors: number of rows that vote, 1 to M.
        temperature: the softmax's (`beta` in the reference, 0.02).

    Raises:
        ValueError: the memory is empty, or has fewer rows than `neighbors`.
    """
    if not len(memory):
        raise ValueError("the memory is empty: no patch of the training images was kept. Give it more images.")
    unit = F.normalize(queries, dim=-1)
    result = queries.new_empty(len(queries), memory_labels.shape[1])
    step = max(1, max_bytes // (4 * neighbors * (memory.shape[1] + memory_labels.shape[1])))
    indices = nearest(queries, memory, neighbors, max_bytes=max_bytes).indices
    for start in range(0, len(queries), step):
        rows = indices[start : start + step]
        cosine = torch.einsum("nd,nkd->nk", unit[start : start + step], memory[rows])
        weights = (cosine / temperature).softmax(dim=-1)
        result[start : start + step] = torch.einsum("nk,nkc->nc", weights, memory_labels[rows].to(weights.dtype))
    return result


def class_map(labels: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Soft labels [n, h*w, C] on a grid (h, w) -> class ids uint8 [n, H, W] of `size`: bilinear, then argmax."""
    maps = rearrange(labels, "n (h w) c -> n c h w", h=grid[0], w=grid[1])
    return F.interpolate(maps, size, mode="bilinear", align_corners=False).argmax(1).to(torch.uint8)


def modal_label(labels: Tensor, patch: int) -> Tensor:
    """The most frequent class id of each patch, the smallest id of ties, [n, h*w]."""
    return _patch_pixels(labels, patch).mode(dim=-1).values


def vote_per_pixel(queries: Tensor, memory: Tensor, memory_labels: Tensor, *, neighbors: int, cosine: bool) -> Tensor:
    """For each pixel of a patch, the most frequent label among the nearest patches, [N, patch*patch] (CAPI).

    Args:
        queries: [N, D].
        memory: [M, D].
        memory_labels: class ids [M, patch*patch] of the pixels of each patch, in rows.
        cosine: compare by cosine, else by Euclidean distance.
    """
    if cosine:
        rows = nearest(F.normalize(queries, dim=-1), F.normalize(memory, dim=-1), neighbors).indices
    else:
        # |q - m|^2 = |q|^2 - 2 (q m - |m|^2 / 2): the largest product of (q, 1) with (m, -|m|^2 / 2).
        extended = torch.cat([memory, -memory.square().sum(1, keepdim=True) / 2], dim=1)
        rows = nearest(F.pad(queries, (0, 1), value=1.0), extended, neighbors).indices
    return memory_labels[rows].mode(dim=1).values


def patch_labels(labels: Tensor, patch: int) -> Tensor:
    """Class ids [n, H, W] -> class ids of the pixels of each patch, [n*h*w, patch*patch]."""
    return _patch_pixels(labels, patch).flatten(0, 1)


def pixel_map(labels: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """The inverse of `patch_labels`: [n*h*w, patch*patch] -> [n, H, W]."""
    return rearrange(labels, "(n h w) (a b) -> n (h a) (w b)", h=grid[0], w=grid[1], a=patch, b=patch)


def _patch_pixels(labels: Tensor, patch: int) -> Tensor:
    return rearrange(labels.long(), "n (h a) (w b) -> n (h w) (a b)", a=patch, b=patch)
