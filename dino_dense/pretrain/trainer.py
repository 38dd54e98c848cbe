"""The training loop: student and teacher, one optimizer step after another, exact to resume and to split.

Shapes: B images per step over all processes, b images in one micro-batch, V views, K prototypes, C features.
"""

import os
import signal
import types
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel

from dino_dense import distributed
from dino_dense.attention import fast_attention
from dino_dense.checkpoint import STATE_FILE
from dino_dense.distributed import World
from dino_dense.pretrain import optim, run_folder
from dino_dense.pretrain.batches import ImageSource, MicroBatch, Plan, build_loader
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.crops import prepare
from dino_dense.pretrain.loss import DINOLoss
from dino_dense.pretrain.monitor import CollapseWatch, Monitor, feature_spectrum
from dino_dense.pretrain.network import DropPathKeys, build_student_and_teacher, compile_blocks
from dino_dense.pretrain.run_folder import TrainingState
from dino_dense.pretrain.schedules import cosine_schedule

MAX_WORKERS = 10
"""Loader processes per training process (main_dino.py, --num_workers)."""
QUIET_STEPS = 1000
"""Steps after which a sign of collapse counts at the latest: the published vanilla run has left ln K long
before
the end of its first 2,500 steps (dino issue 69)."""

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class DivergedError(ValueError):
    """The loss or the gradient is no longer finite."""


class Measured(NamedTuple):
    """One step's numbers, still on the device; means over this process's share of the batch."""

    loss: Tensor
    teacher_entropy: Tensor
    kl: Tensor
    grad_norm: Tensor
    features: Tensor
    """[2*b, C] over all micro-batches: the teacher's features of the global crops."""


@dataclass(frozen=True)
class Outcome:
    """How a call of `Trainer.train` ended."""

    step: int
    """Optimizer steps done since the run began."""
    signal: int | None
    """The signal that stopped it early, or None."""


