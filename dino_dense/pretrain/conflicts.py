"""Settings that contradict each other or the data: a run that cannot work is refused, a doubtful run is warned.

A run of at most `TRIAL_STEPS` optimizer steps is a trial of the machine or of the settings. It is not expected to learn
anything, so only settings that stop a step are refused.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from dino_dense.pretrain.anchor import START
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.objectives.gram import RUN
from dino_dense.pretrain.start import ALL

TRIAL_STEPS = 200
"""Longest trial. Ours."""
LEAST_AVERAGED = 20_000
"""Images that the teacher must average over, unless these are a whole epoch. Ours: lightly's benchmark still works with
32,000 (batches of 128 at 0.996)."""
PUBLISHED_AVERAGED = 512 / (1 - 0.996)
"""Images that the teacher of the published run averages over: 128,000."""
MOST_PROTOTYPES, IMAGES_PER_PROTOTYPE = 8, 8
"""Prototypes per image that are refused beyond; images per prototype to aim for (ImageNet with K = 65,536: 20;
the quickstart: 8). Ours."""
MOST_LEFT, DOUBTFUL_LEFT = 0.9, 0.25
"""Share of the random first weights in the last teacher: refused beyond, warned beyond. Ours."""
SAFE_START_LR = 1e-4
"""Learning rate of trained weights beyond which there is a warning: NeCo has 1e-5; k-NN of DINOv2 fell from 80 to 10 %
at the usual rate (dinov2 issue 204)."""


class RunSize(NamedTuple):
    """The data and the length of a run."""

    images: int
    total_steps: int
    """Optimizer steps of all epochs, which schedules span."""
    last_step: int
    """Optimizer steps until the run stops: `max_steps`, or all."""
    processes: int
    first_weights: float
    """Share of the first weights in the last teacher, in [0, 1]: the product of its momenta."""

    def steps(self, epochs: int, config: PretrainConfig) -> int:
        """Optimizer steps in these epochs."""
        return epochs * (self.total_steps // config.epochs)


class Conflict(NamedTuple):
    """Settings that contradict each other or the data."""

    text: str
    """Names the settings, the reason, and the settings to choose."""
    is_refused: bool = False


class ConflictError(ValueError):
    """Settings with which a run cannot work."""


def check_conflicts(config: PretrainConfig, size: RunSize) -> list[str]:
    """Check a run that begins.

    Returns:
        Warnings for the user.

    Raises:
        ConflictError: a conflict that is refused, unless `allow_conflicts` is set, which makes it a warning.
    """
    conflicts = list(_stopping(config, size))
    if size.last_step > TRIAL_STEPS:
        for rule in (_teacher, _prototypes, _temperatures, _lengths, _anchors, _masks, _start):
            conflicts += rule(config, size)
    refused = [conflict.text for conflict in conflicts if conflict.is_refused]
    if refused and not config.allow_conflicts:
        raise ConflictError("\n".join([*refused, "To begin nevertheless, add --allow-conflicts."]))
    return [f"WARNING: {conflict.text}" for conflict in conflicts]


def _stopping(config: PretrainConfig, size: RunSize) -> Iterator[Conflict]:
    """Settings with which the first step fails."""
    seen = config.batch_size // config.accumulate // (1 if config.koleo_neighbors == "all" else size.processes)
    if "koleo" in config.objectives and seen <= config.koleo_topk:
        yield Conflict(
            f"koleo compares each image with its {config.koleo_topk} nearest, but there are {seen} in a micro-batch: "
            "set a larger --batch-size, a smaller --accumulate, or leave koleo out of --objectives.",
            is_refused=True,
        )


def _teacher(config: PretrainConfig, size: RunSize) -> Iterator[Conflict]:
    """The teacher's average: too short for its batches, or longer than the run."""
    momentum, batch = config.momentum_teacher, config.batch_size
    averaged = batch / (1 - momentum) if momentum < 1 else math.inf
    if averaged < min(LEAST_AVERAGED, size.images):
        better = max(1 - batch / PUBLISHED_AVERAGED, momentum)
        yield Conflict(
            f"momentum_teacher is {momentum:g} with batches of {batch}: the teacher averages over {averaged:,.0f} "
            f"images, {averaged / size.images:.1%} of an epoch; the published run over {PUBLISHED_AVERAGED:,.0f} (512 "
            f"at 0.996). Set --momentum-teacher {better:.4f}, or a larger --batch-size (with --accumulate if memory is "
            "short).",
            is_refused=True,
        )
    left = size.first_weights
    if not config.start and left > DOUBTFUL_LEFT:
        yield Conflict(
            f"momentum_teacher is {momentum:g} in {size.total_steps} steps: {left:.0%} of the last teacher are its "
            "random first weights. Set a lower --momentum-teacher, a smaller --batch-size, or more --epochs.",
            is_refused=left > MOST_LEFT,
        )


