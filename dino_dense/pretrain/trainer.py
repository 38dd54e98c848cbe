"""The training loop. A resumed run, and a batch split over processes or micro-batches, give the same result."""

import signal
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from dino_dense import distributed
from dino_dense.checkpoint import STATE_FILE, TEACHER_FILE
from dino_dense.config import schema
from dino_dense.distributed import World
from dino_dense.loaders import lost_workers_explained
from dino_dense.pretrain import run_folder
from dino_dense.pretrain.batches import GroupedSource, ImageSource, MicroBatch, build_loader, pretraining_plan
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.conflicts import RunSize, check_conflicts
from dino_dense.pretrain.guard import Guard
from dino_dense.pretrain.monitor import Monitor, feature_spectrum
from dino_dense.pretrain.optim import build_schedules
from dino_dense.pretrain.run_folder import ResumePoint, Snapshot
from dino_dense.pretrain.step import Measured, OptimizerStep
from dino_dense.pretrain.trackers import check_tracker, open_tracker
from dino_dense.pretrain.watch import (
    CHECKPOINT_FILE,
    WORSE,
    Measure,
    Watcher,
    WorseError,
    in_own_process,
    lines_of,
)
from dino_dense.threads import processors
from dino_dense.training.precision import fastest_dtype, set_products, use_deterministic_operations
from dino_dense.training.signals import stop_signals

HEARTBEAT = 60.0
"""Seconds between the calls by which processes wait for a measurement."""
MAX_WORKERS = 10
"""Loader processes per training process (main_dino.py, --num_workers)."""
QUIET_STEPS = 1000
"""Steps without collapse warnings, at most: the loss of the published vanilla run leaves ln K long before step 2,500
(dino issue 69)."""


