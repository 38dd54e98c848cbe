"""A step with DINOv2's objectives (DINO, iBOT, KoLeo): written plainly, against the trainer's.

The plain form has explicit softmax attention, a cross-entropy for each pair of views, iBOT and KoLeo image by image,
gradient clipping and teacher updates one parameter at a time, and PyTorch's default AdamW. Both start from the same
weights and see the same batches and masks. All weights have one learning rate: no layer decay.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.bench import Row, in_turn, publish
from benchmarks.training_step import (
    CURVE_STEPS,
    DEVICE,
    FIRST_STEP,
    ON_GPU,
    SAME_LOSS,
    TIMED,
    PlainLoop,
    curves,
    make_batch,
    make_trainer,
    moved,
    step_of,
)
from dino_dense.pretrain.batches import MicroBatch
from dino_dense.pretrain.step import TrainingState

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


class DenseLoop(PlainLoop):
    """DINOv2's step (arXiv 2304.07193, Sec. 4) with moving centers, from a trainer's starting point."""

    def networks(self, state: TrainingState) -> tuple[nn.ModuleList, nn.ModuleList]:
        """Student and teacher, each with the heads of DINO and iBOT."""
        dino, ibot = (state.learner.parts()[name] for name in ("dino", "ibot"))
        self.patch_center = torch.zeros(1, self.config.ibot_out_dim, device=DEVICE)
        return (
            nn.ModuleList([state.learner.student, dino.student_head, ibot.student_head]),
            nn.ModuleList([state.teacher, dino.teacher_head, ibot.teacher_head]),
        )

    def _masks(self, batch: MicroBatch, step: int) -> Tensor:
        """The trainer's own masks of both global crops, bool [2*b, N]."""
        stepper = self.trainer.stepper
        assert stepper.grid is not None
        masks = stepper.state.learner.masks(stepper.moment(step), batch.slots.tolist(), stepper.grid)
        assert masks is not None
        return masks.to(DEVICE)

    def loss(self, crops: list[Tensor], batch: MicroBatch, step: int) -> Tensor:
        """The sum of DINO, iBOT and KoLeo; also moves both centers."""
        masks = self._masks(batch, step)
        network, head, patch_head = self.student
        teacher, teacher_head, teacher_patch_head = self.teacher
        with torch.no_grad():
            tokens = self._tokens(teacher.backbone, crops[0])
            targets = teacher_head(tokens[:, 0]).float()
            patch_targets = teacher_patch_head(tokens[:, 1:][masks]).float()
        tokens = self._tokens(network.backbone, crops[0], masks)
        cls = torch.cat([tokens[:, 0], self._tokens(network.backbone, crops[1])[:, 0]])
        loss = self.dino(head(cls).float(), targets)
        loss = loss + self._ibot(patch_head(tokens[:, 1:][masks]).float(), patch_targets, masks)
        globals_of = tokens[:, 0].float().chunk(2)
        loss = loss + self.config.koleo_weight * sum(self._koleo(view) for view in globals_of)
        self.center = moved(self.center, targets, self.config.center_momentum)
        self.patch_center = moved(self.patch_center, patch_targets, self.config.ibot_center_momentum)
        return loss

    def _tokens(self, vit: Any, crops: Tensor, masks: Tensor | None = None) -> Tensor:
        """Class token and patches of the last block, normalized [N_i, 1 + N, C]."""
        embedded = vit.patch_embed(crops)
        if masks is not None:
            embedded = torch.where(masks.view(*embedded.shape[:-1], 1), self.student[0].mask_token, embedded)
        return vit.norm(vit.blocks(vit._pos_embed(embedded)))  # type: ignore[no-any-return]

    def _ibot(self, student: Tensor, teacher: Tensor, masks: Tensor) -> Tensor:
        config = self.config
        targets = F.softmax((teacher - self.patch_center) / config.teacher_temp, dim=-1)
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


def rate(dtype: str, target: float | None) -> Row:
    """Images per second of both loops."""
    trainer = make_trainer(STEP, dtype)
    plain = DenseLoop(trainer, torch.float16 if ON_GPU else None)
    batch, repeats = make_batch(STEP, 0), 5 if ON_GPU else 2
    steps = iter(range(FIRST_STEP, FIRST_STEP + 100))
    plain_s, ours_s = in_turn(
        lambda: plain.step(batch, next(steps)), lambda: step_of(trainer, batch, next(steps)), repeats
    )
    difference = curves(dtype, CURVE, loop=DenseLoop)
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
