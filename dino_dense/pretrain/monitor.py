"""What a run tells its user: a CSV, TensorBoard events, a progress bar, a loss curve, and warnings of
collapse."""

import csv
import io
import math
import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from dino_dense.files import replacing, write_text
from dino_dense.progress import progress

LOG_FILE, CURVE_FILE, EVENTS_FOLDER = "log.csv", "loss.png", "tensorboard"


@dataclass(frozen=True)
class LogRow:
    """One row of log.csv: the state after `step` optimizer steps, means over the whole batch of that step."""

    step: int
    """Optimizer steps done, from 1."""
    epoch: float
    """Passes over the data done."""
    loss: float
    """nats"""
    lr: float
    wd: float
    """Weight decay."""
    momentum: float
    """Of the teacher."""
    teacher_temp: float
    teacher_entropy: float
    """h(Pt), nats in [0, ln K]."""
    kl: float
    """KL(Pt || Ps), nats: loss = teacher_entropy + kl."""
    feature_std: float
    """Spread of the teacher's features, 1 = even in all directions, 0 = all images alike. See
    `feature_spectrum`."""
    top_eigenvalue_share: float
    """Share of the features' variance in one direction; 1 = they vary along one line."""
    effective_rank: float
    """Number of directions that the features use."""
    images_per_s: float
    """Images per second since the last row, over all processes."""
    grad_norm: float
    """Global gradient L2 norm before clipping."""
    seconds: float
    """Training time so far, over all parts of a resumed run."""


def feature_spectrum(features: Tensor) -> tuple[float, float, float]:
    """Spread, top eigenvalue share and effective rank of features [N, C].

    Spread: standard deviation per channel of the L2-normalised features, averaged and multiplied by √C, so
    that features spread evenly over the sphere give 1 (SimSiam, arXiv 2011.10566, Sec. 4.1). Effective rank:
    exp of the entropy of the covariance's normalised eigenvalues (Roy & Vetterli, EUSIPCO 2007). Constant
    features: (0, 1, 1). Features that are not finite: NaN.
    """
    if not features.isfinite().all():  # of a step that is being skipped
        return math.nan, math.nan, math.nan
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    centered = unit - unit.mean(dim=0)
    spread = centered.square().mean(dim=0).sqrt().mean().item() * math.sqrt(features.shape[1])
    eigenvalues = torch.linalg.svdvals(centered).double().square()
    if eigenvalues.sum() < 1e-12:  # float32 rounding of N unit vectors that are all the same
        return spread, 1.0, 1.0
    shares = eigenvalues / eigenvalues.sum()
    return spread, shares.max().item(), torch.special.entr(shares).sum().exp().item()


Collapse = Literal["one prototype", "uniform", "idle student", "constant"]

NEAR = 0.01
"""How near to its limit a value counts as there, as a share of ln K. A stuck loss repeats ln K to 4 digits
(dinov2 issue 407); healthy runs leave it by far more within the first thousand steps."""

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
    """The kind of collapse that one step's numbers (nats) look like (paper, Sec. 5.3), or None."""
    ln_k = math.log(out_dim)
    near = NEAR * ln_k
    if entropy <= near:
        return "one prototype"
    if abs(loss - ln_k) <= near:
        return "uniform" if entropy >= ln_k - near else "idle student"
    return "constant" if kl <= near else None


class CollapseWatch:
    """Warns when the same sign of collapse stays for `window` optimizer steps, once each time that it
    appears.

    Args:
        out_dim: K.
        quiet_steps: first steps, when student and teacher are still alike by construction, that do not count.
        window: optimizer steps.
    """

    def __init__(self, out_dim: int, quiet_steps: int, window: int = 100) -> None:
        self.out_dim, self.quiet_steps, self.window = out_dim, quiet_steps, window
        self.sign: Collapse | None = None
        self.since = 0
        self.told = False

    def update(self, step: int, loss: float, entropy: float, kl: float) -> str | None:
        """The warning that this step gives rise to, in plain words."""
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


