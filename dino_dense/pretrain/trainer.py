"""The training loop: student and teacher, one optimizer step after another, exact to resume and to split.

Shapes: B images per step over all processes, b images in one micro-batch, V views, K prototypes, C features.
"""

import signal
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dino_dense import distributed
from dino_dense.backbone.cpu_attention import fast_attention
from dino_dense.checkpoint import STATE_FILE
from dino_dense.distributed import World
from dino_dense.loaders import lost_workers_explained
from dino_dense.pretrain import optim, run_folder
from dino_dense.pretrain.batches import ImageSource, MicroBatch, build_loader, pretraining_plan
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.crops import prepare
from dino_dense.pretrain.faults import BadSample, BadSamples, report_step
from dino_dense.pretrain.loss import DINOLoss
from dino_dense.pretrain.monitor import CollapseWatch, Monitor, feature_spectrum
from dino_dense.pretrain.network import DropPathKeys, build_student_and_teacher, compile_blocks
from dino_dense.pretrain.run_folder import Origin, TrainingState
from dino_dense.threads import processors
from dino_dense.training.batchnorm import synchronized
from dino_dense.training.gradients import DivergedError, clip_gradients, gradients_in_step
from dino_dense.training.precision import autocast, autocast_dtype, grad_scaler
from dino_dense.training.schedules import cosine_schedule
from dino_dense.training.signals import stop_signals

