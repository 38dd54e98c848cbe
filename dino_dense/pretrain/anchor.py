"""A frozen network whose patch tokens the student's are compared with: the start of a run, or a file."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from dino_dense.backbone.load import load_backbone
from dino_dense.pretrain.objective import Views

START = "start"
"""Name of the run's own first weights."""


class Anchor(nn.Module):
    """Gives the patch tokens [2*b, N, D] of the global crops, without gradient; the grid is the student's.

    Args:
        source: start, or a checkpoint that `load_backbone` opens: its D may differ from the student's.
        teacher: the run's teacher, with the seed's first weights.

    Raises:
        ValueError: a network without patch tokens. What `load_backbone` raises.
    """

    def __init__(self, source: str, teacher: nn.Module) -> None:
        super().__init__()
        module: Any = teacher.backbone if source == START else load_backbone(source).module
        self.backbone = copy.deepcopy(module).requires_grad_(False).eval()
        if not hasattr(self.backbone, "num_prefix_tokens"):
            raise ValueError(f"{source}: its network has no patch tokens to compare with; name a vision transformer.")

    def train(self, mode: bool = True) -> "Anchor":
        """It stays as it is in training, too."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, views: Views) -> Tensor:
        """The tokens of `views.crops`."""
        assert views.crops is not None
        tokens: Tensor = self.backbone.forward_features(views.crops)[:, self.backbone.num_prefix_tokens :]
        expected = views.tokens().shape[1]
        if tokens.shape[1] != expected:
            raise ValueError(
                f"the frozen network has {tokens.shape[1]} patches of a global crop, the student {expected}: name a "
                "checkpoint with the same patch size"
            )
        return tokens
