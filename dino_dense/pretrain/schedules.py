"""Cosine schedules, one value per optimizer step (main_dino.py, utils.py)."""

import numpy as np
import numpy.typing as npt

Schedule = npt.NDArray[np.float64]
"""[epochs * steps_per_epoch] float64: the value that each optimizer step uses."""


def cosine_schedule(
    base: float,
    final: float,
    epochs: int,
    steps_per_epoch: int,
    warmup_epochs: int = 0,
    warmup_start: float = 0.0,
) -> Schedule:
    """A linear warm-up from `warmup_start` to `base`, then half a cosine from `base` to `final`.

    The warm-up reaches `base` at its last step; the cosine starts at `base` and would reach `final` one step
    after the last, so `final` itself is never used (as in the published script; reference file
    schedules.npz).

    Raises ValueError when the warm-up is longer than the schedule.
    """
    total, warmup = epochs * steps_per_epoch, warmup_epochs * steps_per_epoch
    if not 0 <= warmup <= total:
        raise ValueError(f"a warm-up of {warmup_epochs} epochs does not fit in a schedule of {epochs} epochs")
    progress = np.arange(total - warmup, dtype=np.float64) / max(total - warmup, 1)
    cosine = final + 0.5 * (base - final) * (1.0 + np.cos(np.pi * progress))
    return np.concatenate([np.linspace(warmup_start, base, warmup), cosine])


def teacher_temperature(epoch: int, warmup_start: float, final: float, warmup_epochs: int) -> float:
    """The teacher's temperature in `epoch` (0-based): linear to `final` over `warmup_epochs`, then constant.

    The last warm-up epoch already uses `final` (reference file dino_loss.npz, `.teacher_temp`).
    """
    if epoch >= warmup_epochs:
        return final
    return float(np.linspace(warmup_start, final, warmup_epochs)[epoch])
