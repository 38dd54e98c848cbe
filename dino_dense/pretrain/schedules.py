"""The teacher's temperature by epoch (main_dino.py)."""

import numpy as np


def teacher_temperature(epoch: int, warmup_start: float, final: float, warmup_epochs: int) -> float:
    """The teacher's temperature in `epoch` (0-based): linear to `final` over `warmup_epochs`, then constant.

    The last warm-up epoch already uses `final` (reference file dino_loss.npz, `.teacher_temp`).
    """
    if epoch >= warmup_epochs:
        return final
    return float(np.linspace(warmup_start, final, warmup_epochs)[epoch])
