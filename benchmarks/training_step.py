"""A DINO optimizer step: the paper's algorithm in plain form, against the trainer's.

The plain form has explicit softmax attention, a cross-entropy for each pair of views, gradient clipping and teacher
updates one parameter at a time, and PyTorch's default AdamW. Both start from the same weights and see the same batches.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW

from benchmarks.bench import Row, device, in_turn, publish
from dino_dense import distributed
from dino_dense.pretrain.batches import MicroBatch
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.crops import prepare
from dino_dense.pretrain.optim import param_groups
from dino_dense.pretrain.step import TrainingState
from dino_dense.pretrain.trainer import Trainer

DEVICE = device()
ON_GPU = DEVICE.type == "cuda"
BATCH = 64 if ON_GPU else 4  # images
CURVE_STEPS, CURVE_BATCH = 20, 2
SAME_LOSS = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}  # nats, of a loss of about 8; bf16 rounds to 0.4 %
FIRST_STEP = 100  # past the frozen last layer
TIMED = PretrainConfig(arch="vit_small_patch16_224", batch_size=BATCH, norm_last_layer=False, drop_path_rate=0.0)
CURVE = replace(TIMED, arch="vit_tiny_patch16_224", batch_size=CURVE_BATCH, out_dim=4096, device=DEVICE.type)
GFLOP_OF_AN_IMAGE = 114  # ViT-S/16, 2 x 224 + 8 x 96, out_dim 65,536, teacher and student: matrix products only


class NoPictures:
    """A data set with a length but without pictures."""

    fingerprint = "none"

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> object:
        raise AssertionError("the batches are made here")


def make_trainer(config: PretrainConfig, dtype: str) -> Trainer:
    images = NoPictures(10 * config.batch_size)  # ten steps an epoch
    with tempfile.TemporaryDirectory() as folder:
        config = replace(config, out=f"{folder}/run", dtype=dtype, allow_conflicts=True)  # type: ignore[arg-type]
        return Trainer(config, images, distributed.World(), DEVICE)  # type: ignore[arg-type]


def make_batch(config: PretrainConfig, seed: int) -> MicroBatch:
    generator = torch.Generator().manual_seed(seed)

    def views(count: int, side: int) -> Tensor:
        shape = (count * config.batch_size, 3, side, side)
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    sizes = (2, config.global_crop_size), (config.local_crops_number, config.local_crop_size)
    photometric = torch.empty(0, 1)
    return MicroBatch(
        *(views(*size) for size in sizes),
        photometric,
        photometric,
        views(0, 0),
        photometric,
        torch.arange(config.batch_size),
        [],
    )


# --- The plain loop -----------------------------------------------------------------------------------------


class PlainLoop:
    """Algorithm 1 of the paper (arXiv 2104.14294) with the published details, from a trainer's starting point."""

    def __init__(self, trainer: Trainer, dtype: torch.dtype | None = None) -> None:
        self.config, self.trainer, self.dtype = trainer.config, trainer, dtype
        self.student, self.teacher = self.networks(copy.deepcopy(trainer.stepper.state))
        for module in [*self.student.modules(), *self.teacher.modules()]:
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
        self.center = torch.zeros(1, self.config.out_dim, device=DEVICE)
        self.optimizer = AdamW(param_groups(self.student))

    def networks(self, state: TrainingState) -> tuple[nn.ModuleList, nn.ModuleList]:
        """Student and teacher, each with its heads, from a copy of the trainer's state."""
        dino = state.learner.parts()["dino"]
        return (
            nn.ModuleList([state.learner.student.backbone, dino.student_head]),
            nn.ModuleList([state.teacher.backbone, dino.teacher_head]),
        )

    def step(self, batch: MicroBatch, step: int) -> float:
        config, trainer = self.config, self.trainer
        for group in self.optimizer.param_groups:
            group["lr"] = trainer.stepper.schedules.lr[step]
            if group["decay"]:
                group["weight_decay"] = trainer.stepper.schedules.weight_decay[step]
        crops = [
            prepare(views.to(DEVICE), batch.global_photometric) for views in (batch.global_views, batch.local_views)
        ]
        with torch.autocast(DEVICE.type, self.dtype, enabled=self.dtype is not None):
            loss = self.loss(crops, batch, step)
        self.optimizer.zero_grad()
        loss.backward()
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                factor = config.clip_grad / (parameter.grad.norm() + 1e-6)
                if factor < 1:
                    parameter.grad.mul_(factor)
        self.optimizer.step()
        with torch.no_grad():
            momentum = float(trainer.stepper.schedules.momentum[step])
            for ours, theirs in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                ours.mul_(momentum).add_(theirs, alpha=1 - momentum)
        return float(loss.detach())

    def loss(self, crops: list[Tensor], batch: MicroBatch, step: int) -> Tensor:
        """The loss of global and local crops; also moves the centers."""
        with torch.no_grad():
            teacher = self._forward(self.teacher, crops[:1]).float()
        loss = self.dino(self._forward(self.student, crops).float(), teacher)
        self.center = moved(self.center, teacher, self.config.center_momentum)
        return loss

    def _forward(self, network: nn.ModuleList, crops: list[Tensor]) -> Tensor:
        backbone, head = network
        return head(torch.cat([backbone(group) for group in crops]))

    def dino(self, student: Tensor, teacher: Tensor) -> Tensor:
        """DINO's loss of raw scores, student [V*b, K] and teacher [2*b, K] (arXiv 2104.14294, Alg. 1)."""
        config = self.config
        targets = F.softmax((teacher - self.center) / config.teacher_temp, dim=-1).chunk(2)
        scores = (student / config.student_temp).chunk(config.n_views)
        pairs = [
            torch.sum(-target * F.log_softmax(score, dim=-1), dim=-1).mean()
            for i, target in enumerate(targets)
            for j, score in enumerate(scores)
            if i != j
        ]
        return torch.stack(pairs).mean()


