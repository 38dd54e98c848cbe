"""Optimizer, learning rates, mixing: timm's parts, put together as DeiT and BEiT do."""

import math
from collections.abc import Callable
from typing import Any

import torch
from timm.data.mixup import Mixup, mixup_target
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor
from torch.optim import Optimizer

from dino_dense.training.plan import Plan
from dino_dense.training.schedules import half_cosine
from dino_dense.training.seeds import derive_seed, seeded
from tasks.finetuning.config import FinetuneConfig
from tasks.finetuning.draws import MIXING
from tasks.finetuning.network import Classifier

Mixer = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


def parameter_groups(model: Classifier, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Groups with their weight decay and `lr_scale`, the factor on the learning rate.

    With d = layer_decay and L blocks: the linear layer head_lr_scale, block i (0-based) and, in the last, the final
    norm d^(L - i), embeddings d^(L + 1) (BEiT, arXiv 2106.08254, App. H; timm's layers).

    Raises:
        ValueError: layer decay on a body whose layers timm does not know.
    """
    body, decay = model.body, config.layer_decay
    exempt = body.no_weight_decay() if hasattr(body, "no_weight_decay") else ()
    if decay == 1:
        groups = param_groups_weight_decay(body, config.weight_decay, no_weight_decay_list=exempt)
    elif hasattr(body, "group_matcher"):
        groups = param_groups_layer_decay(body, config.weight_decay, exempt, layer_decay=decay)
    else:
        raise ValueError(f"layer_decay is {decay}, but timm knows no layers of {type(body).__name__}: set 1.")
    for group in groups:
        group["lr_scale"] = group.get("lr_scale", 1.0) * decay
    head = {"lr_scale": config.head_lr_scale}
    return [
        *groups,
        {"params": [model.head.weight], "weight_decay": config.weight_decay, **head},
        {"params": [model.head.bias], "weight_decay": 0.0, **head},
    ]


def build_optimizer(model: Classifier, config: FinetuneConfig, batch: int) -> Optimizer:
    """The optimizer, at the peak learning rate for a batch of that many images."""
    lr = config.lr * (batch / config.lr_scale_batch if config.lr_scale_batch else 1.0)
    optimizer: Optimizer = create_optimizer_v2(
        parameter_groups(model, config), opt=config.optimizer, lr=lr, weight_decay=config.weight_decay
    )
    return optimizer


def set_learning_rate(optimizer: Optimizer, config: FinetuneConfig, plan: Plan, step: int) -> None:
    """The learning rate of a step (0-based): a linear warm-up, then the cosine as it is from there on.

    DeiT moves the learning rate once an epoch, this one each step. The cosine counts the warm-up's steps too, as timm's
    CosineLRScheduler does for DeiT.
    """
    peak, warmup = optimizer.defaults["lr"], config.warmup_epochs * plan.steps_per_epoch
    if step < warmup:
        lr = config.warmup_lr + step * ((peak - config.warmup_lr) / warmup)
    else:
        lr = half_cosine(math.pi * step / plan.total_steps, peak, config.min_lr)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def build_mixer(config: FinetuneConfig, classes: int, seed: int) -> Mixer:
    """A function (images [b, 3, S, S], labels [b], slots [b], step) -> images, mixed in place, and targets [b, K] that
    sum to 1.

    Image i is mixed with image b - 1 - i; the middle one of an odd number stays as it is. A draw is for `mixing_batch`
    images, as each of DeiT's GPUs has its own: for the pairs whose first slots in the whole batch follow each other.
    """
    active = config.mixup > 0 or config.cutmix > 0
    mixup = Mixup(config.mixup, config.cutmix, label_smoothing=config.smoothing, num_classes=classes)

    def mix(images: Tensor, labels: Tensor, slots: Tensor, step: int) -> tuple[Tensor, Tensor]:
        targets = mixup_target(labels, classes, 1.0, config.smoothing)
        if not active:
            return images, targets
        first = slots[: len(images) // 2].cpu()
        groups = first // (config.mixing_batch // 2) if config.mixing_batch else torch.zeros_like(first)
        for group in groups.unique().tolist():
            front = (groups == group).nonzero()[:, 0]
            paired = torch.cat([front, len(images) - 1 - front.flip(0)]).to(images.device)
            with seeded(derive_seed(MIXING, seed, step, group)):
                images[paired], targets[paired] = mixup(images[paired], labels[paired])
        return images, targets

    return mix
