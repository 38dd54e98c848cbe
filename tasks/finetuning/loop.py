"""The training loop. Resumes, and splits over processes or micro-batches, give the same weights.

Shapes: B images a step over all processes, b in one micro-batch, K classes.
"""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dino_dense import Backbone, distributed
from dino_dense.progress import Progress
from dino_dense.training.batchnorm import synchronized
from dino_dense.training.gradients import DivergedError, clip_gradients, gradients_in_step
from dino_dense.training.losses import LOOK_EVERY, PendingLosses
from dino_dense.training.precision import autocast, grad_scaler
from dino_dense.training.recompute import recompute_blocks
from dino_dense.training.signals import stop_signals
from tasks.finetuning import files
from tasks.finetuning.batches import LabeledBatch, PairedPlan, TrainingImages, TrainingTransform, training_loader
from tasks.finetuning.config import FinetuneConfig
from tasks.finetuning.measure import Predictions, predict
from tasks.finetuning.network import Classifier, DropPathMasks
from tasks.finetuning.recipe import build_mixer, build_optimizer, set_learning_rate
from tasks.harness.session import Session
from tasks.images.labeled import LabeledSet


class FineTuning:
    """A fine-tuning run, on a copy of the backbone's network.

    Raises (here or in `train`):
        ValueError: settings do not fit the network, the images or the number of processes.
        DataError: an image is unreadable.
        DivergedError: the loss is not finite.
    """

    def __init__(self, backbone: Backbone, config: FinetuneConfig, images: LabeledSet, session: Session) -> None:
        self.backbone, self.config, self.images, self.session = backbone, config, images, session
        self.plan = PairedPlan(len(images.train.paths), config, session.world, session.seed)
        self.classes = images.train.class_names
        self._build_network()
        self.mix = build_mixer(config, len(self.classes), session.seed)
        self.step = 0
        self.loss_sum, self.loss_steps = 0.0, 0
        self.pending = PendingLosses()
        self.log: list[dict[str, float]] = []
        self.predictions: Predictions | None = None

    def _build_network(self) -> None:
        config, session, device = self.config, self.session, self.backbone.device
        body = copy.deepcopy(self.backbone.module).requires_grad_(True)
        self.drop_path = DropPathMasks(body, config.drop_path, self.plan.batch_size, session.seed)
        if config.activation_checkpointing:
            recompute_blocks(body, self.backbone.name)
        model = Classifier(body, len(self.classes), config.head_init_scale, session.seed).to(device)
        if session.world.size > 1 and device.type == "cuda":  # PyTorch has no SyncBatchNorm on the CPU
            model = synchronized(model)
        average = None
        if config.ema_decay is not None:
            average = ModelEmaV3(model, config.ema_decay, use_warmup=True)
        optimizer = build_optimizer(model, config, self.plan.batch_size)
        scaler = grad_scaler(device, config.amp)
        self.state = files.State(model, average, optimizer, scaler)
        self.forward: nn.Module = model
        if session.world.size > 1:
            self.forward = DistributedDataParallel(model, gradient_as_bucket_view=True)

    @property
    def measured_network(self) -> Classifier:
        """The network to evaluate and save: the moving average if there is one."""
        return self.state.model if self.state.average is None else self.state.average.module

    # --- The loop ---

    def train(self) -> Predictions:
        """Train to the end, resuming an earlier run. Returns the predictions of the last weights on the test images.

        SIGINT and SIGTERM save the state first.

        Raises:
            KeyboardInterrupt: after such a signal.
        """
        self._restore()
        with stop_signals() as received, self._progress() as bar:
            batches = self.micro_batches()
            while self.step < self.plan.last_step:
                self._train_step([next(batches) for _ in range(self.config.accumulate)], bar)
                stopped = distributed.any_true(bool(received))
                every = self.config.save_every
                if stopped or self._is_due(self.plan.steps_per_epoch) or (every and self._is_due(every)):
                    self.save()
                if stopped:
                    raise KeyboardInterrupt
                self._measure_if_due()
        if self.predictions is None:  # the run was finished before
            self.predictions = self._predict()
        self._save_model(files.MODEL_FILE)
        return self.predictions

    def _restore(self) -> None:
        if not self._file(files.STATE_FILE).is_file():
            return
        metadata = files.load_state(self._file(files.STATE_FILE), self.state)
        self.step, self.loss_sum, self.loss_steps = metadata["step"], metadata["loss_sum"], metadata["loss_steps"]
        self.log = files.read_log(self.session.out / files.LOG_FILE, self.step)
        self._measure_if_due()

    def _is_due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.plan.last_step

    def _progress(self) -> Progress:
        batch = self.plan.batch_size
        return self.session.bar(self.plan.last_step * batch, "fine-tune", initial=self.step * batch)

    def micro_batches(self) -> Iterator[LabeledBatch]:
        backbone, config = self.backbone, self.config
        dataset = TrainingImages(self.images.train, TrainingTransform(config, backbone.mean), self.session.seed)
        pin = backbone.device.type == "cuda"
        return training_loader(dataset, self.plan, self.step, config.workers, pin)

    # --- One step ---

    def _train_step(self, micro_batches: list[LabeledBatch], bar: Progress) -> None:
        self.optimizer_step(micro_batches)
        self.step += 1
        bar.update(self.plan.batch_size)
        if len(self.pending) == LOOK_EVERY or self.step == self.plan.last_step:
            self._look_at_losses()
            bar.set_postfix_str(f"loss={self.loss_sum / self.loss_steps:.4f}", refresh=False)

    def _look_at_losses(self) -> None:
        """Check and add up the losses since the last look, in all processes together."""
        for step, loss, finite in self.pending.take(mean=True):
            if not finite:
                self._stop_diverged(step)
            self.loss_sum, self.loss_steps = self.loss_sum + loss, self.loss_steps + 1

    def optimizer_step(self, micro_batches: list[LabeledBatch]) -> None:
        """Forward and backward over the micro-batches, then one update; the mean loss of the batch is pending."""
        model, average, optimizer, scaler = self.state
        model.train()
        set_learning_rate(optimizer, self.config, self.plan, self.step)
        optimizer.zero_grad(set_to_none=True)
        last = len(micro_batches) - 1
        losses = [self._forward_backward(batch, is_last=number == last) for number, batch in enumerate(micro_batches)]
        scaler.unscale_(optimizer)
        norm = clip_gradients(model.parameters(), self.config.clip_grad or 0.0, "global")
        loss = torch.stack(losses).mean()
        # With loss scaling, a gradient that overflows only skips the step.
        self.pending.add(self.step + 1, loss, loss if scaler.is_enabled() else loss + norm)
        scaler.step(optimizer)
        scaler.update()
        if average is not None:
            average.update(model, self.step + 1)

    def _forward_backward(self, batch: LabeledBatch, *, is_last: bool) -> Tensor:
        """Add a micro-batch's gradients; returns its mean loss."""
        device = self.backbone.device
        images, targets = self.mix(
            batch.images(self.backbone.mean, self.backbone.std, device),
            batch.labels.to(device, non_blocking=True),
            batch.slots,
            self.step,
        )
        self.drop_path.set_masks(self.step, batch.slots, device)
        with gradients_in_step(self.forward, is_last=is_last):
            with autocast(device, self.config.amp):
                scores = self.forward(images)
            loss = F.cross_entropy(scores.float(), targets)
            self.state.scaler.scale(loss / self.config.accumulate).backward()
        return loss.detach()

    def _stop_diverged(self, step: int) -> NoReturn:
        kept = self._file(files.STATE_FILE)
        before = f"The state of {kept} is from before. " if kept.exists() else ""
        raise DivergedError(
            f"{self.session.out}: stopped, the loss or its gradient is not finite in step {step}. {before}"
            "Start again elsewhere with --amp off, a lower --lr, a longer --warmup-epochs, or --clip-grad 1."
        )

    # --- Measuring, saving ---

    def _measure_if_due(self) -> None:
        """At the end of an epoch: evaluate, add a row to the log, and save the best weights so far."""
        if not self._is_due(self.config.eval_every * self.plan.steps_per_epoch):
            return
        self._look_at_losses()
        if not self.log or self.log[-1]["step"] < self.step:
            self.predictions = self._predict()
            best = max((row["top-1"] for row in self.log), default=-math.inf)
            self.log.append(self._row(self.predictions))
            if self.log[-1]["top-1"] > best:
                self._save_model(files.BEST_FILE)
            self.session.once(files.write_log, self.session.folder() / files.LOG_FILE, self.log)
        self.loss_sum, self.loss_steps = 0.0, 0

    def _row(self, predictions: Predictions) -> dict[str, float]:
        labels = self.images.test.labels
        return {
            "step": self.step,
            "epoch": round(self.step / self.plan.steps_per_epoch, 4),
            "lr": max(group["lr"] for group in self.state.optimizer.param_groups),
            "train_loss": self.loss_sum / self.loss_steps,
            "test_loss": float(predictions.loss.double().mean()),
            "top-1": predictions.top1(labels),
        }

    def _predict(self) -> Predictions:
        micro = self.plan.batch_size // self.plan.shares
        return predict(self.measured_network, self.backbone, self.images.test, self.config, micro, self.session)

    def save(self) -> None:
        self._look_at_losses()
        metadata = {"step": self.step, "loss_sum": self.loss_sum, "loss_steps": self.loss_steps}
        self.session.once(files.save_state, self._file(files.STATE_FILE), self.state, metadata)

    def _save_model(self, name: str) -> None:
        backbone = self.backbone
        metadata = {
            "step": self.step,
            "from": backbone.spec,
            "classes": self.classes,
            "crop": self.config.crop,
            "mean": backbone.mean,
            "std": backbone.std,
        }
        self.session.once(files.save_model, self._file(name), self.measured_network, metadata)

    def _file(self, name: str) -> Path:
        return self.session.folder("checkpoints") / name
