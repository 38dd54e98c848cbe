"""Point correspondences between two images by the most similar patch or pixel, without training.

Shapes: P points (x, y), D features, h x w patch grid, H x W pixels.
Sources: probe3d `evaluate_spair_correspondence.py`, dift `eval_spair.py`, GeoAware-SC `pck_train.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SOFT_TEMPERATURE = 0.02  # GeoAware-SC
SOFT_WINDOW = 5  # cells on each side of the best cell, GeoAware-SC


def sampled_at_corners(features: Tensor, points: Tensor, side: int) -> Tensor:
    """Unit features [P, D] at points, bilinear; the map's corners are aligned with the image's (Probe3D).

    Args:
        features: [D, g, g] of a square image of `side` pixels.
        points: [P, 2], pixels.
    """
    grid = (2 * points.to(features) / side - 1)[None, None]
    sampled = F.grid_sample(F.normalize(features, dim=0)[None], grid, mode="bilinear", align_corners=True)
    return F.normalize(sampled[0, :, 0].T, dim=1)


def best_cells(queries: Tensor, features: Tensor) -> Tensor:
    """The most similar cell (x, y) of a map [D, h, w] for each query [P, D], int64 [P, 2]; the first of ties."""
    similarity = F.normalize(queries, dim=1) @ F.normalize(features.flatten(1), dim=0)
    index = similarity.argmax(dim=1)
    return torch.stack([index % features.shape[2], index // features.shape[2]], dim=1)


def at_pixels(features: Tensor, size: tuple[int, int]) -> Tensor:
    """A map [D, h, w] upsampled bilinearly to `size` (H, W), then normalized, [D, H, W] (DIFT)."""
    large = F.interpolate(features[None], size, mode="bilinear", align_corners=False)[0]
    return F.normalize(large, dim=0)


def best_pixels(queries: Tensor, features: Tensor, size: tuple[int, int], channels: int = 64) -> Tensor:
    """The most similar pixel (x, y) for each of [P, D], int64 [P, 2]: `best_cells` on `at_pixels`, in less memory.

    Upsampling is linear, so that products with the queries are upsampled in place of features; the lengths of the
    features at the pixels are summed over `channels` of them at a time.

    Args:
        features: map [D, h, w] before upsampling.
        size: (H, W), pixels.
    """
    lengths = features.new_zeros(size)
    for part in features.split(channels):
        lengths += F.interpolate(part[None], size, mode="bilinear", align_corners=False)[0].square().sum(0)
    lengths = lengths.sqrt().clamp_min(1e-12)
    products = torch.einsum("pd,dhw->phw", F.normalize(queries, dim=1), features)
    best = [
        (F.interpolate(one[None, None], size, mode="bilinear", align_corners=False)[0, 0] / lengths).argmax()
        for one in products
    ]
    index = torch.stack(best)
    return torch.stack([index % size[1], index // size[1]], dim=1)


def features_at_pixels(features: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """Features [P, D] of length 1 at whole pixels (x, y) [P, 2] of a map [D, h, w] as `at_pixels` upsamples it."""
    scale = torch.tensor(size[::-1]).to(features)
    grid = (2 * (points.to(features) + 0.5) / scale - 1)[None, None]
    sampled = F.grid_sample(features[None], grid, mode="bilinear", padding_mode="border", align_corners=False)
    return F.normalize(sampled[0, :, 0].T, dim=1)


def pixel_features(features: Tensor, points: Tensor) -> Tensor:
    """Features [P, D] of a map [D, H, W] at integer pixels (x, y) [P, 2].

    Raises:
        ValueError: a point lies outside the map.
    """
    height, width = features.shape[1:]
    x, y = points.long().T
    if not bool(((x >= 0) & (x < width) & (y >= 0) & (y < height)).all()):
        raise ValueError(f"a point lies outside the image of {height}x{width} pixels (HxW): {points.tolist()}.")
    return features[:, y, x].T


def soft_cells(queries: Tensor, features: Tensor, window: int = SOFT_WINDOW) -> Tensor:
    """The mean cell (x, y) around the most similar cell, weighted by softmax of cosines, float [P, 2] (GeoAware-SC).

    Similarities outside the window are set to 0, not to minus infinity, as in the reference.

    Args:
        queries: [P, D].
        features: [D, h, w].
        window: cells on each side of the best cell.
    """
    height, width = features.shape[1:]
    similarity = (F.normalize(queries, dim=1) @ F.normalize(features.flatten(1), dim=0)).view(-1, height, width)
    best = best_cells(queries, features)
    columns, rows = (torch.arange(length, device=features.device) for length in (width, height))
    near = ((columns - best[:, :1]).abs() <= window)[:, None] & ((rows - best[:, 1:]).abs() <= window)[:, :, None]
    weights = ((similarity * near) / SOFT_TEMPERATURE).flatten(1).softmax(dim=1).view_as(similarity)
    x = (weights.sum(1) * columns).sum(1)
    y = (weights.sum(2) * rows).sum(1)
    return torch.stack([x, y], dim=1)
