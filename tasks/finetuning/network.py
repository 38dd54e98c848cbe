"""A network with a classifier on top, and stochastic depth.

Shapes: B images a step over all processes, b in one micro-batch, K classes.
"""

from typing import Any

import torch
from torch import Tensor, nn

from dino_dense.training import seeds
from dino_dense.training.drop_path import insert_drop_path, scales
from dino_dense.training.seeds import derive_seed, seeded
from tasks.finetuning.streams import DROP_PATH, HEAD

HEAD_STD = 0.02
"""Deviation of a new linear layer's weights in DeiT and timm, before `head_init_scale`."""


class Classifier(nn.Module):
    """A network and a linear layer on its pooled feature.

    Args:
        body: a timm network without classifier; not copied.
        classes: K.
        init_scale: factor on the linear layer's initial weights.
        seed: seed of these weights.
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
        """Normalized images [b, 3, H, W] -> scores [b, K]."""
        features = self.body.forward_features(images)
        return self.head(self.body.forward_head(features, pre_logits=True))


class DropPathMasks:
    """Adds stochastic depth to a network and supplies its masks, a function of (seed, step, module, slot in the batch).

    Raises:
        ValueError: the network has no residual blocks that can be dropped.
    """

    def __init__(self, body: nn.Module, rate: float, batch: int, seed: int) -> None:
        self.modules = insert_drop_path(body, rate) if rate else []
        self.batch, self.seed = batch, seed

    def set_masks(self, step: int, slots: Tensor, device: torch.device) -> None:
        """Prepare the masks of a micro-batch with these slots [b]."""
        if not self.modules:
            return
        uniform = seeds.uniform((len(self.modules), self.batch), DROP_PATH, self.seed, step)[:, slots]
        for module, row in zip(self.modules, scales(self.modules, uniform).to(device, non_blocking=True), strict=True):
            module.scale = row
