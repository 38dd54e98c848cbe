"""Cosine schedules of learning rate, weight decay and momentum, with linear warm-up (numpy float64)."""

from typing import overload

import numpy as np
import numpy.typing as npt

Schedule = npt.NDArray[np.float64]
"""[steps] float64: the value of each optimizer step."""


@overload
def half_cosine(angle: float, base: float = 1.0, final: float = 0.0) -> float: ...


@overload
def half_cosine(angle: Schedule, base: float = 1.0, final: float = 0.0) -> Schedule: ...


def half_cosine(angle: float | Schedule, base: float = 1.0, final: float = 0.0) -> float | Schedule:
    """From `base` at angle 0 to `final` at angle π, along half a cosine (SGDR, arXiv 1608.03983, eq. 5)."""
    value = final + 0.5 * (base - final) * (1.0 + np.cos(angle))
    return value if isinstance(value, np.ndarray) else float(value)


def warmup_cosine(
    base: float, final: float, total: int, warmup: int = 0, start: float = 0.0, *, freeze: int = 0
) -> Schedule:
    """0 for `freeze` steps, a linear warm-up from `start` to `base`, then half a cosine to `final`: [total].

    The warm-up reaches `base` at its last step; the cosine starts at `base` and would reach `final` one step after the
    last, so `final` itself is never used (DINO and DINOv2, reference files schedules.npz and dinov2_schedules.npz).
    """
    steps = total - warmup - freeze
    progress = np.arange(steps, dtype=np.float64) / max(steps, 1)
    rise = np.linspace(start, base, warmup)
    return np.concatenate([np.zeros(freeze), rise, half_cosine(np.pi * progress, base, final)])


def cosine_schedule(
    base: float,
    final: float,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: int = 0,
    warmup_start: float = 0.0,
) -> Schedule:
    """`warmup_cosine` over epochs (main_dino.py, utils.py).

    Raises:
        ValueError: the warm-up is longer than the schedule.
    """
    total, warmup = epochs * steps_per_epoch, warmup_epochs * steps_per_epoch
    if not 0 <= warmup <= total:
        raise ValueError(f"a warm-up of {warmup_epochs} epochs does not fit in a schedule of {epochs} epochs")
    return warmup_cosine(base, final, total, warmup, warmup_start)
