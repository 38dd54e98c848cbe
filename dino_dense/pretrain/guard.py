"""Checks the steps of a run: non-finite values stop the run or skip the step, unreadable pictures are listed."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from dino_dense import distributed
from dino_dense.checkpoint import STATE_FILE
from dino_dense.distributed import World
from dino_dense.files import write_text
from dino_dense.pretrain import run_folder
from dino_dense.pretrain.bad_samples import BadSample, BadSamples
from dino_dense.pretrain.batches import ImageSource, MicroBatch
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.step import Measured, OptimizerStep
from dino_dense.training.gradients import DivergedError
from dino_dense.training.plan import Plan
from dino_dense.training.sharding import own_part

DUMP_FILE = "not_finite.safetensors"
"""The training state when a non-finite step is noticed, which may be some steps later."""
MOST_SKIPPED = 10
"""Steps that may be skipped in a row: a single bad batch does not explain more."""
MOST_OVERFLOWS = 10
"""Steps in a row whose gradients may overflow under loss scaling. Each halves the scale from 2^16 on: healthy gradients
fit after a few."""


class Guard:
    """Checks steps. Every process makes the same calls; the main process writes.

    Args:
        config, images, plan, world: the run's.
        stepper: its state is checked.
        start_step: optimizer steps already done.

    Methods raise DivergedError and BadSamplesError.
    """

    def __init__(
        self,
        config: PretrainConfig,
        images: ImageSource,
        plan: Plan,
        world: World,
        stepper: OptimizerStep,
        start_step: int,
    ) -> None:
        self.run, self.config, self.images, self.plan = Path(config.out), config, images, plan
        self.world, self.stepper = world, stepper
        self.step = start_step
        """Optimizer steps done, including skipped steps."""
        most = config.max_bad_samples
        self.bad_samples = BadSamples(self.run, start_step, len(images), most, writes=world.is_main)
        self.bad: list[BadSample] = []
        """Bad samples since the last check."""
        self.unchecked: list[tuple[int, Tensor]] = []
        """Steps since the last check, with the values that must be finite and the gradient's norm. A check waits for
        the device."""
        self.overflows = 0
        """Steps in a row whose gradients overflowed under loss scaling: they changed no weight."""
        self.skipped = 0
        """Steps skipped in a row."""

    def skips(self, number: int, measured: Measured) -> bool:
        """Whether to skip step `number` (0-based) because its loss or gradient is not finite.

        A skipped step is reported. More than `MOST_SKIPPED` in a row stop the run.
        """
        if self.config.on_not_finite != "skip":
            return False
        if distributed.all_reduce_mean(self._must_be_finite(measured).clone()).isfinite():
            self.skipped = 0
            return False
        self.skipped += 1
        report = self._report(number + 1, [measured.loss.item()])
        if self.skipped > MOST_SKIPPED:
            raise DivergedError(f"{self.run}: {self.skipped} steps in a row are not finite; the last: {report}")
        if self.world.is_main:
            print(f"WARNING: step {number + 1} is not finite and skipped: {report}", file=sys.stderr)
        return True

    def record(self, measured: Measured, micro_batches: Sequence[MicroBatch]) -> None:
        """Record a finished step for the next check."""
        self.step += 1
        self.bad += [bad for batch in micro_batches for bad in batch.bad]
        if not self.skipped:
            self.unchecked.append((self.step, torch.stack([self._must_be_finite(measured), measured.grad_norm])))

    def check_steps(self) -> str | None:
        """Check all steps since the last check, in all processes together. Returns a warning about bad pictures."""
        if self.unchecked:
            steps, totals = zip(*self.unchecked, strict=True)
            means = distributed.all_reduce_mean(torch.stack(totals)).cpu()
            losses, gradients = means.isfinite().T.tolist()
            self.unchecked.clear()
            if not all(losses):
                first = losses.index(False)
                self._stop(steps[first], means[first:, 0].tolist(), "the loss or its gradient is")
            self._count_overflows(steps, gradients)
        name = self.images.name
        rows = [(self.step, name(bad.image), name(bad.replaced_by), bad.reason) for bad in self.bad]
        self.bad.clear()
        rows = distributed.gather_objects(rows)
        return self.bad_samples.add(rows) if rows else None

    def _count_overflows(self, steps: Sequence[int], finite: Sequence[bool]) -> None:
        """Stop where loss scaling has skipped too many steps in a row: their gradients overflow at any scale."""
        for step, fine in zip(steps, finite, strict=True):
            self.overflows = 0 if fine else self.overflows + 1
            if self.overflows > MOST_OVERFLOWS:
                self._stop(step - MOST_OVERFLOWS, [], f"the gradients of {self.overflows} steps in a row are")

    def check_weights(self) -> None:
        """Stop the run if weights are not finite, before they are saved."""
        if self._not_finite_weights():
            self._stop(self.step, [], "some weights are")

    def _must_be_finite(self, measured: Measured) -> Tensor:
        # With loss scaling an overflowing gradient only skips the step; `_count_overflows` looks at those.
        scales = self.stepper.state.scaler.is_enabled()
        return measured.loss if scales else measured.loss + measured.grad_norm

    def _not_finite_weights(self) -> list[str]:
        """Names of weights with a value that is not finite."""
        learner, teacher = self.stepper.state[:2]
        weights = [*learner.named_parameters(), *((f"teacher.{name}", w) for name, w in teacher.named_parameters())]
        wrong = torch.stack([(~own_part(weight).isfinite()).sum() for _, weight in weights])
        if self.config.shard:
            wrong = distributed.all_reduce_sum(wrong)
        return [name for (name, _), count in zip(weights, wrong.tolist(), strict=True) if count]

    def _report(self, step: int, losses: list[float]) -> Path:
        """Write RUN/not_finite-STEP.json with the step's values and files, and the training state."""
        path = self.run / f"not_finite-{step}.json"
        names = [self.images.name(image) for image in self.plan.images(step - 1)]
        schedules = self.stepper.schedules
        content = {
            "step": step,
            "files": names,
            "mean_losses_from_this_step_on": [str(loss) for loss in losses],
            "lr": float(schedules.lr[step - 1]),
            "weight_decay": float(schedules.weight_decay[step - 1]),
            "momentum": float(schedules.momentum[step - 1]),
            "scale": self.stepper.state.scaler.get_scale(),
            "not_finite_weights": self._not_finite_weights(),
        }
        snapshot = run_folder.snapshot(self.stepper.state)
        if self.world.is_main:
            write_text(path, json.dumps(content, indent=1) + "\n")
            run_folder.dump_state(self.run / DUMP_FILE, snapshot, self.step)
        return path

    def _stop(self, step: int, losses: list[float], subject: str) -> NoReturn:
        kept = self.run / STATE_FILE
        report = self._report(step, losses)
        raise DivergedError(
            f"{self.run}: stopped, {subject} not finite since step {step}. "
            + (f"The last checkpoint, {kept}, is from before that step. " if kept.exists() else "")
            + f"{report} lists the files of that batch, {DUMP_FILE} is the state. "
            "Try --dtype fp32, a lower --lr, a longer --warmup-epochs, or a smaller --clip-grad."
        )
