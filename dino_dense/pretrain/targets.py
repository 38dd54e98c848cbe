"""Targets from the teacher's scores: minus a moving center, or by Sinkhorn-Knopp over the whole batch.

Shapes: M samples on this process, K prototypes.
"""

import torch
from torch import Tensor, nn

from dino_dense import distributed

SMALLEST = torch.finfo(torch.float32).tiny
"""Smallest target, so that its logarithm is finite."""


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Scores [M, K] -> targets [M, K]: rows sum to 1, and all prototypes get equal weight over all processes' samples.

    Sinkhorn-Knopp as in SwAV (arXiv 2006.09882, App. A), computed in float32. The largest score is not subtracted
    before exp, as in DINOv2: the scores are cosines times the length of the last layer's rows.
    """
    q = (scores.float() / temperature).exp()
    count = distributed.all_reduce_sum(torch.full((), float(len(q)), device=q.device))
    q /= distributed.all_reduce_sum(q.sum())
    for _ in range(iterations):
        q /= distributed.all_reduce_sum(q.sum(dim=0)) * q.shape[1]
        q /= q.sum(dim=1, keepdim=True) * count
    return q * count


class Center(nn.Module):
    """A moving mean of the teacher's scores, subtracted before the softmax.

    Args:
        out_dim: K.
        momentum: weight of the old center, in [0, 1].
    """

    center: Tensor

    def __init__(self, out_dim: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("center", torch.zeros(1, out_dim))

    @torch.no_grad()
    def targets(self, scores: Tensor, temperature: float) -> Tensor:
        """[M, K] -> [M, K], rows sum to 1; float32."""
        return torch.softmax((scores.float() - self.center) / temperature, dim=-1)

    @torch.no_grad()
    def move(self, total: Tensor, count: Tensor) -> None:
        """Update with the mean over all processes. Takes this process's sum of scores [K] and their count; 0: no-op."""
        total, count = (distributed.all_reduce_mean(part.detach().clone()) for part in (total, count))
        mean = torch.where(count > 0, total / count, self.center[0])
        self.center.lerp_(mean[None], 1.0 - self.momentum)
