"""A frozen reference network for the student's patch tokens: the run's first weights, or a checkpoint."""

import copy
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_dense.backbone.dino_vit import IMAGENET_MEAN, IMAGENET_STD
from dino_dense.backbone.load import load_backbone
from dino_dense.pretrain.objective import Views

START = "start"
"""Source name for the run's first weights."""


class Anchor(nn.Module):
    """Returns patch tokens [2*b, N, D] of the global crops, without gradient, on the student's grid.

    A network of another patch size sees the crops resized (bicubic, antialiased), so that its grid is the student's;
    one with pixel statistics of its own sees them normalized by these.

    Args:
        source: `START`, or a checkpoint for `load_backbone`; its D may differ from the student's.
        teacher: the run's teacher at its initial weights.

    Raises:
        ValueError: the network has no patch tokens. Also the errors of `load_backbone`.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, source: str, teacher: nn.Module) -> None:
        super().__init__()
        module: Any = teacher.backbone
        self.patch_size: int | None = None  # the student's
        scale, shift = torch.ones(3), torch.zeros(3)
        if source != START:
            opened = load_backbone(source)
            module, self.patch_size = opened.module, opened.patch_size
            std = torch.tensor(opened.std)
            scale = torch.tensor(IMAGENET_STD) / std
            shift = (torch.tensor(IMAGENET_MEAN) - torch.tensor(opened.mean)) / std
        self.backbone = copy.deepcopy(module).requires_grad_(False).eval()
        if not hasattr(self.backbone, "num_prefix_tokens"):
            raise ValueError(f"{source}: its network has no patch tokens to compare with; name a vision transformer.")
        self.same_pixels = bool((scale == 1).all() and (shift == 0).all())
        self.register_buffer("scale", scale.view(3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "Anchor":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, views: Views) -> Tensor:
        """Patch tokens of `views.crops`."""
        assert views.crops is not None
        crops, expected = views.crops, views.tokens().shape[1]
        if not self.same_pixels:
            crops = crops * self.scale + self.shift
        if self.patch_size is not None:
            crops = self._on_grid(crops, math.isqrt(expected))
        tokens: Tensor = self.backbone.forward_features(crops)[:, self.backbone.num_prefix_tokens :]
        if tokens.shape[1] != expected:
            raise ValueError(
                f"the frozen network has {tokens.shape[1]} patches of a global crop, the student {expected}: name a "
                "vision transformer that takes crops of any size"
            )
        return tokens

    def _on_grid(self, crops: Tensor, grid: int) -> Tensor:
        """Square crops at the size where this network has `grid` rows of patches."""
        side = grid * self.patch_size  # type: ignore[operator]
        if crops.shape[-1] == side:
            return crops
        return F.interpolate(crops, size=(side, side), mode="bicubic", align_corners=False, antialias=True)
