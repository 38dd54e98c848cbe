"""Convert joints of a pose to soft labels on a grid, and back to points, for label propagation.

Source: CRW, videowalk `data/jhmdb.py` and `utils/test_utils.py` (JHMDB). Shapes: K joints, h x w grid; points are
(x, y) in cells.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

TOP = 3  # cells averaged for a joint
SIGMA = 0.5  # cells


def draw_joints(points: npt.NDArray[np.floating], grid: tuple[int, int], sigma: float = SIGMA) -> Tensor:
    """Gaussians float32 [K, h, w] around points [K, 2], each 1 at its peak and cut off about 3 sigma from it.

    As in the reference, with sigma 0.5 the window is 4 cells from `int(p - 1.5)` to `int(p + 2.5)`, both truncated
    towards zero, with the peak at its third cell. If the window lies outside the grid, the map is 0.
    """
    reach = 3 * sigma
    size = int(2 * reach + 1)
    offsets = np.arange(size) - size // 2
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * sigma**2))
    maps = np.zeros((len(points), *grid), np.float32)
    for canvas, (x, y) in zip(maps, points.tolist(), strict=True):
        left, top = math.trunc(x - reach), math.trunc(y - reach)
        rows = slice(max(top, 0), min(math.trunc(y + reach + 1), grid[0]))
        columns = slice(max(left, 0), min(math.trunc(x + reach + 1), grid[1]))
        if rows.start < rows.stop and columns.start < columns.stop:
            canvas[rows, columns] = window[
                rows.start - top : rows.stop - top, columns.start - left : columns.stop - left
            ]
    return torch.from_numpy(maps)


def with_background(maps: Tensor) -> Tensor:
    """Labels [K + 1, h, w] of joint maps [K, h, w]: channel 0 is 1 where no joint is."""
    return torch.cat([(maps.sum(dim=0, keepdim=True) == 0).to(maps), maps])


def read_joints(labels: Tensor) -> Tensor:
    """Points float32 [K, 2] of soft labels [K + 1, h, w]: the weighted mean of the three largest cells.

    A joint with all cells 0 is lost and gets (-1, -1).
    """
    width = labels.shape[-1]
    values, cells = labels[1:].flatten(1).float().topk(TOP, dim=1)  # [K, 3]
    mass = values.sum(dim=1, keepdim=True)
    weights = values / torch.where(mass > 0, mass, 1)
    points = torch.stack([(weights * (cells % width)).sum(dim=1), (weights * (cells // width)).sum(dim=1)], dim=1)
    return torch.where(mass > 0, points, -1)
