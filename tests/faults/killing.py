"""Training that is killed with SIGKILL at random moments, resumed each time, and compared with a run in peace.

The processes are forked from a server that has the imports done, so that a life takes a second.
"""

import multiprocessing
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from dino_dense.checkpoint import read_tensors
from dino_dense.config import command_line, schema
from dino_dense.pretrain import batches, run_folder, step
from dino_dense.pretrain.__main__ import main as pretrain
from dino_dense.training.plan import Plan
from tests.pretrain.tiny_run import TINY, write_pictures

TIMES = ["images_per_s", "seconds"]
LIFE_SECONDS = 120.0
"""No life of a run this small takes as long; one that does hangs."""

MOMENTS: dict[str, tuple[Any, str, float]] = {
    "step": (step.OptimizerStep, "run", 0.03),
    "save": (run_folder, "save_state", 0.03),
    "loader": (batches.CropDataset, "__getitem__", 0.02),
    "epoch change": (Plan, "order", 0.004),
}
"""Where a kill falls: the call it begins to count at, and the longest delay from there (seconds), about as long as
the call takes."""

ALL_OBJECTIVES: dict[str, Any] = {
    "objectives": ("dino", "ibot", "koleo", "gram", "paka"),
    "dino_targets": "sinkhorn",
    "ibot_targets": "sinkhorn",
    "ibot_out_dim": 24,
    "gram_teacher": "start",
    "gram_crop_size": 64,
    "paka_teacher": "start",
}


@dataclass(frozen=True)
class Kill:
    """SIGKILL, `delay` seconds after the `count`-th call (from 1) of a moment's function."""

    moment: str
    count: int
    delay: float


def draw_kill(moment: str, chance: random.Random) -> Kill:
    """A kill at a random time of that moment, early in a life."""
    longest = MOMENTS[moment][2]
    calls = {"loader": 6, "step": 6}.get(moment, 2)
    return Kill(moment, chance.randint(1, calls), chance.uniform(0, longest))


def arm(kill: Kill) -> None:
    """Have this process die of that kill."""
    owner, name, _ = MOMENTS[kill.moment]
    inner: Callable[..., Any] = getattr(owner, name)
    parent, calls = os.getpid(), 0

    def counting(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == kill.count:
            threading.Thread(target=_die, args=(parent, kill.delay), daemon=True).start()
        return inner(*args, **kwargs)

    setattr(owner, name, counting)


def _die(process: int, delay: float) -> None:
    """Of a loader worker, the training process dies: its parent."""
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)


def live(argv: Sequence[str], kill: Kill | None, log: str) -> None:
    """One process of training, as `python -m dino_dense.pretrain ARGV` has it, with output to a file."""
    # A child takes over its parent's way to start processes; users' loaders fork, and end when their parent is gone.
    multiprocessing.set_start_method("fork", force=True)
    torch.set_num_threads(1)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["pretrain", *argv]
    if kill is not None:
        arm(kill)
    command_line.run(pretrain)


class Lives:
    """Starts processes of one run in `folder` and waits for their end."""

    def __init__(self, folder: Path, epochs: int, changes: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["tests.faults.killing"])
        write_pictures(folder / "pictures", 26)  # 3 steps an epoch
        config = replace(TINY, data=str(folder / "pictures"), epochs=epochs, save_every=2, **(changes or {}))
        (folder / "recipe.yaml").write_text(schema.to_yaml(config))

    def start(self, run: Path, kill: Kill | None = None, *options: str) -> Any:
        """A process that begins the run or goes on with it."""
        argv = ["--config", str(self.folder / "recipe.yaml"), "--out", str(run), "--resume", "auto", *options]
        process = self.context.Process(target=live, args=(argv, kill, str(self.folder / "output.txt")))
        process.start()
        return process

    def end(self, process: Any) -> int:
        """Its exit status, negative for a signal.

        Raises AssertionError, with the output, for one that hangs or fails.
        """
        process.join(LIFE_SECONDS)
        if process.exitcode not in (0, -signal.SIGKILL):
            process.kill()
            raise AssertionError(f"exit status {process.exitcode}\n{(self.folder / 'output.txt').read_text()[-4000:]}")
        return process.exitcode


def assert_same_run(run: Path, peaceful: Path) -> None:
    """Bit-identical weights, optimizer and counters; a log without gap or repeat; nothing half written."""
    for name in ("last.safetensors", "teacher.safetensors"):
        ours, theirs = (read_tensors(folder / name) for folder in (run, peaceful))
        assert ours[0].keys() == theirs[0].keys()
        different = [key for key in ours[0] if not torch.equal(ours[0][key], theirs[0][key])]
        assert not different, f"{name}: {different}"
        assert ours[1]["step"] == theirs[1]["step"]
    logs = [pd.read_csv(folder / "log.csv").drop(columns=TIMES) for folder in (run, peaceful)]
    assert logs[0]["step"].tolist() == list(range(1, len(logs[0]) + 1))
    pd.testing.assert_frame_equal(*logs, check_exact=True)
    assert not list(run.glob(".*")), "a killed life's half file is left"


def kill_and_resume(
    folder: Path, moments: Sequence[str], seed: int, epochs: int, changes: Mapping[str, Any] | None = None
) -> tuple[Counter[str], int]:
    """Kill training once at each of `moments`, in that order; compare every run that got to its end.

    Returns:
        Kills that fell, by moment, and the number of runs that were compared.
    """
    lives, chance = Lives(folder, epochs, changes), random.Random(seed)
    lives.end(lives.start(folder / "peaceful"))
    fallen: Counter[str] = Counter()
    runs, todo = 0, list(moments)
    while todo:
        kill = draw_kill(todo[0], chance)
        # One loader worker or none, as it comes: the result is the same.
        status = lives.end(lives.start(folder / f"run{runs}", kill, "--num-workers", str(chance.randint(0, 1))))
        if status == -signal.SIGKILL:
            fallen[todo.pop(0)] += 1
        else:  # it came to its end first
            assert_same_run(folder / f"run{runs}", folder / "peaceful")
            runs += 1
    assert lives.end(lives.start(folder / f"run{runs}")) == 0
    assert_same_run(folder / f"run{runs}", folder / "peaceful")
    return fallen, runs + 1


def report(kills: int, seed: int, epochs: int, changes: Mapping[str, Any] | None = None) -> str:
    """Kills at random moments of one recipe, and the line that reports them."""
    chance = random.Random(seed)
    moments = [chance.choice(list(MOMENTS)) for _ in range(kills)]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        fallen, runs = kill_and_resume(Path(folder), moments, seed, epochs, changes)
    by_moment = ", ".join(f"{count} in the {moment}" for moment, count in sorted(fallen.items()))
    objectives = ", ".join((changes or {}).get("objectives", TINY.objectives))
    return (
        f"{objectives}: {fallen.total()} kills ({by_moment}) in {runs} run(s) of {3 * epochs} steps, bit-identical at "
        f"the end to one in peace, logs without gap or repeat ({time.monotonic() - start:.0f} s)"
    )


def main() -> list[str]:
    """The long form: DINO alone, then all objectives."""
    return [report(50, seed=0, epochs=20), report(20, seed=1, epochs=10, changes=ALL_OBJECTIVES)]
