"""Stochastic depth (arXiv 1603.09382) with masks that are a function of the image's slot in the batch.

timm's own modules draw from the global generator: a sample's mask would depend on the split of the batch over processes
and micro-batches, and on every earlier draw.
"""

import re
from collections.abc import Sequence

import torch
from timm.layers.drop import DropPath
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn


class KeyedDropPath(nn.Module):
    """Stochastic depth with given random numbers, row by row; without effect in evaluation mode."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.keep_prob = 1.0 - drop_prob
        self.scale: Tensor | None = None
        """[N], of `scales`: the factor of each row of the next batch. [1, N]: the rows are the tokens of one packed
        batch."""
        self.rows: Tensor | None = None
        """int64 [K]: the rows with a factor other than 0, if its branch computes these alone (`skip_dropped_rows`)."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, ...], or [K, ...] with `rows`, -> [N, ...].

        In training, dropped rows are 0 and the others are divided by keep_prob.
        """
        if not self.training:
            return x
        if self.scale is None:
            raise RuntimeError("drop path has no random numbers for this batch: call `set_masks` of its keys first")
        scale = self.scale.to(x.dtype)
        if self.rows is None:
            return x * scale.view(*scale.shape, *[1] * (x.ndim - scale.ndim))
        kept = x * scale[self.rows].view(-1, *[1] * (x.ndim - 1))
        return x.new_zeros(len(scale), *x.shape[1:]).index_copy(0, self.rows, kept)

    def select(self, x: Tensor) -> Tensor:
        """[N, ...] -> [K, ...]: the rows that its branch computes."""
        return x if self.rows is None or not self.training else x.index_select(0, self.rows)


def scales(modules: Sequence[KeyedDropPath], uniform: Tensor) -> Tensor:
    """Random numbers in [0, 1) [modules, ...] -> factors: 0 from a module's keep_prob on, else 1 / keep_prob.

    One operation for all modules. A compiled block that divided by its own keep_prob would be compiled again for each
    rate.
    """
    keep = torch.tensor([module.keep_prob for module in modules], dtype=uniform.dtype)
    keep = keep.view(-1, *[1] * (uniform.ndim - 1)).to(uniform.device, non_blocking=True)
    return (uniform < keep).to(uniform.dtype) / keep


def kept_rows(scale: Tensor) -> Tensor:
    """int64 [K]: the rows of `scales` [N] that are not dropped; row 0 if all are, since a branch needs a row."""
    rows = scale.nonzero()[:, 0]
    return rows if len(rows) else torch.zeros(1, dtype=torch.int64)


def skip_dropped_rows(body: nn.Module) -> list[KeyedDropPath]:
    """Let the branches of a transformer's blocks compute only the rows that drop path keeps.

    The numbers are those of the whole batch, up to rounding: no row of a branch depends on another. DINOv2 does so with
    a fixed number of rows (layers/block.py, drop_add_residual_stochastic_depth); here the number varies, so that the
    rows do not depend on the split of the batch.

    Returns:
        The modules that need `rows` before each batch: both of each block of a plain vision transformer, where a branch
        is drop_path(f(norm(x))).
    """
    skipping = []
    blocks = [module for module in body.modules() if type(module) in (Block, EvaBlock)]
    for block in blocks:
        for number in (1, 2):
            norm, drop = (getattr(block, f"{name}{number}") for name in ("norm", "drop_path"))
            if isinstance(drop, KeyedDropPath):
                norm.register_forward_pre_hook(lambda _, args, drop=drop: (drop.select(args[0]),))
                skipping.append(drop)
    return skipping


def replace_drop_path(network: nn.Module) -> list[KeyedDropPath]:
    """Replace timm's DropPath modules by keyed modules, in the network's order."""
    replaced = []
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DropPath):
                keyed = KeyedDropPath(child.drop_prob)
                setattr(parent, name, keyed)
                replaced.append(keyed)
    return replaced


def insert_drop_path(body: nn.Module, rate: float) -> list[KeyedDropPath]:
    """Add drop paths to timm's residual blocks that have none: from rate 0 in the first to `rate` in the last.

    timm's blocks call their attributes drop_path, drop_path1, ..., which are modules or None.

    Raises:
        ValueError: the network has no such blocks.
    """
    blocks = [(block, slots) for block in body.modules() if (slots := _slots(block))]
    if not blocks:
        raise ValueError(f"drop_path is {rate}, but {type(body).__name__} has no blocks that timm can drop: set 0.")
    inserted = []
    for (block, slots), share in zip(blocks, torch.linspace(0, rate, len(blocks)).tolist(), strict=True):
        for slot in slots if share else []:
            inserted.append(KeyedDropPath(share))
            setattr(block, slot, inserted[-1])
    return inserted


def _slots(block: nn.Module) -> list[str]:
    """Names of a block's attributes for drop paths."""
    attributes = {**vars(block), **dict(block.named_children())}
    return [
        name
        for name, value in attributes.items()
        if re.fullmatch(r"drop_path\d?", name) and (value is None or isinstance(value, nn.Identity | DropPath))
    ]
