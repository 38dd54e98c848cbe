"""One optimizer step: forward and backward over its micro-batches, then updates of student, statistics and teacher.

Shapes: B images per step over all processes, b images in one micro-batch, V views, C features.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from dino_dense import distributed
from dino_dense.backbone.cpu_attention import fast_attention
from dino_dense.backbone.dinov3 import DinoV3
from dino_dense.backbone.grid import check_whole
from dino_dense.distributed import World
from dino_dense.pretrain import objectives, optim
from dino_dense.pretrain.anchor import Anchor
from dino_dense.pretrain.batches import MicroBatch
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.crops import prepare
from dino_dense.pretrain.network import (
    DropPathKeys,
    MultiCropNetwork,
    build_network,
    compile_blocks,
    shared_units,
    teacher_of,
)
from dino_dense.pretrain.objective import Objective, Step, Terms, Views
from dino_dense.pretrain.optim import Schedules
from dino_dense.pretrain.rotary import RotaryJitter
from dino_dense.pretrain.start import HeadsFirst, freeze, load_heads, open_start, trainable_copy
from dino_dense.training.batchnorm import synchronized
from dino_dense.training.gradients import clip_gradients, gradients_in_step
from dino_dense.training.precision import autocast, autocast_dtype, grad_scaler
from dino_dense.training.sharding import shard

Means = Mapping[str, Mapping[str, Tensor]]
"""Objective -> statistic -> its mean over the micro-batches of this process."""


class Total(NamedTuple):
    """The sum of all objectives' terms in one micro-batch."""

    loss: Tensor
    logged: Mapping[str, Tensor]
    statistics: Means
    """Objective -> its statistics."""


class Learner(nn.Module):
    """All trained modules: the student, and the objectives with their heads."""

    def __init__(self, student: MultiCropNetwork, parts: nn.ModuleDict) -> None:
        super().__init__()
        self.student, self.objectives = student, parts
        self.heads_first: HeadsFirst | None = None
        """Of a run whose heads learn alone at first."""

    def parts(self) -> dict[str, Objective]:
        """Name -> objective."""
        return dict(self.objectives.items())  # type: ignore[arg-type]

    def masks(self, step: Step, slots: Sequence[int], grid: tuple[int, int]) -> Tensor | None:
        """The masks of the objective that masks patches; None without such an objective."""
        drawn = (part.masks(step, slots, grid) for part in self.parts().values())
        return next((masks for masks in drawn if masks is not None), None)

    def forward(self, groups: Sequence[Tensor], teacher: Views, step: Step, masks: Tensor | None) -> Total:
        """Groups of crops and the teacher's views -> the weighted sum of the objectives."""
        views = self.student(groups, masks)
        terms: dict[str, Terms] = {name: part(views, teacher, step) for name, part in self.parts().items()}
        weighted = [self.parts()[name].weight(step) * term.loss for name, term in terms.items()]
        logged = {column: value for term in terms.values() for column, value in term.logged.items()}
        if len(terms) > 1:
            logged |= {f"{name}_loss": term.loss.detach() for name, term in terms.items()}
        return Total(torch.stack(weighted).sum(), logged, {name: term.statistics for name, term in terms.items()})

    def columns(self) -> list[str]:
        """The log columns of all objectives."""
        own = [column for part in self.parts().values() for column in part.columns]
        return own + ([f"{name}_loss" for name in self.parts()] if len(self.parts()) > 1 else [])


class TrainingState(NamedTuple):
    """All that training changes, except the step number."""

    learner: Learner
    teacher: MultiCropNetwork
    optimizer: Optimizer
    scaler: GradScaler

    def averaged(self) -> tuple[nn.ModuleList, nn.ModuleList]:
        """The teacher with its heads, and the modules that they average, in the same order."""
        parts = self.learner.parts().values()
        heads = [(part.teacher_head, part.student_head) for part in parts]
        pairs = [(teacher, student) for teacher, student in heads if teacher is not None and student is not None]
        followers, leaders = zip((self.teacher, self.learner.student), *pairs, strict=True)
        return nn.ModuleList(followers), nn.ModuleList(leaders)


class Measured(NamedTuple):
    """The values of a step, still on the device; means over this process's share of the batch."""

    loss: Tensor
    grad_norm: Tensor
    logged: Mapping[str, Tensor]
    features: Tensor
    """[2*b, C] over all micro-batches: the teacher's features of the global crops."""


