"""iBOT: the student predicts the teacher's output for patches that are masked for the student (arXiv 2111.07832).

Shapes: b images, 2 global crops of each, N patches of a crop, M masked patches of the micro-batch, C channels, K
prototypes.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dino_dense.pretrain.masking import BatchMasks
from dino_dense.pretrain.objective import Objective, Step, Terms, Views
from dino_dense.pretrain.objectives.dino import build_head
from dino_dense.pretrain.options import COUNT, NOT_NEGATIVE, SHARE, Options, Ranges
from dino_dense.pretrain.schedules import teacher_temperature
from dino_dense.pretrain.targets import SMALLEST, Center, sinkhorn


@dataclass(frozen=True)
class IbotOptions(Options):
    """Objective ibot: masked patches (temperatures, frozen epochs and head widths are dino's)"""

    ibot_weight: float = 1.0
    """Factor on the loss. (main_ibot, dinov2)"""
    ibot_head: Literal["own", "shared"] = "own"
    """own: a separate head (better at scale, dinov2); shared: dino's head (main_ibot, dinov2's default)."""
    ibot_out_dim: int = 8192
    """K of an own head. (main_ibot; dinov2 65,536)"""
    ibot_targets: Literal["center", "sinkhorn"] = "center"
    """Targets from the teacher's scores of masked patches, as dino_targets: center (main_ibot, dinov2), or sinkhorn
    (dinov2's large models, dinov3). A run with sinkhorn resumes only with the same --accumulate."""
    ibot_center_momentum: float = 0.9
    """Weight of the old center. (main_ibot, dinov2)"""
    ibot_center_over: Literal["masked", "all"] = "masked"
    """Patches to average for the center: masked (dinov2), or all (main_ibot)."""
    ibot_visible_weight: float = 0.0
    """Factor on the same loss over visible patches, averaged in each crop (iBOT++ of TIPSv2: 1)."""
    ibot_masks: Literal["dinov2", "dinov3"] = "dinov2"
    """Number of masked patches: dinov2 = drawn uniformly within each crop's stratum, blocks only; dinov3 = the upper
    end of the stratum, blocks filled up with random patches."""
    ibot_mask_share: float = 0.5
    """Share of the global crops that are masked. (dinov2; main_ibot: 0.5 of the images, on average)"""
    ibot_mask_ratios: tuple[float, float] = (0.1, 0.5)
    """Range of the share of masked patches in a masked crop. (dinov2, main_ibot)"""

    RANGES: ClassVar[Ranges] = {
        **dict.fromkeys(("ibot_weight", "ibot_visible_weight"), NOT_NEGATIVE),
        "ibot_out_dim": COUNT,
        **dict.fromkeys(("ibot_center_momentum", "ibot_mask_share", "ibot_mask_ratios"), SHARE),
    }
    RISING: ClassVar[tuple[str, ...]] = ("ibot_mask_ratios",)


def patch_weights(masks: Tensor) -> Tensor:
    """bool [n crops, N] -> [M]: for each masked patch in order, 1 / the number of masked patches of its crop."""
    return (1.0 / masks.sum(dim=1, keepdim=True).clamp(min=1)).expand(masks.shape)[masks]


def patch_loss(student: Tensor, targets: Tensor, weights: Tensor, n_crops: int, student_temp: float) -> Tensor:
    """Mean over all crops of the mean cross-entropy over a crop's masked patches (0 for an unmasked crop).

    Args:
        student: raw scores [M, K].
        targets: [M, K], rows sum to 1.
        weights: [M], `patch_weights`.
        n_crops: crops of the micro-batch.
        student_temp: the student's temperature.
    """
    each = -(targets * torch.log_softmax(student.float() / student_temp, dim=-1)).sum(dim=-1)
    return (each * weights).sum() / n_crops


class Ibot(Objective):
    """Cross-entropy between the teacher's targets for masked patches and the student's predictions."""

    Options: ClassVar[type | None] = IbotOptions
    columns: ClassVar[tuple[str, ...]] = ("ibot_entropy", "ibot_masked")
    needs_patches: ClassVar[bool] = True

    def __init__(self, options: Any, width: int) -> None:
        super().__init__(options, width)
        own = options.ibot_head == "own"
        if own:
            self.student_head = build_head(options, width, options.ibot_out_dim)
            self.teacher_head = copy.deepcopy(self.student_head).requires_grad_(False)
        self.center = Center(options.ibot_out_dim if own else options.out_dim, options.ibot_center_momentum)
        self.couples = "all" if options.ibot_targets == "sinkhorn" else None
        self.heads: tuple[nn.Module | None, ...] = ()

    def connect(self, objectives: Mapping[str, Objective], teacher: nn.Module) -> None:
        """Use dino's heads if they are shared."""
        source: Objective | None = self
        if self.options.ibot_head == "shared":
            source = objectives.get("dino")
            if source is None:
                raise ValueError("ibot_head is shared, but dino is none of the objectives: add it, or set own")
        assert source is not None
        self.heads = (source.student_head, source.teacher_head)  # in a tuple they are no modules of this objective

    def masks(self, step: Step, slots: Sequence[int], grid: tuple[int, int]) -> Tensor:
        """Block masks of both global crops, bool [2*b, N]."""
        options = self.options
        batch = BatchMasks(
            grid,
            2 * options.batch_size,
            options.ibot_mask_share,
            options.ibot_mask_ratios,
            options.ibot_masks,
            options.seed,
        )
        return batch.draw(step.number, [view * options.batch_size + slot for view in range(2) for slot in slots])

    def forward(self, student: Views, teacher: Views, step: Step) -> Terms:
        """The loss in nats over masked patches, and over visible patches if they have a weight."""
        student_head, teacher_head = self.heads
        assert student_head is not None
        assert teacher_head is not None
        assert student.masks is not None
        options, masks = self.options, student.masks
        hidden = masks.flatten().nonzero()[:, 0].to(student.cls.device, non_blocking=True)
        ours, theirs = student.tokens().flatten(0, 1), teacher.tokens().flatten(0, 1)
        with torch.no_grad():
            scores = teacher_head(theirs[hidden])
            targets = self._targets(scores, step)
            total, count = scores.float().sum(dim=0), scores.new_full((), len(scores), dtype=torch.float32)
        loss = self._loss(student_head(ours[hidden]), targets, masks)
        if options.ibot_visible_weight or options.ibot_center_over == "all":
            visible = (~masks).flatten().nonzero()[:, 0].to(hidden.device, non_blocking=True)
            with torch.no_grad():
                seen = teacher_head(theirs[visible])
            if options.ibot_visible_weight:
                term = self._loss(student_head(ours[visible]), self._targets(seen, step), ~masks)
                loss = loss + options.ibot_visible_weight * term
            if options.ibot_center_over == "all":
                total, count = total + seen.float().sum(dim=0), count + len(seen)
        entropy = torch.special.entr(targets).sum(dim=-1)
        weights = patch_weights(masks).to(entropy.device, non_blocking=True)
        masked_crops = len(masks) * options.ibot_mask_share  # on average: the same in every split of the batch
        logged = {
            "ibot_entropy": (entropy * weights).sum() / max(masked_crops, 1e-9),
            "ibot_masked": entropy.new_full((), len(hidden) / len(masks)),
        }
        return Terms(loss, logged, {"total": total, "count": count})

    def _targets(self, scores: Tensor, step: Step) -> Tensor:
        temperature = self.teacher_temp(step)
        if self.options.ibot_targets == "sinkhorn":
            return sinkhorn(scores, temperature).clamp_min(SMALLEST)
        return self.center.targets(scores, temperature)

    def _loss(self, scores: Tensor, targets: Tensor, masks: Tensor) -> Tensor:
        with torch.autocast(scores.device.type, enabled=False):
            weights = patch_weights(masks).to(scores.device, non_blocking=True)
            return patch_loss(scores, targets, weights, len(masks), self.options.student_temp)

    def teacher_temp(self, step: Step) -> float:
        """The teacher's temperature, equal to dino's."""
        options = self.options
        return teacher_temperature(
            step.epoch, options.warmup_teacher_temp, options.teacher_temp, options.warmup_teacher_temp_epochs
        )

    def hold_gradients(self, step: Step) -> None:
        """Freeze the last layer of an own head in the first epochs, as dino does."""
        if self.student_head is not None and step.epoch < self.options.freeze_last_layer:
            for name, parameter in self.student_head.named_parameters():
                if name.startswith("last_layer."):
                    parameter.grad = None

    def after_step(self, statistics: Mapping[str, Tensor]) -> None:
        """Update the center with the mean over all micro-batches and processes."""
        self.center.move(statistics["total"], statistics["count"])

    def weight(self, step: Step) -> float:
        """The option `ibot_weight`."""
        return float(self.options.ibot_weight)


OBJECTIVE = Ibot
