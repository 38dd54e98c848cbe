"""Gram anchoring: keep similarities of an image's patches close to a frozen network's (DINOv3, arXiv 2508.10104)."""

import math
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
"""Source name for the run's own teacher at the step where the loss begins."""

Negatives = Literal["keep", "drop", "drop_teacher"]


def gram_loss(
    student: Tensor, teacher: Tensor, *, normalize: bool = True, negatives: Negatives = "keep", per_image: bool = True
) -> Tensor:
    """Mean squared difference of two Gram matrices (DINOv3, eq. 2 and loss/gram_loss.py); float32.

    Args:
        student, teacher: patch tokens [B, N, D], or [N, D] of one set.
        normalize: normalize tokens to length 1, so that the entries are cosines.
        negatives: keep; drop: set entries below 0 to 0 in both matrices; drop_teacher: in the teacher's only, as the
            published code's `remove_only_teacher_neg` does in effect (it is meant to drop the student's too if both
            are below 0, but the teacher's are 0 already when it compares).
        per_image: a matrix [N, N] for each image; False: one matrix over the tokens of all images.
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
    """Patch tokens [B, h * w, D] of a grid (h, w), resized to another grid: bicubic, no antialiasing (DINOv3)."""
    maps = tokens.transpose(1, 2).unflatten(2, grid)
    resized = F.interpolate(maps.float(), size=to, mode="bicubic", align_corners=False)
    return resized.flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class GramOptions(Options):
    """Objective gram: anchored similarities between patches"""

    gram_weight: float = 2.0
    """Factor on the loss. (dinov3, vit7b16_gram_anchor)"""
    gram_teacher: str = "start"
    """The Gram teacher: start = the first weights of this run; a checkpoint or run folder, as for the tasks' --ckpt, of
    any patch size; or run = this run's own teacher when the loss begins, at gram_begin. (dinov3: a checkpoint of 100k
    to 200k steps)"""
    gram_begin: int = 0
    """Optimizer steps before the loss begins. (dinov3: 1,000,000)"""
    gram_refresh: int | None = None
    """Optimizer steps between refreshes, each of which replaces the Gram teacher by the present teacher; null: never.
    (dinov3: 10,000)"""
    gram_refreshes: int = 3
    """Largest number of refreshes. (dinov3)"""
    gram_crop_size: int | None = None
    """Side of the Gram teacher's crops (pixels): the boxes of the global crops, cut from the picture at this size,
    without color jitter, gray, blur and solarization. Its patch tokens are resized to the student's grid. null: it sees
    the global crops themselves. From gram_begin on, cutting and the Gram teacher cost more with its square. (dinov3:
    512 for global crops of 256)"""
    gram_photometric: bool = False
    """With gram_crop_size: the Gram teacher's crops get the photometric changes of the global crops, with blur in
    proportion to the size. (dinov3, vit7b16_gram_anchor: gram_teacher_no_distortions)"""
    gram_shrink: bool = False
    """With gram_crop_size: the global crops are made from the Gram teacher's, by a second resizing before photometric
    changes, which makes them softer than crops cut from the picture. (dinov3, data/augmentations.py: always)"""

    RANGES: ClassVar[Ranges] = {
        **dict.fromkeys(("gram_weight", "gram_begin", "gram_refreshes"), NOT_NEGATIVE),
        **dict.fromkeys(("gram_refresh", "gram_crop_size"), COUNT),
    }

    def check(self) -> None:
        """Refuse the run's own teacher at step 0, when there is none yet, and an option without effect."""
        super().check()
        if self.gram_teacher == RUN and not self.gram_begin:
            raise ValueError(
                "gram_teacher is run, but the loss begins at step 0, before there is a teacher: set --gram-begin, or "
                "--gram-teacher start"
            )
        if self.gram_photometric and self.gram_crop_size is None:
            raise ValueError(
                "gram_photometric is on, but gram_crop_size is not set: the Gram teacher sees the global crops with "
                "their changes already. Set --gram-crop-size, or leave it out"
            )
        if self.gram_shrink and (self.gram_crop_size is None or self.gram_photometric):
            without = "gram_crop_size is not set" if self.gram_crop_size is None else "gram_photometric is on"
            raise ValueError(
                f"gram_shrink is on, but {without}: it makes the global crops from larger ones without photometric "
                "changes. Set --gram-crop-size without --gram-photometric, or leave it out"
            )