def moved(center: Tensor, scores: Tensor, momentum: float) -> Tensor:
    """The moving mean [1, K] of the teacher's scores [M, K]."""
    return momentum * center + (1 - momentum) * scores.mean(0, keepdim=True)


# --- Measuring ----------------------------------------------------------------------------------------------


def step_of(trainer: Trainer, batch: MicroBatch, step: int) -> float:
    return float(trainer.stepper.run(step, [batch]).loss)


def curves(
    dtype: str, config: PretrainConfig = CURVE, steps: int = CURVE_STEPS, loop: type[PlainLoop] = PlainLoop
) -> float:
    """Largest difference of the loss over the steps, with the plain loop in float32."""
    trainer = make_trainer(config, dtype)
    plain = loop(trainer)
    batches = [make_batch(config, seed) for seed in range(2)]
    differences = []
    for number in range(steps):
        batch, step = batches[number % 2], FIRST_STEP + number
        differences.append(abs(plain.step(batch, step) - step_of(trainer, batch, step)))
    return max(differences)


def rate(dtype: str, target: float | None) -> Row:
    """Images per second of both loops."""
    trainer = make_trainer(TIMED, dtype)
    plain_dtype = torch.float16 if ON_GPU else None  # on a GPU both run in the published fp16 autocast
    plain, batch, repeats = PlainLoop(trainer, plain_dtype), make_batch(TIMED, 0), 5 if ON_GPU else 2
    steps = iter(range(FIRST_STEP, FIRST_STEP + 100))

    def once(call: Callable[[int], float]) -> Callable[[], float]:
        return lambda: call(next(steps))

    plain_s, ours_s = in_turn(
        once(lambda step: plain.step(batch, step)), once(lambda step: step_of(trainer, batch, step)), repeats
    )
    difference = curves(dtype)
    agrees = difference <= SAME_LOSS[dtype]
    name = "fp16" if ON_GPU else "fp32"
    return Row(
        "training_step",
        f"DINO step, ViT-S/16, {BATCH} images, 2x224 + 8x96, out_dim 65,536, {dtype} (plain {name})",
        BATCH / plain_s,
        BATCH / ours_s,
        "images/s",
        target=target,
        check=f"loss of {CURVE_STEPS} steps within {difference:.0e} of plain fp32",
        agrees=agrees,
        better="higher",
        note=f"{BATCH / ours_s * GFLOP_OF_AN_IMAGE:.0f} GFLOP/s",
    )


def main() -> list[Row]:
    rows = [rate("fp16", 2.0), rate("bf16", 2.0)] if ON_GPU else [rate("fp32", 1.0), rate("bf16", 1.8)]
    publish(rows)
    return rows


if __name__ == "__main__":
    main()
