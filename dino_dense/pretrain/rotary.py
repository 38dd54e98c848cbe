"""DINOv3's random coordinates of rotary positions in training (layers/rope_position_encoding.py).

Shapes: G groups of crops, D blocks, an h x w grid of N patches, c channels of a head.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dino_dense.backbone.dinov3 import DinoV3
from dino_dense.pretrain import streams
from dino_dense.pretrain.bodies import BodyOptions
from dino_dense.training import seeds


class Coordinates(NamedTuple):
    """A change of coordinates: (y, x) -> scale * ((y, x) + shift)."""

    shift: Tensor
    """[..., 2]"""
    scale: Tensor
    """[..., 2]"""


def draw_coordinates(options: BodyOptions, shape: tuple[int, ...], *key: int) -> Coordinates:
    """Changes of coordinates [*shape, 2] from `key` only: shift, then a factor for each axis, then one for both."""
    unit = 2 * seeds.uniform((*shape, 5), streams.ROTARY, *key) - 1  # [..., 5] in [-1, 1)
    jitter = math.log(options.rope_jitter) * unit[..., 2:4]
    rescale = math.log(options.rope_rescale) * unit[..., 4:]
    return Coordinates(options.rope_shift * unit[..., :2], (jitter + rescale).exp())


def rotary_embedding(body: DinoV3, grid: tuple[int, int], change: Coordinates | None = None) -> Tensor:
    """Sines, then cosines, of the angles of each patch of a grid (h, w): [..., N, 2c], float32.

    The centers of the patches have coordinates between -1 and 1 along each axis. Leading dimensions are those of
    `change` [..., 2].
    """
    rope: Any = body.rope
    device = rope.periods.device
    axes = [(2 * torch.arange(side, device=device) + 1) / side - 1 for side in grid]
    coordinates = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 1)  # [N, 2]
    if change is not None:
        shift, scale = (part.to(device) for part in change)
        coordinates = scale[..., None, :] * (coordinates + shift[..., None, :])  # [..., N, 2]
    angles = torch.cat(rope._get_pos_embed_from_coords(coordinates.flatten(0, -2)), dim=-1)
    return angles.view(*coordinates.shape[:-1], -1)


class RotaryJitter:
    """The changes of coordinates of a student's blocks, a function of (seed, step, group, block).

    DINOv3 draws for each process; here all processes and micro-batches of a step share them, so that no split of the
    batch changes a result.
    """

    def __init__(self, options: BodyOptions, blocks: int, groups: int, seed: int) -> None:
        self.options, self.shape, self.seed = options, (groups, blocks), seed
        self.change: Coordinates | None = None
        """[G, D, 2] of the present step; None: unchanged coordinates."""

    def set_step(self, step: int, device: torch.device) -> None:
        """Draw the changes of a step."""
        if self.options.jitters:
            drawn = draw_coordinates(self.options, self.shape, self.seed, step)
            self.change = Coordinates(*(part.to(device, non_blocking=True) for part in drawn))

    def of(self, group: int) -> Coordinates | None:
        """The changes for a group of crops, [D, 2]; None: unchanged."""
        return None if self.change is None else Coordinates(*(part[group] for part in self.change))
