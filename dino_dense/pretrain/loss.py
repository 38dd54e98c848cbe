"""The DINO loss: cross-entropy between a centered, sharpened teacher and the student, over pairs of views."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dino_dense import distributed
from dino_dense.pretrain.schedules import teacher_temperature

# Shapes: T teacher views (the global crops), V student views (global crops first), B images, K prototypes.


class LossOutput(NamedTuple):
    """What one forward of the loss gives. All values are means over the images of this process."""

    loss: Tensor
    """Scalar, in nats, with gradient to the student: mean cross-entropy over all pairs of different views."""
    teacher_entropy: Tensor
    """Scalar h(Pt) in [0, ln K] nats, without gradient."""
    kl: Tensor
    """Scalar KL(Pt || Ps) >= 0, without gradient: H(Pt, Ps) = h(Pt) + KL (paper, Sec. 5.3)."""
    teacher_mean: Tensor
    """[1, K]: mean of the teacher's raw scores, for `update_center`."""


class DINOLoss(nn.Module):
    """Paper, Alg. 1 and Sec. 3.1; reference file dino_loss.npz.

    The center is not moved by the forward pass: call `update_center` once per optimizer step, after the loss,
    with the mean of `teacher_mean` over the micro-batches.

    Args:
        out_dim: K.
        n_views: V, 2 global plus the local crops.
        warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs: the teacher's temperature by epoch.
        student_temp: the student's temperature.
        center_momentum: weight of the old center in its moving average, in [0, 1].
    """

    center: Tensor
    n_teacher_views = 2

    def __init__(
        self,
        out_dim: int,
        n_views: int,
        warmup_teacher_temp: float,
        teacher_temp: float,
        warmup_teacher_temp_epochs: int,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
    ) -> None:
        super().__init__()
        if n_views < self.n_teacher_views:
            raise ValueError(f"the loss needs the {self.n_teacher_views} global views, got {n_views} views")
        self.n_views = n_views
        self.temperature_args = (warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs)
        self.student_temp = student_temp
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(1, out_dim))

    def teacher_temp(self, epoch: int) -> float:
        """The teacher's temperature in `epoch` (0-based)."""
        return teacher_temperature(epoch, *self.temperature_args)

    def forward(self, student: Tensor, teacher: Tensor, epoch: int) -> LossOutput:
        """student [V*B, K] and teacher [T*B, K] raw scores, view-major; computed in float32 whatever comes
        in.

        With s = student / temperature, the cross-entropy of one pair is
        -Σ q log softmax(s) = logsumexp(s) - <q, s>, as Σ q = 1. Summed over the teacher views that a student
        view is compared with, that is one logsumexp and one inner product with the summed targets, instead of
        a [B, K] product for each of the pairs.
        """
        T, V = self.n_teacher_views, self.n_views
        with torch.autocast(student.device.type, enabled=False):
            s = student.float().unflatten(0, (V, -1)) / self.student_temp  # [V, B, K]
            raw = teacher.detach().float().unflatten(0, (T, -1))  # [T, B, K]
            log_q = torch.log_softmax((raw - self.center) / self.teacher_temp(epoch), dim=-1)
            q = log_q.exp()
            q_all = q.sum(dim=0)  # [B, K], the targets of a local view
            # A global view is not compared with itself: its own target is left out.
            inner = ((q_all - q) * s[:T]).sum() + (q_all * s[T:]).sum()
            lse = torch.logsumexp(s, dim=-1)  # [V, B]
            pairs = T * V - T
            total = (T - 1) * lse[:T].sum() + T * lse[T:].sum() - inner
            loss = total / (pairs * lse.shape[1])
            entropy = -(q * log_q).sum(dim=-1).mean()
        return LossOutput(loss, entropy, loss.detach() - entropy, raw.flatten(0, 1).mean(dim=0, keepdim=True))

    @torch.no_grad()
    def update_center(self, teacher_mean: Tensor) -> None:
        """Move the center towards `teacher_mean` [1, K], averaged over the processes."""
        mean = distributed.all_reduce_mean(teacher_mean.detach().clone())
        self.center.lerp_(mean, 1.0 - self.center_momentum)
