"""A network as one function of images of any size, written so that PyTorch can export it with open sizes.

Shapes: B images, h x w patch grid, N = h*w patches, P prefix tokens, C channels.
"""

import copy
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from dino_dense.backbone.backbone import Backbone
from dino_dense.backbone.dino_vit import DinoViT
from dino_dense.backbone.dinov3 import DinoV3

CUBIC = {False: -0.75, True: -0.5}
"""Coefficient of PyTorch's bicubic kernel, without and with antialias (aten/native/UpSample.h)."""


class Outputs(NamedTuple):
    """Outputs of a program: features of the last layer after the final norm."""

    patches: Tensor
    """[B, C, h, w]"""
    cls: Tensor
    """[B, C]"""
    attention: Tensor
    """[B, heads, h, w], of the class token; with the prefix tokens' values each head's sum to 1."""


class Program(nn.Module):
    """Images [B, 3, H, W] in [0, 1] -> the fields of `Outputs`; H and W are multiples of the patch size.

    Args:
        backbone: a DINO, DINOv2 or DINOv3 vision transformer; its weights are copied.

    Raises:
        ValueError: another kind of network.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        body = backbone.module
        if not isinstance(body, DinoViT | DinoV3):
            raise ValueError(
                f"{backbone.name}: only vision transformers of DINO, DINOv2 and DINOv3 become a program of open sizes; "
                "this is another network. Take --to timm."
            )
        self.body = copy.deepcopy(body).float().cpu().eval().requires_grad_(False)
        self.reader: Any = type(backbone.reader)(self.body)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(backbone.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(backbone.std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # torch.export saves no named tuple
        body: Any = self.body
        grid = body.patch_embed.norm(body.patch_embed.proj((images - self.mean) / self.std).permute(0, 2, 3, 1))
        tokens, options = self._embed(grid)
        for block in body.blocks[:-1]:
            tokens = block(tokens, **options)
        attention = self._attention(body.blocks[-1].norm1(tokens), options, grid)
        tokens = self.reader.final_norm(body.blocks[-1](tokens, **options))
        patches = rearrange(tokens[:, self.reader.prefix :], "b (h w) c -> b c h w", h=grid.shape[1], w=grid.shape[2])
        return patches, tokens[:, 0], attention

    def _embed(self, grid: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Patch embeddings [B, h, w, C] -> tokens [B, P+N, C], and what every block takes beside them."""
        body: Any = self.body
        batch, patches = grid.shape[0], grid.flatten(1, 2)
        tokens = [body.cls_token.expand(batch, -1, -1)]
        if body.reg_token is not None:
            tokens.append(body.reg_token.expand(batch, -1, -1))
        if isinstance(body, DinoV3):
            return body.norm_pre(torch.cat([*tokens, patches], dim=1)), {"rope": rotary_embedding(body, grid)}
        tokens[0] = tokens[0] + body.pos_embed[:, :1]
        return body.norm_pre(torch.cat([*tokens, patches + positions(body, grid)], dim=1)), {}

    def _attention(self, x: Tensor, options: dict[str, Tensor], grid: Tensor) -> Tensor:
        layer: Any = self.body.blocks[-1].attn  # type: ignore[index, union-attr]
        projections = self.reader.project(layer, x)
        queries, keys = self.reader.compared(layer, projections.queries, projections.keys, options)
        row = ((queries[:, :, :1] * layer.scale) @ keys.transpose(-2, -1)).softmax(dim=-1)
        return rearrange(
            row[:, :, 0, self.reader.prefix :], "b heads (h w) -> b heads h w", h=grid.shape[1], w=grid.shape[2]
        )


def positions(body: DinoViT, grid: Tensor) -> Tensor:
    """`DinoViT.positions` of the patches, [1, N, C], without a question about the sizes: one matrix along each side."""
    side, shape = body.shape.grid_size, body.shape
    table = body.pos_embed[0, 1:].unflatten(0, (side, side))  # [side, side, C]
    native = (_length(grid, 1) == side) & (_length(grid, 2) == side)
    rows, columns = (
        torch.where(native, _same(grid, axis, side), resampling(grid, axis, side, shape.position_offset, antialias))
        for axis, antialias in ((1, shape.position_antialias), (2, shape.position_antialias))
    )
    resampled = torch.einsum("ya,xb,abc->yxc", rows, columns, table)
    return resampled.flatten(0, 1)[None]


def resampling(grid: Tensor, axis: int, side: int, offset: float, antialias: bool) -> Tensor:
    """The matrix [n, side] of bicubic resampling of `side` values to n, the length of an axis of `grid`.

    As torch.nn.functional.interpolate computes it (align_corners=False): sample i lies at (i + 0.5) * side / (n +
    offset) - 0.5, values beyond the ends repeat the last (without antialias), or have no weight (with).
    """
    ratio = side / (_length(grid, axis) + offset)
    centers = (_indices(grid, axis) + 0.5) * ratio  # in units of the table's cells
    taps = torch.arange(side, device=grid.device, dtype=torch.float32)
    if antialias:
        stretch = ratio.clamp(min=1.0)
        weights = _cubic((taps + 0.5 - centers[:, None]) / stretch, CUBIC[True])
        return weights / weights.sum(1, keepdim=True)
    base = (centers - 0.5).floor()
    matrix = torch.zeros_like(centers[:, None] * taps)
    for step in (-1, 0, 1, 2):
        tap = base + step
        weight = _cubic(centers - 0.5 - tap, CUBIC[False])
        matrix = matrix + weight[:, None] * (tap.clamp(0, side - 1)[:, None] == taps)
    return matrix


def _cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel."""
    d = distance.abs()
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, torch.zeros_like(d)))


def _indices(grid: Tensor, axis: int) -> Tensor:
    """0, 1, ... along an axis, as numbers of the program (its length is open)."""
    return torch.arange(grid.shape[axis], device=grid.device).float()


def _length(grid: Tensor, axis: int) -> Tensor:
    return torch.ones_like(_indices(grid, axis)).sum()


def _same(grid: Tensor, axis: int, side: int) -> Tensor:
    """Row i of the identity for each i of an axis, [n, side]."""
    return (_indices(grid, axis)[:, None] == torch.arange(side, device=grid.device).float()).float()


def rotary_embedding(body: DinoV3, grid: Tensor) -> Tensor:
    """Sine and cosine of the angles of each patch, [N, 2c] (dinov3/layers/rope_position_encoding.py, "separate")."""
    rope: Any = body.rope
    y, x = ((2 * (_indices(grid, axis) + 0.5) / _length(grid, axis) - 1) for axis in (1, 2))
    shape = (grid.shape[1], grid.shape[2])
    coordinates = torch.stack([y[:, None].expand(shape), x[None].expand(shape)], dim=-1).flatten(0, 1)
    return torch.cat(rope._get_pos_embed_from_coords(coordinates), dim=-1)
