"""Progress of a run for its user: a CSV log, TensorBoard events, a progress bar, a loss curve, and warnings."""

import csv
import io
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from dino_dense.files import replacing, write_text
from dino_dense.pretrain.objective import Watch
from dino_dense.pretrain.trackers import Tracker
from dino_dense.progress import progress

LOG_FILE, CURVE_FILE, EVENTS_FOLDER = "log.csv", "loss.png", "tensorboard"
LABELS = {"teacher_entropy": "teacher entropy", "kl": "KL(teacher, student)"}
"""Columns in nats that the loss curve shows too -> their labels."""


COLUMNS_BEFORE = ("step", "epoch", "loss", "lr", "wd", "momentum")
"""First columns of log.csv: optimizer steps done, from 1; passes over the data done; the weighted sum of objectives;
learning rate; weight decay; momentum of the teacher. The columns of the objectives follow."""
COLUMNS_AFTER = (
    *("feature_std", "top_eigenvalue_share", "effective_rank"),
    *("images_per_s", "grad_norm", "seconds"),
)
"""Last columns: the spectrum of the teacher's features (`feature_spectrum`); images per second since the last row, over
all processes; global L2 norm of the gradient before clipping; training time, over all parts of a resumed run."""


def feature_spectrum(features: Tensor) -> tuple[float, float, float]:
    """Spread, top eigenvalue share and effective rank of features [N, C].

    Spread: standard deviation per channel of the L2-normalized features, averaged and multiplied by √C; 1 for features
    spread evenly over the sphere (SimSiam, arXiv 2011.10566, Sec. 4.1). Effective rank: exp of the entropy of the
    covariance's normalized eigenvalues (Roy & Vetterli, EUSIPCO 2007). Constant features give (0, 1, 1), features
    that are not finite give NaN.
    """
    if not features.isfinite().all():  # the step will be skipped
        return math.nan, math.nan, math.nan
    unit = torch.nn.functional.normalize(features.float(), dim=1)
    centered = unit - unit.mean(dim=0)
    spread = centered.square().mean(dim=0).sqrt().mean().item() * math.sqrt(features.shape[1])
    eigenvalues = torch.linalg.svdvals(centered.cpu()).double().square()
    if eigenvalues.sum() < 1e-12:  # float32 rounding of N equal unit vectors
        return spread, 1.0, 1.0
    shares = eigenvalues / eigenvalues.sum()
    return spread, shares.max().item(), torch.special.entr(shares).sum().exp().item()


class Monitor:
    """Writes RUN/log.csv, RUN/tensorboard and RUN/loss.png, and shows progress; in the main process only.

    A row describes the state after a number of optimizer steps. Its means are over the whole batch of the last step.

    Args:
        run: the run folder.
        start_step: optimizer steps already done; later rows of an earlier part of the run are dropped.
        last_step: optimizer steps at the end.
        batch_size: images per optimizer step.
        columns: names of the columns of the objectives.
        watches: called with every logged row; they return warnings.
        levels: label -> value of a horizontal line in the loss curve.
        tracker: gets the rows too. If it fails, the run goes on without it.
    """

    def __init__(
        self,
        run: Path,
        start_step: int,
        last_step: int,
        batch_size: int,
        columns: Sequence[str],
        watches: Sequence[Watch] = (),
        levels: Mapping[str, float] = MappingProxyType({}),
        tracker: Tracker | None = None,
    ) -> None:
        self.tracker = tracker
        self.run, self.batch_size, self.watches, self.levels = run, batch_size, watches, levels
        names = [*COLUMNS_BEFORE, *columns, *COLUMNS_AFTER]
        self.seconds_before = _keep_rows(run / LOG_FILE, start_step, names)
        self.file = (run / LOG_FILE).open("a", newline="")
        self.csv = csv.DictWriter(self.file, names)
        self.events = SummaryWriter(str(run / EVENTS_FOLDER), purge_step=start_step + 1)
        self.bar = progress(last_step, initial=start_step, desc="pretrain", unit="step")
        self.started = self.logged_at = time.perf_counter()
        self.logged_step = start_step

    def tick(self) -> None:
        """Count one optimizer step as done."""
        self.bar.update()

    def log(self, step: int, values: dict[str, float]) -> None:
        """Record the values of one step: all columns except step, speed and time."""
        now = time.perf_counter()
        rate = (step - self.logged_step) * self.batch_size / max(now - self.logged_at, 1e-9)
        seconds = round(self.seconds_before + now - self.started, 3)
        row = {"step": step, "images_per_s": round(rate, 2), "seconds": seconds, **values}
        self.logged_at, self.logged_step = now, step
        self.csv.writerow(row)
        self.file.flush()
        self.track(step, {name: value for name, value in row.items() if name != "step"})
        self.bar.set_postfix_str(f"loss={row['loss']:.4f}, img_s={rate:.1f}", refresh=False)
        for warning in filter(None, (watch(step, row) for watch in self.watches)):
            self.say(warning)
            self.events.add_text("warning", warning, step)

    def track(self, step: int, values: Mapping[str, float]) -> None:
        """Send values to TensorBoard and to the tracker."""
        for name, value in values.items():
            self.events.add_scalar(name, value, step)
        self._with_tracker(lambda tracker: tracker.log(step, values), f"is left out from step {step} on")

    def _with_tracker(self, act: Callable[[Tracker], None], consequence: str) -> None:
        """Use the tracker, if there is one. A service that is down must not end a run of days."""
        if self.tracker:
            try:
                act(self.tracker)
            except Exception as error:
                self.tracker = None
                self.say(f"WARNING: the tracker failed, and {consequence}: {error}")

    def sync(self) -> None:
        """Flush all logged rows to the disk."""
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
        self._with_tracker(lambda tracker: tracker.close(), "may lack the last rows")
        draw_curve(self.run, self.levels)


def _keep_rows(path: Path, last_step: int, names: Sequence[str]) -> float:
    """Cut a CSV log after `last_step`, or begin a new log. Returns the seconds in its last row."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="") as file:
            # Rows stay text, so that no number changes; an incomplete last line after a crash is dropped.
            rows = [row for row in csv.DictReader(file) if row["seconds"] and int(row["step"]) <= last_step]
    kept = io.StringIO(newline="")
    writer = csv.DictWriter(kept, names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, kept.getvalue())
    return float(rows[-1]["seconds"]) if rows else 0.0


def draw_curve(run: Path, levels: Mapping[str, float]) -> None:
    """Draw RUN/loss.png from RUN/log.csv: the loss and its parts by step. Does nothing without rows."""
    log = pd.read_csv(run / LOG_FILE)
    if log.empty:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    own = [name for name in log.columns if name.endswith("_loss")]
    for name in ("loss", *(column for column in LABELS if column in log), *own):
        label = LABELS.get(name, name.replace("_", " "))
        axes.plot(log["step"], log[name], label=label, marker="." if len(log) < 30 else None)
    for label, value in levels.items():
        axes.axhline(value, color="gray", linestyle=":", label=label)
    axes.set(xlabel="optimizer step", ylabel="nats", ylim=(0, None), title=run.name)
    axes.legend()
    with replacing(run / CURVE_FILE) as path:
        figure.savefig(path, format="png", dpi=120)