class Monitor:
    """Writes RUN/log.csv, RUN/tensorboard and RUN/loss.png, and shows progress. For the main process only.

    Args:
        run: the run folder.
        start_step: optimizer steps already done; what an earlier part of the run logged after it is dropped.
        last_step: optimizer steps at the end.
        batch_size: images per optimizer step.
        watch: judges every logged row.
    """

    def __init__(self, run: Path, start_step: int, last_step: int, batch_size: int, watch: CollapseWatch) -> None:
        self.run, self.batch_size, self.watch = run, batch_size, watch
        self.seconds_before = _keep_rows(run / LOG_FILE, start_step)
        self.file = (run / LOG_FILE).open("a", newline="")
        self.csv = csv.DictWriter(self.file, [field.name for field in fields(LogRow)])
        self.events = SummaryWriter(str(run / EVENTS_FOLDER), purge_step=start_step + 1)
        self.bar = progress(last_step, initial=start_step, desc="pretrain", unit="step")
        self.started = self.logged_at = time.perf_counter()
        self.logged_step = start_step

    def tick(self) -> None:
        """One optimizer step is done."""
        self.bar.update()

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record the values of one step: the fields of LogRow but the step and the times."""
        now = time.perf_counter()
        rate = (step - self.logged_step) * self.batch_size / max(now - self.logged_at, 1e-9)
        row = LogRow(
            step=step,
            images_per_s=round(rate, 2),
            seconds=round(self.seconds_before + now - self.started, 3),
            **values,  # type: ignore[arg-type]
        )
        self.logged_at, self.logged_step = now, step
        self.csv.writerow(asdict(row))
        self.file.flush()
        for name, value in asdict(row).items():
            if name != "step":
                self.events.add_scalar(name, value, step)
        self.bar.set_postfix_str(f"loss={row.loss:.4f}, img_s={rate:.1f}", refresh=False)
        warning = self.watch.update(step, row.loss, row.teacher_entropy, row.kl)
        if warning:
            self.say(warning)
            self.events.add_text("warning", warning, step)

    def sync(self) -> None:
        """Have the disk hold every row logged so far."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def say(self, text: str) -> None:
        """Print without breaking the progress bar."""
        self.bar.write(text)

    def close(self) -> None:
        """Close the files and draw the loss curve."""
        self.bar.close()
        self.file.close()
        self.events.close()
        draw_curve(self.run, self.watch.out_dim)


def _keep_rows(path: Path, last_step: int) -> float:
    """Cut a CSV log after `last_step`, or begin one; returns the seconds that its last row shows."""
    names = [field.name for field in fields(LogRow)]
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            # Rows are kept as text, so that no number changes; a last line cut short by a crash is dropped.
            rows = [row for row in csv.DictReader(file) if row["seconds"] and int(row["step"]) <= last_step]
    kept = io.StringIO(newline="")
    writer = csv.DictWriter(kept, names)
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, kept.getvalue())
    return float(rows[-1]["seconds"]) if rows else 0.0


def draw_curve(run: Path, out_dim: int) -> None:
    """RUN/log.csv -> RUN/loss.png: loss, teacher entropy and KL by step, with ln K. Nothing without rows."""
    log = pd.read_csv(run / LOG_FILE)
    if log.empty:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for name, label in (
        ("loss", "loss"),
        ("teacher_entropy", "teacher entropy"),
        ("kl", "KL(teacher, student)"),
    ):
        axes.plot(log["step"], log[name], label=label, marker="." if len(log) < 30 else None)
    axes.axhline(math.log(out_dim), color="gray", linestyle=":", label=f"ln K = {math.log(out_dim):.3f}")
    axes.set(xlabel="optimizer step", ylabel="nats", ylim=(0, None), title=run.name)
    axes.legend()
    with replacing(run / CURVE_FILE) as path:
        figure.savefig(path, format="png", dpi=120)