@dataclass(frozen=True)
class TrainResult:
    """The result of `Trainer.train`."""

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

    Raises (here or in `train`):
        ValueError: settings do not fit the pictures or the machine.
        RunError: the run folder cannot be used.
        DivergedError: training diverged; the last checkpoint is always kept.
    """

    def __init__(self, config: PretrainConfig, images: ImageSource, world: World, device: torch.device) -> None:
        if config.dtype == "auto":
            config = replace(config, dtype=fastest_dtype(device))
        set_products(device, config.dtype)
        if config.deterministic and device.type == "cuda":
            use_deterministic_operations()
        if config.augment_on == "auto":
            config = replace(config, augment_on="device" if device.type == "cuda" else "loader")
        self.config, self.images, self.world, self.device = config, images, world, device
        self.run = Path(config.out)
        check_tracker(config.tracker)
        resumes = run_folder.check_folder(self.run, config.resume)
        groups = images.read_groups if isinstance(images, GroupedSource) else None
        self.plan = pretraining_plan(len(images), config, world, groups)
        schedules = build_schedules(config, self.plan.steps_per_epoch)
        self.warnings = [] if resumes else check_conflicts(config, self._size(float(schedules.momentum.prod())))
        self.stepper = OptimizerStep(config, schedules, self.plan.steps_per_epoch, world, device)
        self.config = config = self.stepper.config  # which knows the architecture of `start`
        self.resume_point: ResumePoint | None = None
        if resumes:
            self.resume_point = run_folder.load_state(
                self.run, self.stepper.state, config, images.fingerprint, world.size
            )
        self.step = self.resume_point.step if self.resume_point else 0
        self.monitor: Monitor | None = None
        """In the main process during training."""
        self.measure: Measure | None = None
        """How to measure the teacher (`watch`); None: by the tasks' command."""

    def train(self) -> TrainResult:
        """Train to the end, or to the first SIGINT or SIGTERM, which saves a checkpoint."""
        self._open_folder()
        config, plan = self.config, self.plan
        guard = Guard(config, self.images, plan, self.world, self.stepper, self.step)
        with (
            stop_signals() as received,
            lost_workers_explained(str(self.run), "Then resume."),
            self._reporting(),
            closing(self._micro_batches()) as batches,
        ):
            self._say_where_it_begins()
            watcher = self._watcher(received)
            if watcher and not self.step:
                self._watch(watcher)
            while self.step < plan.last_step:
                micro_batches = [next(batches) for _ in range(config.accumulate)]
                rested = self.stepper.rests(self.step)
                measured = self.stepper.run(self.step, micro_batches, guard.skips)
                self.step += 1
                if rested and not self.stepper.rests(self.step):
                    self.say(f"{self.run}: the heads have learned alone for {self.step} steps; now the backbone too")
                guard.record(measured, micro_batches)
                if self.monitor:
                    self.monitor.tick()
                if self._is_due(config.log_every) or self.step == 1:
                    self.say(guard.check_steps())
                    self._log(measured)
                stopped = distributed.any_true(bool(received))
                if stopped or self._is_due(config.save_every or plan.steps_per_epoch):
                    self.say(guard.check_steps())
                    guard.check_weights()
                    self._save()
                if stopped:
                    self._say_how_to_resume()
                    return TrainResult(self.step, received[0] if received else int(signal.SIGTERM))
                if watcher and self._is_due(config.watch_every or plan.steps_per_epoch):
                    self._watch(watcher)
        return TrainResult(self.step, None)

    def _size(self, first_weights: float) -> RunSize:
        plan = self.plan
        return RunSize(plan.n_images, plan.total_steps, plan.last_step, self.world.size, first_weights)

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.plan.last_step

    def _micro_batches(self) -> Generator[MicroBatch]:
        workers = self.config.num_workers
        if workers is None:
            workers = min(MAX_WORKERS, processors())
        pin = self.device.type == "cuda"
        return build_loader(self.images, self.plan, self.step, self.config, workers, pin)

    # --- Watching ---

    def _watcher(self, received: list[int]) -> Watcher | None:
        config = self.config
        if not config.watch:
            return None
        measure = self.measure or in_own_process(config.device, lambda: bool(received))
        return Watcher(self.run, config.watch, measure, writes=self.world.is_main)

    def _watch(self, watcher: Watcher) -> None:
        """Measure the teacher in the main process; the others wait, and raise what it raises."""
        taken = run_folder.snapshot(self.stepper.state)
        if self.world.size == 1:
            self._measure(watcher, taken)
            return
        with ThreadPoolExecutor(1) as pool:
            work = [pool.submit(self._measure, watcher, taken)] if self.world.is_main else []
            # A collective call may not wait longer than half an hour, and a measurement may take hours.
            while distributed.any_true(bool(wait(work, HEARTBEAT).not_done)):
                pass
        errors = [error for job in work if (error := job.exception())]
        for problem in distributed.gather_objects(errors):
            raise problem

    def _measure(self, watcher: Watcher, taken: Snapshot) -> None:
        fingerprint, world = self.images.fingerprint, self.world.size
        checkpoint = watcher.folder / CHECKPOINT_FILE
        run_folder.save_teacher(checkpoint, taken, {"step": self.step})
        rows = watcher.measured(self.step, checkpoint)
        if rows is None:  # stopped by a signal
            return
        for line in lines_of(rows):
            self.say(f"{self.run}: step {self.step}: {line}")
        if self.monitor:
            named = zip(rows["task"], rows["metric"], rows["value"], strict=True)
            self.monitor.track(self.step, {f"watch/{task} {metric}": value for task, metric, value in named})
        if not self.config.rollback:
            return
        worse = rows[rows["verdict"] == WORSE]
        if not len(worse):
            if watcher.is_best(self.step):
                run_folder.save_best(self.run, taken, self.step, self.config, fingerprint, world)
            return
        best = run_folder.restore_best(self.run, taken.state, self.config, fingerprint, world)
        raise WorseError(
            f"{self.run}: stopped at step {self.step}, worse than at the start: {'; '.join(lines_of(worse))}. The best "
            f"state, of step {best}, is restored as {STATE_FILE} and {TEACHER_FILE}. Try a lower "
            "--lr or --backbone-lr, --heads-first flat, or --trainable last:3."
        )

    # --- What it says, what it writes ---

    def say(self, text: str | None) -> None:
        """Print a line for the user, from the main process only."""
        if text and self.monitor:
            self.monitor.say(text)

    def _open_folder(self) -> None:
        # All processes must read the folder before any of them writes to it.
        steps = set(distributed.gather_objects([self.step]))
        if len(steps) > 1:
            raise run_folder.RunError(f"{self.run}: the processes read states of different steps, {sorted(steps)}.")
        if self.world.is_main:
            run_folder.open_folder(self.run, self.config, self.resume_point.damaged if self.resume_point else ())

    @contextmanager
    def _reporting(self) -> Generator[None]:
        if self.world.is_main:
            learner = self.stepper.state.learner
            parts = learner.parts().values()
            quiet = min(self.config.warmup_epochs * self.plan.steps_per_epoch, QUIET_STEPS)
            watches = [watch for part in parts if (watch := part.watch(quiet))]
            levels = {label: value for part in parts for label, value in part.levels().items()}
            last, size = self.plan.last_step, self.config.batch_size
            tracker = open_tracker(self.config.tracker, self.run, schema.to_plain(self.config))
            self.monitor = Monitor(self.run, self.step, last, size, learner.columns(), watches, levels, tracker)
        try:
            yield
        finally:
            if self.monitor:
                self.monitor.close()

    def _log(self, measured: Measured) -> None:
        tensors = {"loss": measured.loss, **measured.logged, "grad_norm": measured.grad_norm}
        means = distributed.all_reduce_mean(torch.stack(list(tensors.values())).float()).tolist()
        features = distributed.all_gather(measured.features)
        if self.monitor is None:
            return
        number = self.step - 1
        schedules, step = self.stepper.schedules, self.stepper.moment(number)
        spread, share, rank = feature_spectrum(features)
        row = {
            **dict(zip(tensors, means, strict=True)),
            "epoch": round(self.step / self.plan.steps_per_epoch, 4),
            "lr": float(schedules.lr[number]),
            "wd": float(schedules.weight_decay[number]),
            "momentum": float(schedules.momentum[number]),
            "feature_std": spread,
            "top_eigenvalue_share": share,
            "effective_rank": rank,
        }
        for part in self.stepper.state.learner.parts().values():
            row |= part.scheduled(step)
        self.monitor.log(self.step, row)

    def _save(self) -> None:
        taken = run_folder.snapshot(self.stepper.state)
        if self.monitor:
            self.monitor.sync()  # the log reaches the disk before the state, which may be resumed from
            run_folder.save_state(self.run, taken, self.step, self.config, self.images.fingerprint, self.world.size)

    def _say_where_it_begins(self) -> None:
        if not self.resume_point:
            for warning in self.warnings:
                self.say(warning)
            for line in self.stepper.begins_with:
                self.say(f"{self.run}: {line}")
            return
        for error in self.resume_point.damaged:
            self.say(f"WARNING: {error} An older state is used; this one is kept as *{run_folder.DAMAGED}.")
        changes = f" ({'; '.join(self.resume_point.changes)})" if self.resume_point.changes else ""
        self.say(f"{self.run}: resumes from {self.resume_point.file.name} at step {self.step}{changes}")
        if self.step >= self.plan.last_step:
            self.say(f"{self.run}: already finished, at step {self.step}")

    def _say_how_to_resume(self) -> None:
        self.say(
            f"Stopped at step {self.step} of {self.plan.last_step}; saved. Continue with: python -m "
            f"dino_dense.pretrain --config {self.run / run_folder.CONFIG_FILE} --resume"
        )
