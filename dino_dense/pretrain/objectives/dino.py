"""DINO: cross-entropy between a centered, sharpened teacher and the student, over pairs of views (arXiv 2104.14294)."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dino_dense import distributed
from dino_dense.pretrain.collapse import CollapseWatch
from dino_dense.pretrain.head import DINOHead
from dino_dense.pretrain.objective import Objective, Step, Terms, Views, Watch
from dino_dense.pretrain.options import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Options, Ranges
from dino_dense.pretrain.schedules import teacher_temperature
from dino_dense.pretrain.targets import SMALLEST, sinkhorn

# Shapes: T teacher views (the global crops), V student views (global crops first), B images, K prototypes.


@dataclass(frozen=True)
class DinoOptions(Options):
    """Objective dino: head and loss"""

    out_dim: int = 65536
    """K, the head's output size (prototypes). Use a smaller K for smaller data. (main_dino; paper App. C)"""
    head_layers: int = 3
    """Linear layers in the head's MLP. (vision_transformer.py; paper App. C)"""
    head_hidden_dim: int = 2048
    """Width of the head's hidden layers. (vision_transformer.py)"""
    head_bottleneck_dim: int = 256
    """Size of the head's L2-normalized bottleneck. (vision_transformer.py)"""
    norm_last_layer: bool = True
    """Keep the last layer's rows at norm 1. False is better with ViT-S, true is safer with ViT-B. (main_dino)"""
    use_bn_in_head: bool = False
    """BatchNorm in the head. (main_dino)"""
    freeze_last_layer: int = 1
    """Epochs during which the head's last layer is frozen. (main_dino)"""
    student_temp: float = 0.1
    """Temperature of the student's softmax. (main_dino; paper Sec. 3.1)"""
    warmup_teacher_temp: float = 0.04
    """Temperature of the teacher's softmax at the start; lower it if the loss does not fall. (main_dino)"""
    teacher_temp: float = 0.04
    """Temperature of the teacher's softmax after its warm-up; above 0.07 is unstable. (main_dino)"""
    warmup_teacher_temp_epochs: int = 0
    """Epochs of linear warm-up of the teacher's temperature. (main_dino)"""
    center_momentum: float = 0.9
    """Weight of the old center in its moving average; 0.999 collapses. (main_dino; paper App. D)"""
    dino_targets: Literal["center", "sinkhorn"] = "center"
    """Targets from the teacher's scores: center (main_dino); or sinkhorn, over the micro-batches of all processes
    (dinov2's large models, dinov3). A run with sinkhorn resumes only with the same --accumulate."""

    RANGES: ClassVar[Ranges] = {
        **dict.fromkeys(("out_dim", "head_layers", "head_hidden_dim", "head_bottleneck_dim"), COUNT),
        **dict.fromkeys(("student_temp", "warmup_teacher_temp", "teacher_temp"), POSITIVE),
        **dict.fromkeys(("warmup_teacher_temp_epochs", "freeze_last_layer"), NOT_NEGATIVE),
        "center_momentum": SHARE,
    }


