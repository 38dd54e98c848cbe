"""Gradients: clipping, local accumulation over micro-batches, and the error for non-finite values."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dino_dense import distributed
from dino_dense.training.sharding import is_shared, own_part

ClipMode = Literal["tensor", "global"]

CLIP_EPS = 1e-6
"""Added to the norm before the division (utils.py of DINO, and torch.nn.utils.clip_grad_norm_)."""


class DivergedError(ValueError):
    """The loss or the gradient is no longer finite."""

    exit_status = 1


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, mode: ClipMode = "tensor") -> Tensor:
    """Scale gradients down to `max_norm` (0 = no clipping). Returns the global L2 norm before clipping.

    mode "tensor" limits each tensor's norm, as DINO's published script does; "global" limits the joint norm. Does not
    wait for the device. Gradients of weights that processes share out (`sharding`) are normed over all processes.
    """
    shared = [p.grad for p in parameters if p.grad is not None]
    gradients = [own_part(gradient) for gradient in shared]
    norms = torch.stack(list(torch._foreach_norm(gradients)))
    if any(is_shared(gradient) for gradient in shared):  # then all are
        norms = distributed.all_reduce_sum(norms.square()).sqrt()
    total = torch.linalg.vector_norm(norms)
    if max_norm > 0:
        limited = norms if mode == "tensor" else total.expand_as(norms)
        factors = (max_norm / (limited + CLIP_EPS)).clamp(max=1.0)
        torch._foreach_mul_(gradients, list(factors.unbind()))
    return total


def gradients_in_step(network: nn.Module, *, is_last: bool) -> AbstractContextManager[None]:
    """A context for one micro-batch: processes exchange gradients only in the last micro-batch of a step."""
    if isinstance(network, DistributedDataParallel) and not is_last:
        return network.no_sync()
    return nullcontext()
