"""Optimizer, learning rates and mixing, from timm's parts as in DeiT and BEiT."""

import math
from collections.abc import Callable
from typing import Any

import torch
from timm.data.mixup import Mixup, mixup_target
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor
from torch.optim import Optimizer

from dino_dense.training.plan import Plan
from dino_dense.training.precision import skip_on_device
from dino_dense.training.schedules import half_cosine
from dino_dense.training.seeds import derive_seed, seeded
from tasks.finetuning.config import FinetuneConfig
from tasks.finetuning.network import Classifier
from tasks.finetuning.streams import MIXING

Mixer = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


def parameter_groups(model: Classifier, config: FinetuneConfig) -> list[dict[str, Any]]:
    """Groups with their weight decay and `lr_scale`, the factor on the learning rate.

    With d = layer_decay and L blocks: the linear layer head_lr_scale, block i (0-based) and, in the last, the final
    norm d^(L - i), embeddings d^(L + 1) (BEiT, arXiv 2106.08254, App. H; timm's layers).

    Raises:
        ValueError: layer decay for a network without layers known to timm.
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
    """The optimizer, with the peak learning rate for this batch size."""
    lr = config.lr * (batch / config.lr_scale_batch if config.lr_scale_batch else 1.0)
    # Loss scaling asks the device in each step whether to skip it, unless the optimizer decides there, as fused AdamW.
    fused = {"fused": True} if config.amp == "fp16" and config.optimizer == "adamw" else {}
    optimizer: Optimizer = create_optimizer_v2(
        parameter_groups(model, config), opt=config.optimizer, lr=lr, weight_decay=config.weight_decay, **fused
    )
    if config.optimizer == "sgd":
        skip_on_device(optimizer)
    return optimizer


def set_learning_rate(optimizer: Optimizer, config: FinetuneConfig, plan: Plan, step: int) -> None:
    """Set the learning rate of a step (0-based): linear warm-up, then cosine.

    DeiT updates the learning rate once per epoch; here it changes each step. The cosine counts the warm-up steps too,
    as timm's CosineLRScheduler does for DeiT.
    """
    peak, warmup = optimizer.defaults["lr"], config.warmup_epochs * plan.steps_per_epoch
    if step < warmup:
        lr = config.warmup_lr + step * ((peak - config.warmup_lr) / warmup)
    else:
        lr = half_cosine(math.pi * step / plan.total_steps, peak, config.min_lr)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def build_mixer(config: FinetuneConfig, classes: int, seed: int) -> Mixer:
    """A function (images [b, 3, S, S], labels [b], slots [b], step) -> images (mixed in place), targets [b, K] with row
    sums 1.

    Image i is mixed with image b - 1 - i; the middle image of an odd number is not mixed. `mixing_batch` images share a
    random draw, as on each of DeiT's GPUs: the pairs with consecutive first slots in the whole batch.
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
            paired = torch.cat([front, len(images) - 1 - front.flip(0)]).to(images.device, non_blocking=True)
            with seeded(derive_seed(MIXING, seed, step, group)):
                images[paired], targets[paired] = mixup(images[paired], labels[paired])
        return images, targets

    return mix