class LossOutput(NamedTuple):
    """The result of the loss's forward pass. All values are means over the images of this process."""

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

    The forward pass does not update the center: call `update_center` once per optimizer step, after the loss, with the
    mean of `teacher_mean` over the micro-batches.

    Args:
        out_dim: K.
        n_views: V, the 2 global crops plus the local crops.
        warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs: the teacher's temperature by epoch.
        student_temp: the student's temperature.
        center_momentum: weight of the old center in its moving average, in [0, 1].
        targets: center, or sinkhorn (`targets.sinkhorn`; the center is then unused).
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
        targets: Literal["center", "sinkhorn"] = "center",
    ) -> None:
        super().__init__()
        if n_views < self.n_teacher_views:
            raise ValueError(f"the loss needs the {self.n_teacher_views} global views, got {n_views} views")
        self.n_views = n_views
        self.temperature_args = (warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs)
        self.student_temp = student_temp
        self.center_momentum, self.targets = center_momentum, targets
        self.register_buffer("center", torch.zeros(1, out_dim))

    def teacher_temp(self, epoch: int) -> float:
        """The teacher's temperature in `epoch` (0-based)."""
        return teacher_temperature(epoch, *self.temperature_args)

    def forward(self, student: Tensor, teacher: Tensor, epoch: int) -> LossOutput:
        """The loss of raw scores, student [V*B, K] and teacher [T*B, K], view-major; computed in float32.

        The cross-entropy of a pair is -Σ q log softmax(student / temperature). A student view meets the sum of its
        teacher views' targets, instead of a [B, K] product for each pair. One view at a time: the scores of one often
        fit in a CPU's cache.
        """
        T, V = self.n_teacher_views, self.n_views
        with torch.autocast(student.device.type, enabled=False):
            raw = teacher.detach().float()
            q, log_q = (part.unflatten(0, (T, -1)) for part in self.teacher_targets(raw, epoch))  # [T, B, K]
            q_all = q.sum(dim=0)  # [B, K], the targets of a local view
            total = student.new_zeros((), dtype=torch.float32)
            for view, scores in enumerate(student.float().chunk(V)):
                # A global view is not compared with itself: its own target is excluded.
                targets = q_all - q[view] if view < T else q_all
                total = total - (targets * torch.log_softmax(scores / self.student_temp, dim=-1)).sum()
            loss = total / ((T * V - T) * q.shape[1])
            entropy = -(q * log_q).sum(dim=-1).mean()
        return LossOutput(loss, entropy, loss.detach() - entropy, raw.mean(dim=0, keepdim=True))

    @torch.no_grad()
    def teacher_targets(self, teacher: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """The teacher's raw scores [T*B, K] of all images of the micro-batch -> the targets, and their logarithms."""
        temperature = self.teacher_temp(epoch)
        if self.targets == "sinkhorn":
            targets = sinkhorn(teacher, temperature).clamp_min(SMALLEST)
            return targets, targets.log()
        scores = (teacher - self.center) / temperature
        # Not exp(log_softmax): on a CPU it is slow for the many values that are nearly 0.
        return torch.softmax(scores, dim=-1), torch.log_softmax(scores, dim=-1)

    @torch.no_grad()
    def update_center(self, teacher_mean: Tensor) -> None:
        """Update the center with `teacher_mean` [1, K], averaged over the processes."""
        mean = distributed.all_reduce_mean(teacher_mean.detach().clone())
        self.center.lerp_(mean, 1.0 - self.center_momentum)


class Dino(Objective):
    """Cross-entropy between the student's class tokens of all views and the teacher's of the two global views."""

    Options: ClassVar[type | None] = DinoOptions
    columns: ClassVar[tuple[str, ...]] = ("teacher_temp", "teacher_entropy", "kl")

    student_head: DINOHead
    teacher_head: DINOHead

    def __init__(self, options: Any, width: int) -> None:
        super().__init__(options, width)
        self.student_head = build_head(options, width, options.out_dim)
        self.teacher_head = copy.deepcopy(self.student_head).requires_grad_(False)
        self.loss = DINOLoss(
            options.out_dim,
            options.n_views,
            options.warmup_teacher_temp,
            options.teacher_temp,
            options.warmup_teacher_temp_epochs,
            options.student_temp,
            options.center_momentum,
            options.dino_targets,
        )
        self.couples = "all" if options.dino_targets == "sinkhorn" else None

    def forward(self, student: Views, teacher: Views, step: Step) -> Terms:
        """The mean cross-entropy over all pairs of different views, nats."""
        with torch.no_grad():
            targets = self.teacher_head(teacher.cls)
        output = self.loss(self.student_head(student.cls), targets, step.epoch)
        logged = {"teacher_entropy": output.teacher_entropy, "kl": output.kl}
        return Terms(output.loss, logged, {"teacher_mean": output.teacher_mean})

    def hold_gradients(self, step: Step) -> None:
        """Freeze the last layer in the first epochs: an optimizer skips parameters without gradient."""
        if step.epoch < self.options.freeze_last_layer:
            for parameter in self.student_head.last_layer.parameters():
                parameter.grad = None

    def after_step(self, statistics: Mapping[str, Tensor]) -> None:
        """Update the center."""
        self.loss.update_center(statistics["teacher_mean"])

    def scheduled(self, step: Step) -> dict[str, float]:
        """The teacher's temperature."""
        return {"teacher_temp": self.loss.teacher_temp(step.epoch)}

    def watch(self, quiet_steps: int) -> Watch:
        """A check for collapse."""
        return CollapseWatch(self.options.out_dim, quiet_steps)

    def levels(self) -> dict[str, float]:
        """ln K: the loss of a uniform output."""
        k = self.options.out_dim
        return {f"ln K = {math.log(k):.3f}": math.log(k)}


def build_head(options: DinoOptions, width: int, out_dim: int) -> DINOHead:
    """A head with these options, from `width` channels to `out_dim` prototypes."""
    return DINOHead(
        in_dim=width,
        out_dim=out_dim,
        hidden_dim=options.head_hidden_dim,
        bottleneck_dim=options.head_bottleneck_dim,
        n_layers=options.head_layers,
        norm_last_layer=options.norm_last_layer,
        use_bn=options.use_bn_in_head,
    )


OBJECTIVE = Dino
