"""A step with DINOv2's objectives (DINO, iBOT, KoLeo): written plainly, against the trainer's.

The plain form has explicit softmax attention, a cross-entropy for each pair of views, iBOT and KoLeo image by image,
gradient clipping and teacher updates one parameter at a time, and PyTorch's default AdamW. Both start from the same
weights and see the same batches and masks. All weights have one learning rate: no layer decay.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from benchmarks.bench import Row, in_turn, publish
from benchmarks.training_step import (
    CURVE_STEPS,
    DEVICE,
    FIRST_STEP,
    ON_GPU,
    SAME_LOSS,
    TIMED,
    make_batch,
    make_trainer,
    step_of,
)
from dino_dense.pretrain.batches import MicroBatch
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.crops import prepare
from dino_dense.pretrain.optim import param_groups
from dino_dense.pretrain.trainer import Trainer

DINOV2: dict[str, Any] = {
    "objectives": ("dino", "ibot", "koleo"),
    "ibot_head": "own",
    "ibot_out_dim": 8192,
    "koleo_neighbors": "process",
}
STEP = replace(TIMED, **DINOV2)
CURVE = replace(STEP, arch="vit_tiny_patch16_224", out_dim=4096, ibot_out_dim=1024, device=DEVICE.type)
EPS = 1e-8
"""Of KoLeo (DINOv2, loss/koleo_loss.py)."""


class PlainLoop:
    """DINOv2's step (arXiv 2304.07193, Sec. 4) with moving centers, from a trainer's starting point."""

    def __init__(self, trainer: Trainer, dtype: torch.dtype | None = None) -> None:
        self.config, self.trainer, self.dtype = trainer.config, trainer, dtype
        state = copy.deepcopy(trainer.stepper.state)
        dino, ibot = (state.learner.parts()[name] for name in ("dino", "ibot"))
        self.masked_with = state.learner.student.mask_token
        self.student = nn.ModuleList([state.learner.student, dino.student_head, ibot.student_head])
        self.teacher = nn.ModuleList([state.teacher, dino.teacher_head, ibot.teacher_head])
        for module in [*self.student.modules(), *self.teacher.modules()]:
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
        self.centers = [torch.zeros(1, k, device=DEVICE) for k in (self.config.out_dim, self.config.ibot_out_dim)]
        self.optimizer = AdamW(param_groups(self.student))

    def step(self, batch: MicroBatch, step: int) -> float:
        config, schedules = self.config, self.trainer.stepper.schedules
        for group in self.optimizer.param_groups:
            group["lr"] = schedules.lr[step]
            if group["decay"]:
                group["weight_decay"] = schedules.weight_decay[step]
        groups = [
            prepare(views.to(DEVICE), batch.global_photometric) for views in (batch.global_views, batch.local_views)
        ]
        with torch.autocast(DEVICE.type, self.dtype, enabled=self.dtype is not None):
            loss = self._loss(groups, self._masks(batch, step))
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                factor = config.clip_grad / (parameter.grad.norm() + 1e-6)
                if factor < 1:
                    parameter.grad.mul_(factor)
        self.optimizer.step()
        momentum = float(schedules.momentum[step])
        with torch.no_grad():
            for ours, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                ours.mul_(momentum).add_(theirs, alpha=1 - momentum)
        return float(loss.detach())

    def _masks(self, batch: MicroBatch, step: int) -> Tensor:
        """The trainer's own masks of both global crops, bool [2*b, N]."""
        stepper = self.trainer.stepper
        assert stepper.grid is not None
        masks = stepper.state.learner.masks(stepper.moment(step), batch.slots.tolist(), stepper.grid)
        assert masks is not None
        return masks.to(DEVICE)

    def _loss(self, groups: list[Tensor], masks: Tensor) -> Tensor:
        network, head, patch_head = self.student
        teacher, teacher_head, teacher_patch_head = self.teacher
        with torch.no_grad():
            tokens = self._tokens(teacher.backbone, groups[0])
            targets = teacher_head(tokens[:, 0]).float()
            patch_targets = teacher_patch_head(tokens[:, 1:][masks]).float()
        tokens = self._tokens(network.backbone, groups[0], masks)
        cls = torch.cat([tokens[:, 0], self._tokens(network.backbone, groups[1])[:, 0]])
        loss = self._dino(head(cls).float(), targets)
        loss = loss + self._ibot(patch_head(tokens[:, 1:][masks]).float(), patch_targets, masks)
        globals_of = tokens[:, 0].float().chunk(2)
        loss = loss + self.config.koleo_weight * sum(self._koleo(view) for view in globals_of)
        self._move_centers(targets, patch_targets)
        return loss

    def _tokens(self, vit: Any, crops: Tensor, masks: Tensor | None = None) -> Tensor:
        """Class token and patches of the last block, normalized [N_i, 1 + N, C]."""
        embedded = vit.patch_embed(crops)
        if masks is not None:
            embedded = torch.where(masks.view(*embedded.shape[:-1], 1), self.masked_with, embedded)
        return vit.norm(vit.blocks(vit._pos_embed(embedded)))  # type: ignore[no-any-return]

    def _dino(self, student: Tensor, teacher: Tensor) -> Tensor:
        config = self.config
        targets = F.softmax((teacher - self.centers[0]) / config.teacher_temp, dim=-1).chunk(2)
        scores = (student / config.student_temp).chunk(config.n_views)
        pairs = [
            torch.sum(-target * F.log_softmax(score, dim=-1), dim=-1).mean()
            for i, target in enumerate(targets)
            for j, score in enumerate(scores)
            if i != j
        ]
        return torch.stack(pairs).mean()

    def _ibot(self, student: Tensor, teacher: Tensor, masks: Tensor) -> Tensor:
        config = self.config
        targets = F.softmax((teacher - self.centers[1]) / config.teacher_temp, dim=-1)
        each = torch.sum(-targets * F.log_softmax(student / config.student_temp, dim=-1), dim=-1)
        counts = masks.sum(dim=1).tolist()
        return torch.stack([part.sum() / max(len(part), 1) for part in each.split(counts)]).mean()

    def _koleo(self, cls: Tensor) -> Tensor:
        rows = F.normalize(cls, dim=-1, eps=EPS)
        distances = []
        for i, row in enumerate(rows):
            similarity = rows.detach() @ row.detach()
            similarity[i] = -1
            distances.append(F.pairwise_distance(row, rows[similarity.argmax()], eps=EPS))
        return -(torch.stack(distances) + EPS).log().mean()

    def _move_centers(self, *scores: Tensor) -> None:
        config = self.config
        momenta = (config.center_momentum, config.ibot_center_momentum)
        self.centers = [
            momentum * center + (1 - momentum) * part.mean(0, keepdim=True)
            for center, momentum, part in zip(self.centers, momenta, scores, strict=True)
        ]