class Trainer:
    """One pretraining run.

    Args:
        config: all settings.
        images: the pictures; order and number must be the same in every process.
        world, device: from `distributed.session`.

    Raises (here or in `train`): ValueError for settings that do not fit the pictures or the machine, RunError
    for a run folder that cannot be used, DivergedError when training fails; the last checkpoint is always
    kept.
    """

    def __init__(self, config: PretrainConfig, images: ImageSource, world: World, device: torch.device) -> None:
        if config.dtype == "auto":
            config = replace(config, dtype="fp16" if device.type == "cuda" else "fp32")
        if config.augment_on == "auto":
            config = replace(config, augment_on="device" if device.type == "cuda" else "loader")
        self.config, self.images, self.world, self.device = config, images, world, device
        self.run = Path(config.out)
        run_folder.check_folder(self.run, config.resume)
        self.plan = Plan(len(images), config, world)
        self._build_networks()
        self._build_schedules()
        self.step = 0
        if config.resume:
            self.step = run_folder.load_state(self.run, self.state, config, images.fingerprint)
        self.unchecked: list[tuple[int, Tensor]] = []

    def _build_networks(self) -> None:
        config = self.config
        student, teacher = build_student_and_teacher(config)
        self.drop_path = DropPathKeys(student, config)
        if config.compile:
            compile_blocks(student)
            compile_blocks(teacher)
        if self.world.size > 1 and self.device.type == "cuda":  # PyTorch has no SyncBatchNorm on the CPU
            student = nn.SyncBatchNorm.convert_sync_batchnorm(student)
            teacher = nn.SyncBatchNorm.convert_sync_batchnorm(teacher)
        student, teacher = student.to(self.device), teacher.to(self.device)
        loss = DINOLoss(
            config.out_dim,
            config.n_views,
            config.warmup_teacher_temp,
            config.teacher_temp,
            config.warmup_teacher_temp_epochs,
            config.student_temp,
            config.center_momentum,
        ).to(self.device)
        self.autocast_dtype = AUTOCAST.get(config.dtype)
        scaler = GradScaler(self.device.type, enabled=config.dtype == "fp16")
        optimizer = optim.build_optimizer(config.optimizer, student)
        self.state = TrainingState(student, teacher, loss, optimizer, scaler)
        self.forward_student: nn.Module = student
        if self.world.size > 1:
            self.forward_student = DistributedDataParallel(student, gradient_as_bucket_view=True)

    def _build_schedules(self) -> None:
        config, epochs, steps = self.config, self.config.epochs, self.plan.steps_per_epoch
        peak = optim.scaled_lr(config.lr, config.batch_size)
        self.lr = cosine_schedule(peak, config.min_lr, epochs, steps, config.warmup_epochs)
        self.weight_decay = cosine_schedule(config.weight_decay, config.weight_decay_end, epochs, steps)
        self.momentum = cosine_schedule(config.momentum_teacher, 1.0, epochs, steps)

    # --- The loop ---

    def train(self) -> Outcome:
        """Train to the end, or to the first SIGINT or SIGTERM: then a checkpoint is saved first."""
        distributed.barrier()  # no process may look at the folder after another has begun to write into it
        if self.world.is_main:
            run_folder.write_config(self.run, self.config)
        monitor = self._monitor() if self.world.is_main else None
        try:
            with stop_signals() as received:
                return self._train(monitor, received)
        finally:
            if monitor:
                monitor.close()

    def _train(self, monitor: Monitor | None, received: list[int]) -> Outcome:
        batches = self._micro_batches()
        if monitor and self.step >= self.plan.last_step:
            monitor.say(f"{self.run}: already finished, at step {self.step}")
        while self.step < self.plan.last_step:
            micro_batches = [next(batches) for _ in range(self.config.accumulate)]
            measured = self._optimizer_step(self.step, micro_batches)
            self.step += 1
            self._remember(measured)
            if monitor:
                monitor.tick()
            if self._is_due(self.config.log_every) or self.step == 1:
                self._log(monitor, measured)
            stopped = distributed.any_true(bool(received))
            if stopped or self._is_due(self.config.save_every or self.plan.steps_per_epoch):
                self._save()
            if stopped:
                self._say_how_to_resume(monitor)
                return Outcome(self.step, received[0] if received else int(signal.SIGTERM))
        return Outcome(self.step, None)

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.plan.last_step

    def _micro_batches(self) -> Iterator[MicroBatch]:
        workers = self.config.num_workers
        if workers is None:
            workers = min(MAX_WORKERS, max(1, (os.cpu_count() or 1) // self.world.size))
        pin = self.device.type == "cuda"
        loader = build_loader(self.images, self.plan, self.step, self.config, workers, pin)
        for batch in loader:
            if isinstance(batch, Exception):  # an unreadable picture, met in a worker
                raise batch
            yield batch

    # --- One step ---

    def _optimizer_step(self, step: int, micro_batches: list[MicroBatch]) -> Measured:
        """Forward and backward over the micro-batches, then student, center and teacher move once."""
        student, teacher, loss, optimizer, scaler = self.state
        epoch = step // self.plan.steps_per_epoch
        optim.set_schedule(optimizer, float(self.lr[step]), float(self.weight_decay[step]))
        optimizer.zero_grad(set_to_none=True)
        outputs, features = [], []
        for number, batch in enumerate(micro_batches):
            is_last = number == len(micro_batches) - 1
            output, teacher_features = self._forward_backward(batch, step, epoch, sync=is_last)
            outputs.append(output)
            features.append(teacher_features)
        scaler.unscale_(optimizer)
        grad_norm = optim.clip_gradients(student.parameters(), self.config.clip_grad, self.config.clip_mode)
        if epoch < self.config.freeze_last_layer:
            optim.drop_last_layer_gradients(student.head)
        scaler.step(optimizer)
        scaler.update()
        means = [torch.stack(values).mean(dim=0) for values in zip(*outputs, strict=True)]
        loss.update_center(means[3])
        optim.update_teacher(teacher, student, float(self.momentum[step]))
        return Measured(means[0], means[1], means[2], grad_norm, torch.cat(features))

    def _forward_backward(
        self, batch: MicroBatch, step: int, epoch: int, sync: bool
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Add one micro-batch's gradients to the student's; give the loss output and the teacher's features."""
        groups = [
            prepare(views.to(self.device, non_blocking=True), looks)
            for views, looks in (
                (batch.global_views, batch.global_looks),
                (batch.local_views, batch.local_looks),
            )
            if len(views)
        ]
        self.drop_path.arm(step, batch.places, self.device)
        with self._no_sync() if not sync else nullcontext():
            autocast = torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None)
            with autocast, fast_attention(self.device, None if self.config.compile else self.autocast_dtype):
                with torch.no_grad():
                    teacher_scores, features = self.state.teacher(groups[:1])
                student_scores, _ = self.forward_student(groups)
                output = self.state.loss(student_scores, teacher_scores, epoch)
            self.state.scaler.scale(output.loss / self.config.accumulate).backward()
        return (output.loss.detach(), *output[1:]), features

    def _no_sync(self) -> AbstractContextManager[None]:
        """Gradients stay local until the last micro-batch."""
        if isinstance(self.forward_student, DistributedDataParallel):
            return self.forward_student.no_sync()
        return nullcontext()

    # --- Watching, saving ---

    def _remember(self, measured: Measured) -> None:
        """Keep what must be finite until the next look, which costs a device synchronisation."""
        total = measured.loss
        if not self.state.scaler.is_enabled():  # with loss scaling an overflowing gradient only skips the step
            total = total + measured.grad_norm
        self.unchecked.append((self.step, total))

    def _check_finite(self) -> None:
        if not self.unchecked:
            return
        steps, totals = zip(*self.unchecked, strict=True)
        finite = distributed.all_reduce_mean(torch.stack(totals)).isfinite().tolist()
        self.unchecked.clear()
        if not all(finite):
            kept, first = self.run / STATE_FILE, steps[finite.index(False)]
            raise DivergedError(
                f"{self.run}: stopped, the loss or its gradient is not finite since step {first}. "
                + (f"The last checkpoint, {kept}, is from before and kept. " if kept.exists() else "")
                + "Try --dtype fp32, a lower --lr, a longer --warmup-epochs, or a smaller --clip-grad."
            )

    def _log(self, monitor: Monitor | None, measured: Measured) -> None:
        self._check_finite()
        scalars = distributed.all_reduce_mean(torch.stack(measured[:4]).float())
        features = distributed.all_gather(measured.features)
        if monitor is None:
            return
        spread, share, rank = feature_spectrum(features)
        step = self.step - 1  # the schedules' index of the step just done
        values = dict(zip(("loss", "teacher_entropy", "kl", "grad_norm"), scalars.tolist(), strict=True))
        schedule = {"lr": self.lr[step], "wd": self.weight_decay[step], "momentum": self.momentum[step]}
        monitor.log(
            self.step,
            values
            | {name: float(value) for name, value in schedule.items()}
            | {"epoch": round(self.step / self.plan.steps_per_epoch, 4)}
            | {"teacher_temp": self.state.loss.teacher_temp(step // self.plan.steps_per_epoch)}
            | {"feature_std": spread, "top_eigenvalue_share": share, "effective_rank": rank},
        )

    def _monitor(self) -> Monitor:
        quiet = min(self.config.warmup_epochs * self.plan.steps_per_epoch, QUIET_STEPS)
        watch = CollapseWatch(self.config.out_dim, quiet)
        return Monitor(self.run, self.step, self.plan.last_step, self.config.batch_size, watch)

    def _save(self) -> None:
        self._check_finite()
        if self.world.is_main:
            run_folder.save_state(self.run, self.state, self.step, self.config, self.images.fingerprint)

    def _say_how_to_resume(self, monitor: Monitor | None) -> None:
        if monitor:
            monitor.say(
                f"Stopped at step {self.step} of {self.plan.last_step}; saved. Continue with: python -m "
                f"dino_dense.pretrain --config {self.run / run_folder.CONFIG_FILE} --resume"
            )


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM instead of dying of it; a second one acts as usual."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: types.FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
