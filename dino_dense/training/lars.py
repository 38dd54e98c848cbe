"""LARS (You et al. 2017, arXiv 1708.03888) with the details of DINO's utils.py."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

TRUST = 0.001  # eta of utils.py


class Lars(Optimizer):
    """SGD with momentum whose step for a tensor of two or more dimensions has a length that follows the tensor's own.

    With u = gradient + weight decay x weights, that tensor's u is multiplied by eta |weights| / |u|, where neither norm
    is 0. Vectors take their gradient as it is, without weight decay. timm's LARS differs: it adds up the two norms of
    u's parts, and leaves out the factor where there is no weight decay.
    """

    def __init__(self, params: Iterable[Any], lr: float = 0.0, momentum: float = 0.9, eta: float = TRUST) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.0, "momentum": momentum, "eta": eta})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            for weights in group["params"]:
                if weights.grad is None:
                    continue
                update = weights.grad
                if weights.ndim != 1:
                    update = update.add(weights, alpha=group["weight_decay"])
                    length, own = update.norm(), weights.norm()
                    trust = torch.where((own > 0) & (length > 0), group["eta"] * own / length, torch.ones_like(own))
                    update = update * trust
                state = self.state[weights]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weights)
                state["momentum_buffer"].mul_(group["momentum"]).add_(update)
                weights.add_(state["momentum_buffer"], alpha=-group["lr"])