def _prototypes(config: PretrainConfig, size: RunSize) -> Iterator[Conflict]:
    used = "dino" in config.objectives or ("ibot" in config.objectives and config.ibot_head == "shared")
    if used and config.out_dim > size.images:
        fitting = 2 ** max(4, round(math.log2(size.images / IMAGES_PER_PROTOTYPE)))
        yield Conflict(
            f"out_dim is {config.out_dim:,}, for {size.images:,} images: more prototypes than images. Set "
            f"--out-dim {fitting}. configs/pretrain/quickstart.yaml is a recipe for 2,000 images.",
            is_refused=config.out_dim > MOST_PROTOTYPES * size.images,
        )


def _temperatures(config: PretrainConfig, size: RunSize) -> Iterator[Conflict]:
    learns_targets = {"dino", "ibot"} & set(config.objectives)
    if learns_targets and max(config.teacher_temp, config.warmup_teacher_temp) >= config.student_temp:
        yield Conflict(
            f"teacher_temp is {config.teacher_temp:g} (at first {config.warmup_teacher_temp:g}), student_temp "
            f"{config.student_temp:g}: targets that are no sharper than the predictions lead to a uniform output "
            "(arXiv 2104.14294, Sec. 5.3). Set --teacher-temp 0.07 or less, and --student-temp 0.1.",
            is_refused=True,
        )


def _lengths(config: PretrainConfig, size: RunSize) -> Iterator[Conflict]:
    """Phases that are longer than the run."""
    warmup = size.steps(config.warmup_epochs, config)
    if 0 < size.last_step <= warmup:
        yield Conflict(
            f"max_steps is {size.last_step}, and the warm-up of {config.warmup_epochs} epochs has {warmup}: the "
            "learning rate never reaches its peak. Set a smaller --warmup-epochs, unless you resume the run later."
        )
    for name in ("freeze_last_layer", "warmup_teacher_temp_epochs"):
        epochs = getattr(config, name)
        if epochs >= max(config.epochs, 2):
            yield Conflict(
                f"{name} is {epochs} in a run of {config.epochs} epochs: its end is never reached. Lower it."
            )
    rest = config.heads_first
    if isinstance(rest, int) and rest >= size.total_steps:
        yield Conflict(
            f"heads_first is {rest} in a run of {size.total_steps} steps: the backbone never learns. Lower "
            "--heads-first, or raise --epochs.",
            is_refused=True,
        )


def _anchors(config: PretrainConfig, size: RunSize) -> Iterator[Conflict]:
    """Frozen teachers that are random, or never used."""
    sources = {"gram": config.gram_teacher, "paka": config.paka_teacher}
    for name in sources.keys() & set(config.objectives):
        if sources[name] == START and not config.start and not (name == "gram" and config.gram_refresh):
            other = "run --gram-begin STEP" if name == "gram" else "teacher"
            yield Conflict(
                f"{name}_teacher is start, but the run starts with random weights, which are no teacher. Set --start "
                f"CHECKPOINT, --{name}-teacher CHECKPOINT, or --{name}-teacher {other}.",
                is_refused=True,
            )
    if "gram" not in config.objectives:
        return
    if config.gram_begin >= size.total_steps:
        yield Conflict(
            f"gram_begin is {config.gram_begin}, but the run has {size.total_steps} steps: the loss never begins. Set "
            "a smaller --gram-begin, or leave gram out of --objectives.",
            is_refused=True,
        )
    elif config.gram_refresh and config.gram_begin + config.gram_refresh >= size.total_steps:
        yield Conflict(
            f"gram_refresh is {config.gram_refresh} after gram_begin {config.gram_begin}, but the run has "
            f"{size.total_steps} steps: the Gram teacher is never refreshed. Lower --gram-refresh."
        )
    if config.gram_teacher == RUN and 0 < config.gram_begin < size.steps(config.warmup_epochs, config):
        yield Conflict(
            f"gram_begin is {config.gram_begin}, within the warm-up of {config.warmup_epochs} epochs: the Gram teacher "
            "has hardly learned. Set a larger --gram-begin."
        )


def _masks(config: PretrainConfig, size: RunSize) -> Iterator[Conflict]:
    if "ibot" in config.objectives and int(2 * config.batch_size * config.ibot_mask_share) == 0:
        yield Conflict(
            f"ibot_mask_share is {config.ibot_mask_share:g} of {2 * config.batch_size} global crops: no crop is "
            "masked, so ibot learns nothing. Set --ibot-mask-share 0.5, or leave ibot out of --objectives.",
            is_refused=True,
        )


def _start(config: PretrainConfig, size: RunSize) -> Iterator[Conflict]:
    """Trained weights at a high learning rate, and options for trained weights in a run without them."""
    rate = config.lr * config.batch_size / 256 * config.backbone_lr
    if config.start and rate > SAFE_START_LR:
        yield Conflict(
            f"the learning rate of trained weights is {rate:.2g} (lr x batch_size / 256 x backbone_lr): at the usual "
            "rate, k-NN of DINOv2 fell from 80 to 10 % (dinov2 issue 204). Set --backbone-lr so that it is about "
            "1e-5, and --watch knn,incontext --rollback."
        )
    if not config.start and config.trainable != ALL:
        yield Conflict(
            f"trainable is {config.trainable}, but there is no start: the other blocks keep their random weights. Set "
            "--start CHECKPOINT, or --trainable all.",
            is_refused=True,
        )
