"""Point tracks through a video by the most similar patch of each frame, without training.

Shapes: T frames, h x w patch grid, D features, Q queries.
Source: fomo_point_tracking `zero_shot.py` (arXiv 2408.13575).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def query_features(features: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """Features [Q, D] at points of the frames, bilinear between the centers of the patches.

    Args:
        features: [T, D, h, w].
        points: [Q, 3]: frame, y, x in pixels of frames of `size` (H, W).

    Raises:
        ValueError: a point lies outside its frame, or a frame does not exist.
    """
    frames = points[:, 0].round().long()
    height, width = size
    inside = (points[:, 1] >= 0) & (points[:, 1] <= height) & (points[:, 2] >= 0) & (points[:, 2] <= width)
    if not bool((inside & (frames >= 0) & (frames < len(features))).all()):
        raise ValueError(f"a point lies outside the {len(features)} frames of {height}x{width} pixels (HxW).")
    grid = torch.stack([2 * points[:, 2] / width - 1, 2 * points[:, 1] / height - 1], dim=-1).to(features)
    result = features.new_empty(len(points), features.shape[1])
    for frame in frames.unique().tolist():
        rows = (frames == frame).nonzero()[:, 0]
        sampled = F.grid_sample(
            features[frame][None], grid[rows][None, None], mode="bilinear", padding_mode="border", align_corners=False
        )
        result[rows] = sampled[0, :, 0].T
    return result


def track_points(features: Tensor, queries: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Follow features [Q, D] to the most similar patch of each frame.

    Time and memory are linear in frames and queries: a product [Q, h*w] for each frame.

    Args:
        features: [T, D, h, w].
        queries: [Q, D] of `query_features`.
        size: (H, W) of the frames, pixels.

    Returns:
        Positions (x, y) of patch centers in pixels [Q, T, 2], and their cosine [T, Q].
    """
    unit = F.normalize(queries, dim=-1)
    height, width = features.shape[-2:]
    scale = torch.tensor([size[1] / width, size[0] / height], dtype=features.dtype, device=features.device)
    tracks, cosines = [], []
    for frame in features:
        similarity = unit @ F.normalize(frame.flatten(1), dim=0)  # [Q, h*w]
        best = similarity.max(dim=1)
        cell = torch.stack([best.indices % width, best.indices // width], dim=-1)
        tracks.append((cell + 0.5) * scale)
        cosines.append(best.values)
    return torch.stack(tracks, dim=1), torch.stack(cosines)


def cycle_distance(features: Tensor, points: Tensor, tracks: Tensor, size: tuple[int, int]) -> Tensor:
    """Distance of each query from the point that its track leads back to, pixels [Q, T] (ours).

    The patch at a track's position is searched for in the query's frame. If the point is hidden, the track lies on
    another thing, and the search leads to another position. Time is linear in frames and queries, as for tracking.

    Args:
        features: [T, D, h, w].
        points: [Q, 3] of `query_features`: frame, y, x.
        tracks: [Q, T, 2] of `track_points`.
        size: (H, W) of the frames, pixels.
    """
    result = features.new_empty(tracks.shape[:2])
    frames = points[:, 0].round().long()
    for frame in frames.unique().tolist():
        rows = (frames == frame).nonzero()[:, 0].cpu()
        result[rows] = way_back(features[frame], points[rows][:, [2, 1]], features, tracks[rows], size)
    return result


def way_back(home: Tensor, starts: Tensor, features: Tensor, tracks: Tensor, size: tuple[int, int]) -> Tensor:
    """`cycle_distance` of the queries of one frame, pixels [Q, T].

    Args:
        home: [D, h, w] of the queries' frame.
        starts: [Q, 2]: the queries, x and y.
        features, tracks, size: as there.
    """
    height, width = features.shape[-2:]
    scale = torch.tensor([size[1] / width, size[0] / height], dtype=features.dtype, device=features.device)
    cells = (tracks.to(features) / scale).long()  # [Q, T, 2]
    unit = F.normalize(home.flatten(1), dim=0)  # [D, h*w]
    result = features.new_empty(tracks.shape[:2])
    for time, frame in enumerate(features):
        column, row = cells[:, time].T
        best = (F.normalize(frame[:, row, column], dim=0).T @ unit).argmax(dim=1)
        back = (torch.stack([best % width, best // width], dim=1) + 0.5) * scale
        result[:, time] = (back - starts.to(features)).norm(dim=1)
    return result