class OptimizerStep:
    """Builds the networks from the seed, and trains them step by step.

    Args:
        config: all settings; dtype and augment_on are resolved (not auto).
        schedules: a value for each step.
        steps_per_epoch: optimizer steps.
        world, device: from `distributed.session`.

    Raises:
        ValueError: the network does not fit the settings.
    """

    def __init__(
        self, config: PretrainConfig, schedules: Schedules, steps_per_epoch: int, world: World, device: torch.device
    ) -> None:
        self.config, self.schedules, self.device = config, schedules, device
        self.steps_per_epoch = steps_per_epoch
        self.begins_with: list[str] = []
        """Lines for the user: where the weights of a run with `start` are from. The config then names its arch."""
        self.grid: tuple[int, int] | None = None
        """Patches of a global crop (h, w), if an objective needs patch tokens."""
        learner, teacher = self._build()
        self.drop_path = DropPathKeys(
            learner.student, config.n_views, config.batch_size, config.seed, skip_dropped=config.skip_dropped
        )
        if isinstance(learner.student.backbone, DinoV3):
            blocks = len(learner.student.backbone.blocks)
            learner.student.rotary = RotaryJitter(config, blocks, groups=2, seed=config.seed)
        if world.size > 1 and device.type == "cuda":  # PyTorch has no SyncBatchNorm on the CPU
            learner, teacher = synchronized(learner), synchronized(teacher)
        if config.activation_checkpointing:
            learner.student.recompute_blocks(self.config.arch)
        if config.compile:
            self.drop_path.make_blocks_alike(learner.student)
            compile_blocks(learner.student)
            compile_blocks(teacher)
        if config.shard and world.size > 1:
            shard(self._shared_units(learner, teacher), device)
        elif config.shard:
            self.begins_with.append("shard has no effect on one process, which holds all weights")
        learner, teacher = learner.to(device), teacher.to(device)
        optimizer = optim.build_optimizer(config.optimizer, learner, self._lr_of(learner))
        self.state = TrainingState(learner, teacher, optimizer, grad_scaler(device, config.dtype))
        self.followers, self.leaders = self.state.averaged()
        self.forward: nn.Module = learner
        if world.size > 1 and not config.shard:
            self.forward = DistributedDataParallel(learner, gradient_as_bucket_view=True)

    def _shared_units(self, learner: Learner, teacher: MultiCropNetwork) -> list[nn.Module]:
        """All parts whose weights the processes share out, inner ones first."""
        arch = self.config.arch
        heads = [head for part in learner.parts().values() for head in (part.student_head, part.teacher_head) if head]
        anchors = [module for module in learner.objectives.modules() if isinstance(module, Anchor)]
        frozen = [block for anchor in anchors for block in getattr(anchor.backbone, "blocks", ())]
        parts = [*shared_units(learner.student, arch), *shared_units(teacher, arch), *heads, *frozen]
        return [*dict.fromkeys(parts), learner]  # a head that two objectives share is one part

    def _lr_of(self, learner: Learner) -> Callable[[str], float]:
        """Name of a parameter -> factor on its learning rate."""
        decay, patch_embed = self.config.layer_decay, self.config.patch_embed_lr
        backbone_lr = self.config.backbone_lr
        if decay == patch_embed == 1:
            return lambda name: backbone_lr if name.startswith("student.backbone.") else 1.0
        blocks = getattr(learner.student.backbone, "blocks", None)
        if blocks is None:
            raise ValueError(
                f"layer_decay is {decay} and patch_embed_lr {patch_embed}, but {self.config.arch} has no blocks: set 1"
            )
        depth = len(blocks)

        def lr_of(name: str) -> float:
            part = backbone_lr if name.startswith("student.backbone.") else 1.0
            return part * optim.lr_multiplier(name, depth, decay, patch_embed)

        return lr_of

    def _build(self) -> tuple[Learner, MultiCropNetwork]:
        """All networks, with weights drawn from the seed."""
        body = self._start_body() if self.config.start else None
        config = self.config
        needs_patches = any(objectives.get(name).needs_patches for name in config.objectives)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            student = build_network(config, config, needs_patches=needs_patches, body=body)
            parts = objectives.build(config.objectives, config, int(student.backbone.num_features))
        learner = Learner(student, parts)
        if config.start:
            self.begins_with += load_heads(config, learner.parts())
        if config.heads_first:
            learner.heads_first = HeadsFirst(config.heads_first)
        if needs_patches:
            patch = student.backbone.shape.patch_size
            side = config.global_crop_size // patch
            self.grid = (side, side)
            if config.larger_crops:
                check_whole("gram_crop_size", config.larger_crops.size, patch, config.arch)
            if any(type(part).masks is not Objective.masks for part in learner.parts().values()):
                student.add_mask_token()
        teacher = teacher_of(student)
        for part in learner.parts().values():
            part.connect(learner.parts(), teacher)
        freeze(student.backbone, config.trainable)
        return learner, teacher

    def _start_body(self) -> nn.Module:
        """The body of the checkpoint that the run begins with; the config gets its architecture."""
        config = self.config
        start = open_start(config)
        if config.arch not in (PretrainConfig.arch, start.name):
            raise ValueError(f"arch is {config.arch}, but start is a {start.name}: leave arch out")
        if config.shaped:
            raise ValueError(f"{', '.join(config.shaped)} is set, but start has a body of its own: leave it out")
        self.config = replace(config, arch=start.name)
        self.begins_with += [f"begins with the weights of {config.start} ({start.name})", *start.notes]
        return trainable_copy(start.module, config.drop_path_rate)

    def moment(self, number: int) -> Step:
        """The `Step` with this number (0-based)."""
        return Step(number, number // self.steps_per_epoch)

    def run(
        self,
        number: int,
        micro_batches: Sequence[MicroBatch],
        is_skipped: Callable[[int, Measured], bool] = lambda number, measured: False,
    ) -> Measured:
        """Forward and backward over the micro-batches, then one update, unless the step is skipped."""
        learner, _, optimizer, scaler = self.state
        step = self.moment(number)
        if learner.student.rotary:
            learner.student.rotary.set_step(number, self.device)
        optim.set_schedule(optimizer, float(self.schedules.lr[number]), float(self.schedules.weight_decay[number]))
        optimizer.zero_grad(set_to_none=True)
        last = len(micro_batches) - 1
        totals, features = zip(
            *(self.forward_backward(batch, step, is_last=i == last) for i, batch in enumerate(micro_batches)),
            strict=True,
        )
        scaler.unscale_(optimizer)
        if self.rests(number):
            for parameter in learner.student.backbone.parameters():
                parameter.grad = None
        grad_norm = clip_gradients(learner.parameters(), self.config.clip_grad, self.config.clip_mode)
        for part in learner.parts().values():
            part.hold_gradients(step)
        mean = mean_of(totals)
        measured = Measured(mean.loss, grad_norm, mean.logged, torch.cat(features))
        if is_skipped(number, measured):
            optimizer.zero_grad(set_to_none=True)
            scaler.update()  # resets the unscaled state, and lowers the scale after an overflow
            return measured
        scaler.step(optimizer)
        scaler.update()
        for name, part in learner.parts().items():
            part.after_step(mean.statistics[name])
        optim.update_teacher(self.followers, self.leaders, float(self.schedules.momentum[number]))
        if learner.heads_first is not None and self.rests(number):
            learner.heads_first.record(distributed.all_reduce_mean(mean.loss.clone()))
        return measured

    def rests(self, number: int) -> bool:
        """Whether only the heads learn in step `number`."""
        heads_first = self.state.learner.heads_first
        return heads_first is not None and heads_first.rests(number)

    def forward_backward(self, batch: MicroBatch, step: Step, *, is_last: bool) -> tuple[Total, Tensor]:
        """Add a micro-batch's gradients. Returns the terms without gradient, and the teacher's features [2*b, C]."""
        groups = [
            self._prepared(views, photometric)
            for views, photometric in (
                (batch.global_views, batch.global_photometric),
                (batch.local_views, batch.local_photometric),
            )
            if len(views)
        ]
        larger = self._prepared(batch.larger_views, batch.larger_photometric) if len(batch.larger_views) else None
        self.drop_path.set_masks(step.number, batch.slots, self.device)
        masks = self.state.learner.masks(step, batch.slots.tolist(), self.grid) if self.grid else None
        config = self.config
        attention = fast_attention(self.device, None if config.compile else autocast_dtype(config.dtype))
        with gradients_in_step(self.forward, is_last=is_last):
            with autocast(self.device, config.dtype), attention:
                with torch.no_grad():
                    teacher = self.state.teacher(groups[:1])._replace(larger=larger)
                total = self.forward(groups, teacher, step, masks)
            self.state.scaler.scale(total.loss / config.accumulate).backward()
        return total._replace(loss=total.loss.detach()), teacher.cls

    def _prepared(self, views: Tensor, photometric: Tensor) -> Tensor:
        """uint8 [N, 3, S, S] of the loader -> normalized crops on the device."""
        return prepare(views.to(self.device, non_blocking=True), photometric)


def mean_of(totals: Sequence[Total]) -> Total:
    """The means over micro-batches."""

    def mean(values: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(values)).mean(dim=0)

    first = totals[0]
    return Total(
        mean([total.loss for total in totals]),
        {column: mean([total.logged[column] for total in totals]) for column in first.logged},
        {
            name: {key: mean([total.statistics[name][key] for total in totals]) for key in statistics}
            for name, statistics in first.statistics.items()
        },
    )