class Gram(Objective):
    """Compares similarities of the student's patches within an image with a frozen network's.

    The Gram teacher sees the same crops, resized where its patch size is another. With `gram_crop_size` it sees their
    boxes at a higher resolution, and its patch tokens are resized to the student's grid before they are normalized
    (dinov3, train/ssl_meta_arch.py).

    dinov3 (data/augmentations.py, lines 68 to 113 and 174 to 200) cuts one crop at the larger size and shrinks it for
    the student: so does `gram_shrink`. Without it both are cut from the picture, and the student's crops are as before
    the loss begins: sharper, by 1.0 of 255 in the mean for 512 to 256 pixels on ImageNet. Where its Gram teacher sees
    photometric changes (in no published config), it makes them at the larger size, blur included, and shrinks after
    them; `gram_photometric` makes them at each size, so its blur is stronger, by the ratio of the sizes.
    """

    Options: ClassVar[type | None] = GramOptions
    needs_patches: ClassVar[bool] = True
    steps: Tensor

    def __init__(self, options: Any, width: int) -> None:
        super().__init__(options, width)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.count: int | None = None
        """`steps` as a number; None: to be read. To read it in each step, the host would wait for the device."""
        self.register_load_state_dict_post_hook(lambda module, _: setattr(module, "count", None))

    def connect(self, objectives: Mapping[str, Objective], teacher: nn.Module) -> None:
        """Build the Gram teacher; ValueError if refreshes cannot replace it."""
        source = self.options.gram_teacher
        self.anchor = Anchor(START if source == RUN else source, teacher)
        self.teacher: tuple[Any] = (teacher,)  # in a tuple it is no module of this objective
        body: Any = teacher.backbone
        if self.options.gram_refresh is not None and not self.anchor.can_become(body):
            raise ValueError(
                f"gram_refresh is {self.options.gram_refresh}, but this run's teacher cannot replace {source}, which "
                "has another architecture or other pixel statistics: leave --gram-refresh out"
            )

    def forward(self, student: Views, teacher: Views, step: Step) -> Terms:
        """Mean squared difference of cosines; 0 before it begins."""
        if step.number < self.options.gram_begin:
            return Terms(student.tokens().sum() * 0.0, {}, {})
        if self.options.gram_crop_size is not None and teacher.larger is None:
            raise ValueError("gram_crop_size is set, but the micro-batch has no larger crops")
        theirs = self.anchor(student, teacher.larger)
        grid, ours = (math.isqrt(tokens.shape[1]) for tokens in (theirs, student.tokens()))
        if grid != ours:
            theirs = at_grid(theirs, (grid, grid), (ours, ours))
        return Terms(gram_loss(student.tokens(), theirs), {}, {})

    def after_step(self, statistics: Mapping[str, Tensor]) -> None:
        """Refresh the Gram teacher when due."""
        self.count = (int(self.steps) if self.count is None else self.count) + 1
        self.steps += 1
        options, done = self.options, self.count - self.options.gram_begin
        every = options.gram_refresh
        begins = options.gram_teacher == RUN and done == 0
        refreshes = every is not None and done > 0 and done % every == 0 and done // every <= options.gram_refreshes
        if begins or refreshes:
            self.anchor.backbone.load_state_dict(self.teacher[0].backbone.state_dict())

    def weight(self, step: Step) -> float:
        """The option `gram_weight`."""
        return float(self.options.gram_weight)


OBJECTIVE = Gram
