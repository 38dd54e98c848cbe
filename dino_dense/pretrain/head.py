"""The DINO projection head: an MLP, an L2-normalized bottleneck and a weight-normalized last layer."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INIT_STD = 0.02
"""Standard deviation of the truncated normal that initializes the MLP (published vision_transformer.py)."""


class WeightNormLinear(nn.Module):
    """y = x Wᵀ with W = g · v / ‖v‖, one norm per output row; no bias.

    The parameters keep the published names: `weight_v` [out, in] and `weight_g` [out, 1].
    """

    def __init__(self, in_dim: int, out_dim: int, *, train_norm: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_dim, 1), requires_grad=train_norm)
        self.weight_v = nn.Parameter(torch.empty(out_dim, in_dim))
        # As published: nn.Linear's own initialization. It sets the length of v, and so how fast gradient steps rotate
        # the rows.
        nn.init.kaiming_uniform_(self.weight_v, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """[B, in] -> [B, out]."""
        return F.linear(x, self.weight_v * (self.weight_g / self.weight_v.norm(dim=1, keepdim=True)))


class DINOHead(nn.Module):
    """Maps backbone features to prototype scores (paper, Sec. 3.1 and App. C; reference file dino_head.npz).

    Args:
        in_dim: C, the backbone's feature size.
        out_dim: K, the number of prototypes.
        hidden_dim: width of the hidden layers.
        bottleneck_dim: size of the L2-normalized bottleneck.
        n_layers: linear layers in the MLP, at least 1.
        norm_last_layer: keep the rows of the last layer at norm 1 (g frozen).
        use_bn: a BatchNorm after every hidden linear layer.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        n_layers: int = 3,
        norm_last_layer: bool = True,
        use_bn: bool = False,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = [in_dim, *[hidden_dim] * (n_layers - 1)]
        for width, next_width in pairwise(widths):
            layers.append(nn.Linear(width, next_width))
            if use_bn:
                layers.append(nn.BatchNorm1d(next_width))
            layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers, nn.Linear(widths[-1], bottleneck_dim))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=INIT_STD)
                nn.init.zeros_(module.bias)
        self.last_layer = WeightNormLinear(bottleneck_dim, out_dim, train_norm=not norm_last_layer)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, C] -> scores [B, K], before any temperature."""
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))
