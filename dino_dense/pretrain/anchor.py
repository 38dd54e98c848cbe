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
    one with pixel statistics of its own sees them normalized by these. Of larger crops, it gives the grid that a
    network of the student's patch size would have.

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
    def forward(self, views: Views, larger: Tensor | None = None) -> Tensor:
        """Patch tokens of the student's crops.

        Args:
            views: the student's, with square crops.
            larger: [2*b, 3, H, H], the same crops at a larger size, to use instead; H is a multiple of the student's
                patch size p, and N = (H / p)^2.
        """
        assert views.crops is not None
        crops = views.crops if larger is None else larger
        grid = math.isqrt(views.tokens().shape[1]) * crops.shape[-1] // views.crops.shape[-1]
        if not self.same_pixels:
            crops = crops * self.scale + self.shift
        if self.patch_size is not None:
            crops = self._on_grid(crops, grid)
        tokens: Tensor = self.backbone.forward_features(crops)[:, self.backbone.num_prefix_tokens :]
        if tokens.shape[1] != grid**2:
            raise ValueError(
                f"the frozen network has {tokens.shape[1]} patches of a global crop, the student's grid {grid**2}: "
                "name a vision transformer that takes crops of any size"
            )
        return tokens

    def can_become(self, network: nn.Module) -> bool:
        """Whether another network's weights can replace this network's: the same shapes and pixel statistics."""
        ours, theirs = (
            {name: value.shape for name, value in net.state_dict().items()} for net in (self.backbone, network)
        )
        return self.same_pixels and ours == theirs

    def _on_grid(self, crops: Tensor, grid: int) -> Tensor:
        """Square crops at the size where this network has `grid` rows of patches."""
        side = grid * self.patch_size  # type: ignore[operator]
        if crops.shape[-1] == side:
            return crops
        return F.interpolate(crops, size=(side, side), mode="bicubic", align_corners=False, antialias=True)
