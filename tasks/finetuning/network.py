"""A backbone's copy with a classifier on top, and stochastic depth put into it.

Shapes: B images a step over all processes, b in one micro-batch, K classes.
"""

import re
from typing import Any

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from dino_dense.pretrain.crops import derive_seed
from dino_dense.pretrain.network import KeyedDropPath
from tasks.finetuning.draws import DROP_PATH, HEAD, seeded

HEAD_STD = 0.02
"""Deviation of a new linear layer's weights in DeiT and timm, before `head_init_scale`."""


class Classifier(nn.Module):
    """A body and a linear layer on its pooled feature.

    Args:
        body: a timm network without classifier; taken over, not copied.
        classes: K.
        init_scale: factor on the linear layer's first weights.
        seed: of these weights.
    """

    def __init__(self, body: nn.Module, classes: int, init_scale: float, seed: int) -> None:
        super().__init__()
        self.body: Any = body
        width = getattr(body, "head_hidden_size", None) or body.num_features
        with seeded(derive_seed(HEAD, seed)):
            self.head = nn.Linear(int(width), classes)  # type: ignore[arg-type]
            nn.init.trunc_normal_(self.head.weight, std=HEAD_STD)
        with torch.no_grad():
            self.head.weight.mul_(init_scale)
            self.head.bias.zero_()

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [b, 3, H, W] -> scores [b, K]."""
        features = self.body.forward_features(images)
        return self.head(self.body.forward_head(features, pre_logits=True))


class TrainingDropPath(KeyedDropPath):
    """Stochastic depth with masks from outside, and none outside training."""

    def forward(self, x: Tensor) -> Tensor:
        """[b, ...] -> the same, with some rows 0 in training."""
        return super().forward(x) if self.training else x


class DropPathDraws:
    """Puts stochastic depth into a body and feeds its masks, a function of (seed, step, module, place in the batch).

    Raises:
        ValueError: the body has no residual blocks that can be dropped.
    """

    def __init__(self, body: nn.Module, rate: float, batch: int, seed: int) -> None:
        self.modules = insert_drop_path(body, rate) if rate else []
        self.batch, self.seed = batch, seed

    def arm(self, step: int, places: Tensor, device: torch.device) -> None:
        """Prepare the masks of one micro-batch, whose images have these places [b] in the batch."""
        generator = torch.Generator().manual_seed(derive_seed(DROP_PATH, self.seed, step))
        uniform = torch.rand(len(self.modules), self.batch, generator=generator)[:, places].to(device)
        for module, row in zip(self.modules, uniform, strict=True):
            module.uniform = row


def insert_drop_path(body: nn.Module, rate: float) -> list[TrainingDropPath]:
    """Give timm's residual blocks the drop paths they were built without: 0 in the first to `rate` in the last.

    timm's blocks call what is in their attributes drop_path, drop_path1, ...: nothing, or a module.

    Raises:
        ValueError: there are no such blocks.
    """
    blocks = [(block, slots) for block in body.modules() if (slots := _slots(block))]
    if not blocks:
        raise ValueError(f"drop_path is {rate}, but {type(body).__name__} has no blocks that timm can drop: set 0.")
    inserted = []
    for (block, slots), share in zip(blocks, torch.linspace(0, rate, len(blocks)).tolist(), strict=True):
        for slot in slots if share else []:
            inserted.append(TrainingDropPath(share))
            setattr(block, slot, inserted[-1])
    return inserted


def _slots(block: nn.Module) -> list[str]:
    """Attributes of a block that hold, or may hold, a drop path."""
    attributes = {**vars(block), **dict(block.named_children())}
    return [
        name
        for name, value in attributes.items()
        if re.fullmatch(r"drop_path\d?", name) and (value is None or isinstance(value, nn.Identity | DropPath))
    ]
