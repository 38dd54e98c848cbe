"""KoLeo: class tokens of a view are pushed away from their nearest neighbors (arXiv 1806.03198; DINOv2).

Shapes: V views, b images, n rows on this process, C channels.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_dense import distributed
from dino_dense.pretrain.objective import Objective, Step, Terms, Views
from dino_dense.pretrain.options import COUNT, NOT_NEGATIVE, Options, Ranges

EPS = 1e-8
"""Smallest norm; also added to each component of a difference and inside the logarithm (DINOv2, loss/koleo_loss.py)."""


@dataclass(frozen=True)
class KoleoOptions(Options):
    """Objective koleo: evenly spread class tokens"""

    koleo_weight: float = 0.1
    """Factor on the loss of each global view. (dinov2)"""
    koleo_neighbors: Literal["all", "process"] = "all"
    """Images among which neighbors are searched for: all = the micro-batches of all processes (dinov3's distributed
    form); process = the micro-batch of each process (dinov2). Therefore a run with koleo resumes only with the same
    --accumulate, and with `process` also only with as many processes."""
    koleo_topk: int = 1
    """Nearest neighbors of each image. (dinov3)"""

    RANGES: ClassVar[Ranges] = {"koleo_weight": NOT_NEGATIVE, "koleo_topk": COUNT}


def koleo_loss(x: Tensor, topk: int = 1, *, over_processes: bool = False) -> Tensor:
    """-mean log distance of each row [n, C] to its `topk` nearest other rows, all rows normalized; float32.

    Kozachenko and Leonenko's estimate of the entropy, up to constants (arXiv 1806.03198, eq. 2).

    Args:
        x: two or more rows; with `over_processes`, over all processes.
        topk: at most the number of other rows.
        over_processes: search neighbors among the rows of all processes, which then get gradients too.

    Raises:
        ValueError: too few rows.
    """
    with torch.autocast(x.device.type, enabled=False):
        rows = F.normalize(x.float(), dim=-1, eps=EPS)
        everyone = distributed.all_gather_with_gradient(rows) if over_processes else rows
        if len(everyone) <= topk:
            raise ValueError(
                f"koleo compares each image with its {topk} nearest, but there are {len(everyone)} in a micro-batch: "
                "raise --batch-size, or lower --accumulate or --koleo-topk"
            )
        with torch.no_grad():
            first = distributed.rank() * len(rows) if over_processes else 0
            similarity = rows @ everyone.T
            similarity[:, first : first + len(rows)].diagonal().fill_(-1)  # an index of the host would wait
            nearest = similarity.topk(topk, dim=1).indices
        pairs = rows.repeat_interleave(topk, dim=0), everyone[nearest.flatten()]
        return -(F.pairwise_distance(*pairs, p=2, eps=EPS) + EPS).log().mean()


class Koleo(Objective):
    """The sum of the losses of both global views, on class tokens before the head.

    With LayerScale all class tokens begin equal, up to rounding. Until they differ, neighbors and loss depend on the
    last digits, and so on the split of the batch.
    """

    Options: ClassVar[type | None] = KoleoOptions

    def __init__(self, options: Any, width: int) -> None:
        super().__init__(options, width)
        self.couples = options.koleo_neighbors

    def forward(self, student: Views, teacher: Views, step: Step) -> Terms:
        """The loss in nats; negative if neighbors are further apart than 1."""
        views = student.cls.chunk(self.options.n_views)[:2]
        over_processes = self.couples == "all"
        losses = [koleo_loss(view, self.options.koleo_topk, over_processes=over_processes) for view in views]
        return Terms(torch.stack(losses).sum(), {}, {})

    def weight(self, step: Step) -> float:
        """The option `koleo_weight`."""
        return float(self.options.koleo_weight)


OBJECTIVE = Koleo
