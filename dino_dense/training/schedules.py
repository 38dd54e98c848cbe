"""The cosine that learning rates, weight decays and momenta follow, and linear warm-ups (numpy float64)."""

from typing import overload

import numpy as np
import numpy.typing as npt

Schedule = npt.NDArray[np.float64]
"""[steps] float64: the value that each optimizer step uses."""


@overload
def half_cosine(angle: float, base: float = 1.0, final: float = 0.0) -> float: ...


@overload
def half_cosine(angle: Schedule, base: float = 1.0, final: float = 0.0) -> Schedule: ...


def half_cosine(angle: float | Schedule, base: float = 1.0, final: float = 0.0) -> float | Schedule:
    """From `base` at angle 0 to `final` at angle π, along half a cosine (SGDR, arXiv 1608.03983, eq. 5)."""
    value = final + 0.5 * (base - final) * (1.0 + np.cos(angle))
    return value if isinstance(value, np.ndarray) else float(value)


def cosine_schedule(
    base: float,
    final: float,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: int = 0,
    warmup_start: float = 0.0,
) -> Schedule:
    """A linear warm-up from `warmup_start` to `base`, then half a cosine from `base` to `final`, a value a step.

    The warm-up reaches `base` at its last step; the cosine starts at `base` and would reach `final` one step
    after the last, so `final` itself is never used (main_dino.py, utils.py; reference file schedules.npz).

    Raises ValueError when the warm-up is longer than the schedule.
    """
    total, warmup = epochs * steps_per_epoch, warmup_epochs * steps_per_epoch
    if not 0 <= warmup <= total:
        raise ValueError(f"a warm-up of {warmup_epochs} epochs does not fit in a schedule of {epochs} epochs")
    progress = np.arange(total - warmup, dtype=np.float64) / max(total - warmup, 1)
    return np.concatenate([np.linspace(warmup_start, base, warmup), half_cosine(np.pi * progress, base, final)])
