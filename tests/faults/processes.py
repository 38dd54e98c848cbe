"""Several processes under torchrun: the single process's numbers, and what happens when one of them dies."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from dino_dense.config import schema
from tests.faults import broken
from tests.faults.killing import TIMES, assert_same_run
from tests.pretrain.tiny_run import TINY, write_pictures

PROJECT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
RANDOM = "random:vit_micro_patch8_64"
IMAGES = ["--resize", "64", "--crop", "64"]
TASKS = {
    "knn": ("classes", [*IMAGES, "--k", "1,3"]),
    "linear": ("classes", [*IMAGES, "--features", "cached", "--epochs", "5"]),
    "davis": ("davis", ["--short-side", "64"]),
}


def launch(processes: int, module: str, words: Sequence[str], *options: str, cache: Path | None = None):
    """`python -m MODULE WORDS`, under torchrun where there are several processes; what it said."""
    several = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *options, "-m"]
    command = [sys.executable, "-m", *(several if processes > 1 else []), module, *words]
    environment = dict(ENVIRONMENT)
    if cache is not None:
        environment["DINO_DENSE_CACHE"] = str(cache)  # no features of another number of processes
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)


def start_each(processes: int, module: str, words: Sequence[str]) -> list[subprocess.Popen[str]]:
    """The same as Slurm's `srun` starts them: nobody ends a process because another one ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
    command = [sys.executable, "-m", module, *words]
    return [
        subprocess.Popen(
            command,
            env={**ENVIRONMENT, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def recipe(folder: Path) -> list[str]:
    """Options of a run of ten steps in one, two or four processes."""
    write_pictures(folder / "pictures", 26)
    config = replace(TINY, data=str(folder / "pictures"), max_steps=10, save_every=2, num_workers=0)
    (folder / "recipe.yaml").write_text(schema.to_yaml(config))
    return ["--config", str(folder / "recipe.yaml"), "--resume", "auto"]


def train(folder: Path, processes: int, name: str, *options: str, module: str = "dino_dense.pretrain"):
    return launch(processes, module, [*recipe(folder), "--out", str(folder / name)], *options)


def the_others_stop(folder: Path, processes: int = 2) -> float:
    """Process 1 dies, and each of the others ends by itself and says why. Seconds it took."""
    lives = start_each(processes, "tests.faults.dying", [*recipe(folder), "--out", str(folder / "stopped")])
    try:
        said = [life.communicate(timeout=300)[1] for life in lives]
    finally:
        for life in lives:
            life.kill()
    seconds = time.time() - (folder / "stopped" / "log.csv").stat().st_mtime  # since the last step before it died
    assert seconds < 60, f"{seconds:.0f} s"
    assert lives[1].returncode == -signal.SIGKILL, said[1][-4000:]
    for rank in set(range(processes)) - {1}:
        assert f"process {rank} of {processes}: another process is gone" in said[rank], said[rank][-4000:]
        assert lives[rank].returncode == 1
    return seconds


def restarts(folder: Path, processes: int = 2) -> pd.DataFrame:
    """A run under `torchrun --max-restarts` whose process 1 died once; its log."""
    done = train(folder, processes, "restarted", "--max-restarts", "1", module="tests.faults.dying")
    assert done.returncode == 0, done.stderr[-4000:]
    assert re.search(r"failed \(exitcode: -9\) local_rank: 1", done.stderr), done.stderr[-4000:]
    assert "resumes from last.safetensors at step 4" in done.stdout
    return pd.read_csv(folder / "restarted" / "log.csv")


def a_process_dies(folder: Path, processes: int = 2) -> float:
    """The others stop and say so; with a restart the run ends as one in peace. Seconds the first took."""
    assert train(folder, processes, "peaceful").returncode == 0
    seconds = the_others_stop(folder, processes)
    restarts(folder, processes)
    assert_same_run(folder / "restarted", folder / "peaceful")
    return seconds


def training_agrees(folder: Path, processes: int) -> float:
    """Largest difference of the loss to the single process's."""
    logs = []
    for count in (1, processes):
        done = train(folder, count, f"train{count}")
        assert done.returncode == 0, done.stderr[-4000:]
        logs.append(pd.read_csv(folder / f"train{count}" / "log.csv").drop(columns=TIMES))
    assert logs[0]["step"].tolist() == logs[1]["step"].tolist()
    difference = float((logs[0]["loss"] - logs[1]["loss"]).abs().max())
    assert difference < 1e-4, difference
    return difference


def task_agrees(folder: Path, task: str, processes: int) -> float:
    """Largest difference of a score to the single process's, percentage points."""
    kind, options = TASKS[task]
    if not (folder / kind).exists():
        broken.SETS[kind](folder / kind)
    tables = []
    for count in (1, processes):
        out, cache = folder / f"{task}{count}", folder / f"cache-{task}{count}"
        words = ["--ckpt", RANDOM, "--data", str(folder / kind), "--out", str(out), "--device", "cpu", *options]
        done = launch(count, f"tasks.{task}", words, cache=cache) if not out.exists() else None
        assert done is None or done.returncode == 0, done.stderr[-4000:]
        tables.append(pd.read_csv(out / "results.csv").select_dtypes(np.number))
        tables[-1] = tables[-1].drop(columns=[name for name in tables[-1] if "second" in name or "memory" in name])
    pd.testing.assert_frame_equal(*tables, rtol=0, atol=1e-3)
    return float((tables[0] - tables[1]).abs().max().max())


def main() -> list[str]:
    """The long form; the lines it reports."""
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for processes in (2, 4):
            lines.append(f"{processes} processes, training: loss differs by {training_agrees(folder, processes):.1e}")
            scores = [f"{task} {task_agrees(folder, task, processes):.1e}" for task in TASKS]
            lines.append(f"{processes} processes, scores differ by: {', '.join(scores)}")
        (folder / "dying").mkdir()
        seconds = a_process_dies(folder / "dying")
        lines.append(f"a process died: all had ended {seconds:.0f} s later, saying so; restarted bit-identical")
    return lines


if __name__ == "__main__":
    print("\n".join(main()))
