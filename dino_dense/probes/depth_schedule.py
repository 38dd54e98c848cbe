"""Learning rate and momentum of the published depth heads, as functions of the step (counted from 0).

Sources: dinov3 `eval/depth/schedulers.py` (WarmupOneCycleLR), whose default `use_beta1` replaces the configured beta1;
DINOv2's released configs with mmcv's hooks CosineAnnealing and OneCycle (`lr_config`, `momentum_config`).
"""

import math

from dino_dense.probes.protocol import DepthProbe
from dino_dense.training.schedules import half_cosine

FALL = 0.3  # share of the steps in which DINOv2's beta1 falls (mmcv, pct_start)


def lr_factor(step: int, config: DepthProbe) -> float:
    """Share of the learning rate at a step: a linear warm-up times half a cosine over all steps."""
    rise, total = warmup_of(config), config.steps
    if config.schedule == "dinov2":
        warm = config.start + (1 - config.start) * step / rise if step < rise else 1.0
        return warm * half_cosine(math.pi * step / total, 1.0, config.final)
    if step < rise:
        return config.start + half_cosine(math.pi * step / total) * step / rise
    return half_cosine(math.pi * min(step + 1, total) / total, 1.0, config.final)


def momentum(step: int, config: DepthProbe) -> float:
    """beta1 of AdamW at a step."""
    low, high = config.momentum
    rise, last = warmup_of(config), config.steps - 1
    if config.schedule == "dinov3":
        return 0.0 if step < rise else half_cosine(math.pi * (step - rise) / (config.steps - rise), low, high)
    turn = FALL * config.steps - 1
    if turn > 0 and step <= turn:
        return half_cosine(math.pi * step / turn, high, low)
    return half_cosine(math.pi * min(1.0, (step - max(turn, 0)) / max(last - turn, 1)), low, high)


def warmup_of(config: DepthProbe) -> int:
    """Steps of warm-up, at most a third of all."""
    return min(config.warmup, config.steps // 3)