def curves(dtype: str, config: PretrainConfig = CURVE, steps: int = CURVE_STEPS) -> float:
    """Largest difference of the loss over the steps, with the plain loop in float32."""
    trainer = make_trainer(config, dtype)
    plain = PlainLoop(trainer)
    batches = [make_batch(config, seed) for seed in range(2)]
    differences = []
    for number in range(steps):
        batch, step = batches[number % 2], FIRST_STEP + number
        differences.append(abs(plain.step(batch, step) - step_of(trainer, batch, step)))
    return max(differences)


def rate(dtype: str, target: float | None) -> Row:
    """Images per second of both loops."""
    trainer = make_trainer(STEP, dtype)
    plain = PlainLoop(trainer, torch.float16 if ON_GPU else None)
    batch, repeats = make_batch(STEP, 0), 5 if ON_GPU else 2
    steps = iter(range(FIRST_STEP, FIRST_STEP + 100))
    plain_s, ours_s = in_turn(
        lambda: plain.step(batch, next(steps)), lambda: step_of(trainer, batch, next(steps)), repeats
    )
    difference = curves(dtype)
    return Row(
        "dinov2_step",
        f"DINO + iBOT + KoLeo step, ViT-S/16, {STEP.batch_size} images, 2x224 + 8x96, out_dim 65,536 and 8,192, "
        f"{dtype} (plain {'fp16' if ON_GPU else 'fp32'})",
        STEP.batch_size / plain_s,
        STEP.batch_size / ours_s,
        "images/s",
        target=target,
        check=f"loss of {CURVE_STEPS} steps within {difference:.0e} of plain fp32",
        agrees=difference <= SAME_LOSS[dtype],
        better="higher",
    )


def main() -> list[Row]:
    rows = [rate("fp16", 1.5), rate("bf16", 1.5)] if ON_GPU else [rate("fp32", 1.1)]
    publish(rows)
    return rows


if __name__ == "__main__":
    main()
