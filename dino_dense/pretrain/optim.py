"""Optimizers, parameter groups and the teacher's moving average, as in the published script."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from dino_dense.pretrain.options import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Options, Ranges
from dino_dense.training.lars import Lars
from dino_dense.training.precision import skip_on_device
from dino_dense.training.schedules import Schedule, cosine_schedule
from dino_dense.training.sharding import own_part

OptimizerName = Literal["adamw", "sgd", "lars"]

SGD_MOMENTUM = 0.9
"""Momentum of SGD and LARS (main_dino.py; utils.py)."""
LR_REFERENCE_BATCH = 256
"""Batch size (images) that the base learning rate refers to (linear scaling rule, main_dino.py)."""


@dataclass(frozen=True)
class OptimizationOptions(Options):
    """Optimization"""

    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    """adamw (ViTs), sgd or lars (conv nets). (main_dino)"""
    batch_size: int = 512
    """Images per optimizer step, over all processes and micro-batches. (README: 8 GPUs x 64)"""
    accumulate: int = 1
    """Micro-batches per optimizer step in each process: the same step in less memory. (not in main_dino)"""
    epochs: int = 100
    """Passes over the data; every schedule spans them. (main_dino)"""
    max_steps: int | None = None
    """Stop after this many optimizer steps; the schedules still span `epochs`. (not in main_dino)"""
    lr: float = 5e-4
    """Highest learning rate for a batch of 256; scaled by batch_size / 256. (main_dino)"""
    min_lr: float = 1e-6
    """Learning rate at the end of the cosine; not scaled. (main_dino)"""
    warmup_epochs: int = 10
    """Epochs of linear learning-rate warm-up from 0. (main_dino)"""
    weight_decay: float = 0.04
    """Weight decay at the start; not for biases and other vectors. (main_dino)"""
    weight_decay_end: float = 0.4
    """Weight decay at the end of its cosine. (main_dino)"""
    layer_decay: float = 1.0
    """Factor on the learning rate from each block of the backbone to the block below; 1: none. (dinov2: 0.9)"""
    patch_embed_lr: float = 1.0
    """Further factor on the learning rate of the patch embedding. (dinov2: 0.2)"""
    momentum_teacher: float = 0.996
    """Weight of the old teacher at the start; a cosine raises it to 1. Try 0.9995 with batches of 256. (main_dino)"""
    clip_grad: float = 3.0
    """Largest gradient L2 norm; 0 = no clipping. (main_dino)"""
    clip_mode: Literal["tensor", "global"] = "tensor"
    """tensor: each tensor's own norm, as published (utils.py); global: the norm over all tensors."""

    on_not_finite: Literal["stop", "skip"] = "stop"
    """If the loss or gradient of a step is not finite: stop the run, or skip the step. skip waits for the device in
    every step, and stops after 10 skipped steps in a row. Both report the batch's files. (not in main_dino)"""

    RANGES: ClassVar[Ranges] = {
        **dict.fromkeys(("batch_size", "accumulate", "epochs", "max_steps"), COUNT),
        "lr": POSITIVE,
        **dict.fromkeys(("min_lr", "weight_decay", "weight_decay_end", "clip_grad", "warmup_epochs"), NOT_NEGATIVE),
        **dict.fromkeys(("momentum_teacher", "layer_decay", "patch_embed_lr"), SHARE),
    }

    def check(self) -> None:
        """Refuse a warm-up longer than the run."""
        super().check()
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}, more than epochs = {self.epochs}: lower it")


class Schedules(NamedTuple):
    """A value for each optimizer step."""

    lr: Schedule
    weight_decay: Schedule
    momentum: Schedule
    """The teacher's momentum."""


def build_schedules(options: OptimizationOptions, steps_per_epoch: int) -> Schedules:
    """The cosines of main_dino.py over the whole run."""
    peak, epochs = scaled_lr(options.lr, options.batch_size), options.epochs
    return Schedules(
        cosine_schedule(peak, options.min_lr, epochs, steps_per_epoch, options.warmup_epochs),
        cosine_schedule(options.weight_decay, options.weight_decay_end, epochs, steps_per_epoch),
        cosine_schedule(options.momentum_teacher, 1.0, epochs, steps_per_epoch),
    )


def scaled_lr(lr: float, batch_size: int) -> float:
    """The linear scaling rule: `lr` is for a batch of 256 images."""
    return lr * batch_size / LR_REFERENCE_BATCH


SPECIAL = re.compile(r"(^|\.)(cls_token|pos_embed|patch_embed|reg_token|register_tokens|storage_tokens|mask_token)")
BLOCK = re.compile(r"(?:^|\.)blocks\.(?:\d+\.)?(\d+)\.")


def lr_multiplier(name: str, depth: int, layer_decay: float, patch_embed_lr: float) -> float:
    """Factor on the learning rate of a parameter of a ViT of `depth` blocks (DINOv2, utils/param_groups.py).

    Block i: layer_decay^(depth - i); the patch embedding, position table and special tokens: layer_decay^(depth + 1),
    the patch embedding times `patch_embed_lr`; all else, as norm and heads: 1.
    """
    if block := BLOCK.search(name):
        return float(layer_decay ** (depth - int(block[1])))
    if SPECIAL.search(name):
        return float(layer_decay ** (depth + 1) * (patch_embed_lr if "patch_embed" in name else 1.0))
    return 1.0


def param_groups(module: nn.Module, lr_of: Callable[[str], float] = lambda name: 1.0) -> list[dict[str, Any]]:
    """Parameter groups by learning rate: weights with decay; biases and other vectors without. Skips frozen parameters.

    Args:
        module: the network.
        lr_of: parameter name -> factor on its learning rate.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and not name.endswith(".bias")
            groups.setdefault((lr_of(name), decayed), []).append(parameter)
    return [
        {"params": parameters, "lr_scale": lr, "decay": decayed, **({} if decayed else {"weight_decay": 0.0})}
        for (lr, decayed), parameters in sorted(groups.items(), key=lambda item: (-item[0][0], not item[0][1]))
    ]


def build_optimizer(
    name: OptimizerName, module: nn.Module, lr_of: Callable[[str], float] = lambda name: 1.0
) -> Optimizer:
    """An optimizer for `module`'s trainable parameters; `set_schedule` sets learning rate and weight decay."""
    groups = param_groups(module, lr_of)
    if name == "adamw":
        return AdamW(groups, fused=True)
    optimizer: Optimizer
    if name == "sgd":
        optimizer = SGD(groups, lr=0.0, momentum=SGD_MOMENTUM, foreach=True)
    else:
        optimizer = Lars(groups, lr=0.0, momentum=SGD_MOMENTUM)
    skip_on_device(optimizer)
    return optimizer


def set_schedule(optimizer: Optimizer, lr: float, weight_decay: float) -> None:
    """Set this step's learning rate, and the weight decay of groups with decay."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
        if group["decay"]:
            group["weight_decay"] = weight_decay


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum · teacher + (1 - momentum) · student, over parameters only.

    Buffers are unchanged: the teacher keeps its own BatchNorm statistics.
    """
    targets = [own_part(weight) for weight in teacher.parameters()]
    sources = [own_part(weight) for weight in student.parameters()]
    torch._foreach_lerp_(targets, sources, 1.0 - momentum)
