"""Gram anchoring: similarities between an image's patches stay those of a frozen network (DINOv3, arXiv 2508.10104)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_dense.pretrain.anchor import START, Anchor
from dino_dense.pretrain.objective import Objective, Step, Terms, Views
from dino_dense.pretrain.options import COUNT, NOT_NEGATIVE, Options, Ranges

RUN = "run"
"""Name of the run's own teacher at the step where the loss begins."""

Negatives = Literal["keep", "drop", "drop_teacher"]


def gram_loss(
    student: Tensor, teacher: Tensor, *, normalize: bool = True, negatives: Negatives = "keep", per_image: bool = True
) -> Tensor:
    """Mean squared difference of the two Gram matrices (DINOv3, eq. 2 and loss/gram_loss.py); float32.

    Args:
        student, teacher: patch tokens [B, N, D], or [N, D] of one set.
        normalize: of tokens of length 1, so that the entries are cosines.
        negatives: keep; drop: entries below 0 count as 0 in both; drop_teacher: in the teacher's alone, which is what
            the published code's `remove_only_teacher_neg` does (it means to drop the student's, too, where both are
            below 0, but compares with the teacher's after they were set to 0).
        per_image: one matrix [N, N] an image; False: one over the tokens of all images.
    """
    with torch.autocast(student.device.type, enabled=False):
        tokens = [teacher.detach().float(), student.float()]
        if normalize:
            tokens = [F.normalize(part, dim=-1) for part in tokens]
        if not per_image:
            tokens = [part.flatten(0, -2) for part in tokens]
        target, ours = (part @ part.transpose(-1, -2) for part in tokens)
        if negatives != "keep":
            target = target.clamp(min=0)
        if negatives == "drop":
            ours = ours.clamp(min=0)
        return F.mse_loss(ours, target)


def at_grid(tokens: Tensor, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """Patch tokens [B, h * w, D] of a grid (h, w), resized to another: bicubic, without antialiasing (DINOv3)."""
    maps = tokens.transpose(1, 2).unflatten(2, grid)
    resized = F.interpolate(maps.float(), size=to, mode="bicubic", align_corners=False)
    return resized.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class GramOptions(Options):
    """Objective gram: similarities between patches stay as they were"""

    gram_weight: float = 2.0
    """Factor on the loss. (dinov3, vit7b16_gram_anchor)"""
    gram_teacher: str = "start"
    """Whose similarities: start = the first weights of this run; a checkpoint or run folder, as tasks' --ckpt takes;
    or run = this run's own teacher as it is when the loss begins, at gram_begin. (dinov3: a checkpoint of 100k to
    200k steps)"""
    gram_begin: int = 0
    """Optimizer steps before the loss begins. (dinov3: 1,000,000)"""
    gram_refresh: int | None = None
    """Optimizer steps after which the Gram teacher becomes the teacher as it is then, again and again; None: never.
    (dinov3: 10,000)"""
    gram_refreshes: int = 3
    """Refreshes at most. (dinov3)"""

    RANGES: ClassVar[Ranges] = {
        **dict.fromkeys(("gram_weight", "gram_begin", "gram_refreshes"), NOT_NEGATIVE),
        "gram_refresh": COUNT,
    }

    def check(self) -> None:
        """A teacher of this run's own is there after the first step only."""
        super().check()
        if self.gram_teacher == RUN and not self.gram_begin:
            raise ValueError(
                "gram_teacher is run, but the loss begins at step 0, before there is a teacher: set --gram-begin, or "
                "--gram-teacher start"
            )


class Gram(Objective):
    """Similarities of the student's patches within an image against those of a frozen network. Not at twice the
    resolution, as DINOv3 has it too: the Gram teacher sees the same crops.
    """

    Options: ClassVar[type | None] = GramOptions
    needs_patches: ClassVar[bool] = True
    steps: Tensor

    def __init__(self, options: Any, width: int) -> None:
        super().__init__(options, width)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def connect(self, objectives: Mapping[str, Objective], teacher: nn.Module) -> None:
        """Build the Gram teacher."""
        source = self.options.gram_teacher
        self.anchor = Anchor(START if source == RUN else source, teacher)
        self.teacher: tuple[Any] = (teacher,)  # in a tuple it is no module of this objective

    def forward(self, student: Views, teacher: Views, step: Step) -> Terms:
        """Mean squared difference of cosines; 0 before it begins."""
        if step.number < self.options.gram_begin:
            return Terms(student.tokens().sum() * 0.0, {}, {})
        return Terms(gram_loss(student.tokens(), self.anchor(student)), {}, {})

    def after_step(self, statistics: Mapping[str, Tensor]) -> None:
        """Take over the teacher where it is time to."""
        self.steps += 1
        options, done = self.options, int(self.steps) - self.options.gram_begin
        every = options.gram_refresh
        begins = options.gram_teacher == RUN and done == 0
        refreshes = every is not None and done > 0 and done % every == 0 and done // every <= options.gram_refreshes
        if begins or refreshes:
            self.anchor.backbone.load_state_dict(self.teacher[0].backbone.state_dict())

    def weight(self, step: Step) -> float:
        """As set."""
        return float(self.options.gram_weight)


OBJECTIVE = Gram