DUMP_FILE = "not_finite.safetensors"
"""The training state when a step was found not to be finite: it may be some steps later."""
MOST_SKIPPED = 10
"""Steps in a row that may be skipped: more are no accident of a batch."""
MAX_WORKERS = 10
"""Loader processes per training process (main_dino.py, --num_workers)."""
QUIET_STEPS = 1000
"""Steps after which a sign of collapse counts at the latest: the published vanilla run has left ln K long
before
the end of its first 2,500 steps (dino issue 69)."""


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
        resumes = run_folder.check_folder(self.run, config.resume)
        self.plan = pretraining_plan(len(images), config, world)
        self._build_networks()
        self._build_schedules()
        self.origin: Origin | None = None
        if resumes:
            self.origin = run_folder.load_state(self.run, self.state, config, images.fingerprint, world.size)
        self.step = self.origin.step if self.origin else 0
        self.unchecked: list[tuple[int, Tensor]] = []
        self.bad: list[BadSample] = []
        """Met since the last look."""
        self.skipped = 0
        """Steps in a row that were not finite and were skipped."""

    def _build_networks(self) -> None:
        config = self.config
        student, teacher = build_student_and_teacher(config)
        self.drop_path = DropPathKeys(student, config)
        if self.world.size > 1 and self.device.type == "cuda":  # PyTorch has no SyncBatchNorm on the CPU
            student, teacher = synchronized(student), synchronized(teacher)
        if config.compile:
            compile_blocks(student)
            compile_blocks(teacher)
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
        scaler = grad_scaler(self.device, config.dtype)
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
        # No process may look at the folder after another has begun to write into it.
        steps = set(distributed.gather_objects([self.step]))
        if len(steps) > 1:
            raise run_folder.RunError(f"{self.run}: the processes read states of different steps, {sorted(steps)}.")
        if self.world.is_main:
            run_folder.open_folder(self.run, self.config, self.origin.damaged if self.origin else ())
        monitor = self._monitor() if self.world.is_main else None
        most, is_main = self.config.max_bad_samples, self.world.is_main
        self.bad_samples = BadSamples(self.run, self.step, len(self.images), most, writes=is_main)
        with stop_signals() as received, lost_workers_explained(str(self.run), "Then resume."):
            try:
                return self._train(monitor, received)
            finally:
                if monitor:
                    monitor.close()

    def _train(self, monitor: Monitor | None, received: list[int]) -> Outcome:
        self._say_where_it_begins(monitor)
        with closing(self._micro_batches()) as batches:
            return self._train_on(batches, monitor, received)

    def _train_on(self, batches: Iterator[MicroBatch], monitor: Monitor | None, received: list[int]) -> Outcome:
        while self.step < self.plan.last_step:
            micro_batches = [next(batches) for _ in range(self.config.accumulate)]
            measured = self.optimizer_step(self.step, micro_batches)
            self.step += 1
            self.bad += [bad for batch in micro_batches for bad in batch.bad]
            self._remember(measured)
            if monitor:
                monitor.tick()
            if self._is_due(self.config.log_every) or self.step == 1:
                self._log(monitor, measured)
            stopped = distributed.any_true(bool(received))
            if stopped or self._is_due(self.config.save_every or self.plan.steps_per_epoch):
                self._save(monitor)
            if stopped:
                self._say_how_to_resume(monitor)
                return Outcome(self.step, received[0] if received else int(signal.SIGTERM))
        return Outcome(self.step, None)

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.plan.last_step

    def _micro_batches(self) -> Generator[MicroBatch]:
        workers = self.config.num_workers
        if workers is None:
            workers = min(MAX_WORKERS, processors())
        pin = self.device.type == "cuda"
        return build_loader(self.images, self.plan, self.step, self.config, workers, pin)

    # --- One step ---

    def optimizer_step(self, step: int, micro_batches: list[MicroBatch]) -> Measured:
        """Forward and backward over the micro-batches, then student, center and teacher move once."""
        student, teacher, loss, optimizer, scaler = self.state
        epoch = step // self.plan.steps_per_epoch
        optim.set_schedule(optimizer, float(self.lr[step]), float(self.weight_decay[step]))
        optimizer.zero_grad(set_to_none=True)
        outputs, features = [], []
        for number, batch in enumerate(micro_batches):
            is_last = number == len(micro_batches) - 1
            output, teacher_features = self.forward_backward(batch, step, epoch, is_last=is_last)
            outputs.append(output)
            features.append(teacher_features)
        scaler.unscale_(optimizer)
        grad_norm = clip_gradients(student.parameters(), self.config.clip_grad, self.config.clip_mode)
        if epoch < self.config.freeze_last_layer:
            optim.drop_last_layer_gradients(student.head)
        means = [torch.stack(values).mean(dim=0) for values in zip(*outputs, strict=True)]
        measured = Measured(means[0], means[1], means[2], grad_norm, torch.cat(features))
        if self.config.on_not_finite == "skip" and self._skips(step, measured):
            scaler.update()  # what was unscaled is done with; a scale that overflowed falls
            return measured
        scaler.step(optimizer)
        scaler.update()
        loss.update_center(means[3])
        optim.update_teacher(teacher, student, float(self.momentum[step]))
        return measured

    def forward_backward(
        self, batch: MicroBatch, step: int, epoch: int, *, is_last: bool
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
        self.drop_path.arm(step, batch.slots, self.device)
        dtype = self.config.dtype
        attention = fast_attention(self.device, None if self.config.compile else autocast_dtype(dtype))
        with gradients_in_step(self.forward_student, is_last=is_last):
            with autocast(self.device, dtype), attention:
                with torch.no_grad():
                    teacher_scores, features = self.state.teacher(groups[:1])
                student_scores, _ = self.forward_student(groups)
                output = self.state.loss(student_scores, teacher_scores, epoch)
            self.state.scaler.scale(output.loss / self.config.accumulate).backward()
        return (output.loss.detach(), *output[1:]), features

    # --- Watching, saving ---

    def _must_be_finite(self, measured: Measured) -> Tensor:
        # With loss scaling an overflowing gradient only skips the step.
        return measured.loss if self.state.scaler.is_enabled() else measured.loss + measured.grad_norm

    def _remember(self, measured: Measured) -> None:
        """Keep what must be finite until the next look, which costs a device synchronisation."""
        if not self.skipped:
            self.unchecked.append((self.step, self._must_be_finite(measured)))

    def _skips(self, step: int, measured: Measured) -> bool:
        """Whether this step is to change nothing, as its loss or gradient is not finite; it is then reported.

        Raises DivergedError where it is one too many in a row.
        """
        if distributed.all_reduce_mean(self._must_be_finite(measured).clone()).isfinite():
            self.skipped = 0
            return False
        self.skipped += 1
        self.state.optimizer.zero_grad(set_to_none=True)
        report = self._report_step(step + 1, [measured.loss.item()])
        if self.skipped > MOST_SKIPPED:
            raise DivergedError(f"{self.run}: {self.skipped} steps in a row are not finite; the last: {report}")
        if self.world.is_main:
            print(f"WARNING: step {step + 1} is not finite and skipped: {report}", file=sys.stderr)
        return True

    def _report_step(self, step: int, losses: list[float]) -> Path:
        """RUN/not_finite-STEP.json, and the state as it is, for whoever looks into it."""
        names = [self.images.name(image) for image in self.plan.images(step - 1)]
        done = step - 1  # the schedules' index
        facts = {
            "files": names,
            "mean_losses_from_this_step_on": [str(loss) for loss in losses],
            "lr": float(self.lr[done]),
            "weight_decay": float(self.weight_decay[done]),
            "momentum": float(self.momentum[done]),
            "scale": self.state.scaler.get_scale(),
            "not_finite_weights": self._not_finite_weights(),
        }
        if self.world.is_main:
            report_step(self.run, step, facts)
            run_folder.dump_state(self.run / DUMP_FILE, self.state, self.step)
        return self.run / f"not_finite-{step}.json"

    def _not_finite_weights(self) -> list[str]:
        """Names of weights of student and teacher with a value that is not finite."""
        networks = (("student", self.state.student), ("teacher", self.state.teacher))
        weights = [(f"{who}.{name}", weight) for who, net in networks for name, weight in net.named_parameters()]
        finite = torch.stack([weight.isfinite().all() for _, weight in weights]).tolist()
        return [name for (name, _), fine in zip(weights, finite, strict=True) if not fine]

    def _check_finite(self) -> None:
        if not self.unchecked:
            return
        steps, totals = zip(*self.unchecked, strict=True)
        means = distributed.all_reduce_mean(torch.stack(totals))
        finite = means.isfinite().tolist()
        self.unchecked.clear()
        if not all(finite):
            place = finite.index(False)
            self._stop(steps[place], means[place:].tolist(), "the loss or its gradient is")

    def _stop(self, step: int, losses: list[float], what: str) -> NoReturn:
        kept = self.run / STATE_FILE
        report = self._report_step(step, losses)
        raise DivergedError(
            f"{self.run}: stopped, {what} not finite since step {step}. "
            + (f"The last checkpoint, {kept}, is from before and kept. " if kept.exists() else "")
            + f"{report} lists the files of that batch, {DUMP_FILE} is the state. "
            "Try --dtype fp32, a lower --lr, a longer --warmup-epochs, or a smaller --clip-grad."
        )

    def _list_bad_samples(self, monitor: Monitor | None) -> None:
        """All processes together; each stops where there are too many."""
        name = self.images.name
        mine = [(self.step, name(bad.image), name(bad.replaced_by), bad.reason) for bad in self.bad]
        self.bad.clear()
        found = distributed.gather_objects(mine)
        said = self.bad_samples.add(found) if found else None
        if said and monitor:
            monitor.say(said)

    def _log(self, monitor: Monitor | None, measured: Measured) -> None:
        self._check_finite()
        self._list_bad_samples(monitor)
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

    def _save(self, monitor: Monitor | None) -> None:
        self._check_finite()
        if self._not_finite_weights():
            self._stop(self.step, [], "some weights are")
        self._list_bad_samples(monitor)
        if monitor:
            monitor.sync()  # a row of the log is on the disk before the state that follows it
            fingerprint, size = self.images.fingerprint, self.world.size
            run_folder.save_state(self.run, self.state, self.step, self.config, fingerprint, size)

    def _say_where_it_begins(self, monitor: Monitor | None) -> None:
        if not (monitor and self.origin):
            return
        for error in self.origin.damaged:
            monitor.say(f"WARNING: {error} Passed over for an older state; kept as *{run_folder.DAMAGED}.")
        changes = f" ({'; '.join(self.origin.changes)})" if self.origin.changes else ""
        monitor.say(f"{self.run}: goes on from {self.origin.file.name} at step {self.step}{changes}")
        if self.step >= self.plan.last_step:
            monitor.say(f"{self.run}: already finished, at step {self.step}")

    def _say_how_to_resume(self, monitor: Monitor | None) -> None:
        if monitor:
            monitor.say(
                f"Stopped at step {self.step} of {self.plan.last_step}; saved. Continue with: python -m "
                f"dino_dense.pretrain --config {self.run / run_folder.CONFIG_FILE} --resume"
            )
