"""Signs of collapse in the logged values of a step, and their causes."""

import math
from collections.abc import Mapping
from typing import Literal

Collapse = Literal["one prototype", "uniform", "idle student", "constant"]

NEAR = 0.01
"""Tolerance around a limit value, as a share of ln K. A stuck loss repeats ln K to 4 digits (dinov2 issue 407);
healthy runs move away by much more within the first thousand steps."""

CAUSES: dict[Collapse, str] = {
    "one prototype": (
        "the teacher's entropy is near 0: every image gets one prototype with certainty, so centering is too "
        "weak. Lower center_momentum (0.9; 0.999 collapses), use a larger batch_size, or raise "
        "warmup_teacher_temp."
    ),
    "uniform": (
        "the loss sits at ln K and so does the teacher's entropy: its output is uniform, sharpening is too "
        "weak. Lower teacher_temp and warmup_teacher_temp (above 0.07 is unstable), lower lr, or "
        "raise momentum_teacher."
    ),
    "idle student": (
        "the loss sits at ln K though the teacher is not uniform: the student learns nothing. Raise lr or "
        "shorten warmup_epochs, lower freeze_last_layer, or set norm_last_layer to false."
    ),
    "constant": (
        "KL(teacher, student) is near 0: all crops of all images get the same output, the representation is "
        "constant. Lower lr, raise momentum_teacher, lower teacher_temp, or use more varied images and "
        "stronger crops."
    ),
}


def diagnose(loss: float, entropy: float, kl: float, out_dim: int) -> Collapse | None:
    """The kind of collapse that the values (nats) of a step indicate (paper, Sec. 5.3), or None."""
    ln_k = math.log(out_dim)
    near = NEAR * ln_k
    if entropy <= near:
        return "one prototype"
    if abs(loss - ln_k) <= near:
        return "uniform" if entropy >= ln_k - near else "idle student"
    return "constant" if kl <= near else None


class CollapseWatch:
    """Warns once when the same sign of collapse lasts for `window` optimizer steps.

    Args:
        out_dim: K.
        quiet_steps: first steps to ignore: student and teacher are equal at the start.
        window: optimizer steps.
    """

    def __init__(self, out_dim: int, quiet_steps: int, window: int = 100) -> None:
        self.out_dim, self.quiet_steps, self.window = out_dim, quiet_steps, window
        self.sign: Collapse | None = None
        self.since = 0
        self.told = False

    def __call__(self, step: int, row: Mapping[str, float]) -> str | None:
        """A warning for a row of the log with loss, teacher_entropy and kl, or None."""
        loss, entropy, kl = row["loss"], row["teacher_entropy"], row["kl"]
        sign = diagnose(loss, entropy, kl, self.out_dim) if step > self.quiet_steps else None
        if sign != self.sign:
            self.sign, self.since, self.told = sign, step, False
        if sign is None or self.told or step - self.since < self.window:
            return None
        self.told = True
        return (
            f"WARNING: collapse ({sign}) since step {self.since}: {CAUSES[sign]} "
            f"[loss {loss:.4f}, ln K {math.log(self.out_dim):.4f}, entropy {entropy:.4f}, KL {kl:.4f}]"
        )
