"""A frozen reference network for the student's patch tokens: the run's first weights, or a checkpoint."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dino_dense.backbone.load import load_backbone
from dino_dense.pretrain.objective import Views

START = "start"
"""Source name for the run's first weights."""


class Anchor(nn.Module):
    """Returns patch tokens [2*b, N, D] of the global crops, without gradient, on the student's grid.

    Args:
        source: `START`, or a checkpoint for `load_backbone`; its D may differ from the student's.
        teacher: the run's teacher at its initial weights.

    Raises:
        ValueError: the network has no patch tokens. Also the errors of `load_backbone`.
    """

    def __init__(self, source: str, teacher: nn.Module) -> None:
        super().__init__()
        module: Any = teacher.backbone if source == START else load_backbone(source).module
        self.backbone = copy.deepcopy(module).requires_grad_(False).eval()
        if not hasattr(self.backbone, "num_prefix_tokens"):
            raise ValueError(f"{source}: its network has no patch tokens to compare with; name a vision transformer.")

    def train(self, mode: bool = True) -> "Anchor":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, views: Views) -> Tensor:
        """Patch tokens of `views.crops`."""
        assert views.crops is not None
        tokens: Tensor = self.backbone.forward_features(views.crops)[:, self.backbone.num_prefix_tokens :]
        expected = views.tokens().shape[1]
        if tokens.shape[1] != expected:
            raise ValueError(
                f"the frozen network has {tokens.shape[1]} patches of a global crop, the student {expected}: name a "
                "checkpoint with the same patch size"
            )
        return tokens
