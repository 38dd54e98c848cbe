"""Optimizers, parameter groups and the teacher's average as in the published script."""

from typing import Any, Literal

import torch
from timm.optim.lars import Lars
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

OptimizerName = Literal["adamw", "sgd", "lars"]

SGD_MOMENTUM = 0.9
"""Momentum of SGD and LARS (main_dino.py; utils.py)."""
LR_REFERENCE_BATCH = 256
"""Images: the batch size for which the base learning rate is given (linear scaling rule, main_dino.py)."""


def scaled_lr(lr: float, batch_size: int) -> float:
    """The linear scaling rule: `lr` is for a batch of 256 images."""
    return lr * batch_size / LR_REFERENCE_BATCH


def param_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Two groups: weights, decayed, and biases and other vectors, never decayed; nothing that is frozen."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim <= 1 or name.endswith(".bias") else decayed).append(parameter)
    return [{"params": decayed, "decay": True}, {"params": plain, "decay": False, "weight_decay": 0.0}]


def build_optimizer(name: OptimizerName, module: nn.Module) -> Optimizer:
    """The optimizer over `module`'s trainable parameters; `set_schedule` gives it lr and weight decay."""
    groups = param_groups(module)
    if name == "adamw":
        return AdamW(groups, fused=True)
    if name == "sgd":
        return SGD(groups, lr=0.0, momentum=SGD_MOMENTUM, foreach=True)
    return Lars(groups, lr=0.0, momentum=SGD_MOMENTUM)


def set_schedule(optimizer: Optimizer, lr: float, weight_decay: float) -> None:
    """Set this step's learning rate, and the weight decay of the decayed group only."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        if group["decay"]:
            group["weight_decay"] = weight_decay


def drop_last_layer_gradients(head: nn.Module) -> None:
    """Freeze the head's last layer for this step: an optimizer skips what has no gradient."""
    for name, parameter in head.named_parameters():
        if "last_layer" in name:
            parameter.grad = None


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher = momentum · teacher + (1 - momentum) · student, over parameters only.

    Buffers (BatchNorm statistics) are left alone: the teacher runs its own.
    """
    targets: list[Tensor] = list(teacher.parameters())
    sources: list[Tensor] = list(student.parameters())
    torch._foreach_lerp_(targets, sources, 1.0 - momentum)
