"""A busy neighbor: slowdown of work while another process keeps one processor busy.

With three busy threads on two processors, a slowdown of 1.5 is fair. Threads that spin while they wait (PyTorch's
default) make it 2.6 and more: the row "threads spin". The project's commands use the mode of the row "threads sleep"
(`dino_dense.threads.let_threads_sleep`). Quiet and busy runs alternate in one warm process, so that a drift affects
both.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.bench import Row, publish
from dino_dense.threads import WAIT_VARIABLES

ROUNDS = 3
FAIR = 1.7
"""Largest allowed slowdown; 1.5 is fair for three threads on two processors."""
FRAMES = 13
STEPS = 12
RECIPE = Path(__file__).parents[1] / "configs" / "pretrain" / "quickstart.yaml"
BUSY = [sys.executable, "-S", "-c", "while True: pass"]
SPINS = "300000"
"""Checks of libgomp's threads before they sleep, by default (libgomp manual, GOMP_SPINCOUNT)."""
POLICIES = {"threads spin": {"GOMP_SPINCOUNT": SPINS}, "threads sleep": {"OMP_WAIT_POLICY": "passive"}}


# --- The work, in a process of its own ----------------------------------------------------------------------


def davis_work() -> Callable[[], float]:
    """FRAMES frames to J&F with ViT-S/16."""
    from benchmarks.davis import ours
    from benchmarks.scoring import tree
    from data.davis import load_davis
    from dino_dense import load_backbone
    from tasks.davis import DavisConfig

    root, year = tree()
    name = load_davis(root, year)[0].name
    config = DavisConfig(data=str(root), year=year, sequences=(name,), max_frames=FRAMES)
    backbone = load_backbone("random:vit_small_patch16_224")

    def work() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return ours(backbone, config, Path(folder) / "davis")

    return work


def training_work() -> Callable[[], float]:
    """STEPS steps of the quickstart's recipe, with crops from loader processes."""
    import pandas as pd
    import torch
    import yaml

    from data.pretraining import open_pretraining_data
    from data.sample import sample_data
    from dino_dense.config import schema
    from dino_dense.distributed import World
    from dino_dense.pretrain.config import PretrainConfig
    from dino_dense.pretrain.trainer import Trainer

    images = open_pretraining_data(sample_data().images / "train")

    def work() -> float:
        with tempfile.TemporaryDirectory() as folder:
            changes = {"max_steps": STEPS, "log_every": STEPS, "out": f"{folder}/run"}
            config = schema.from_plain(PretrainConfig, yaml.safe_load(RECIPE.read_text()) | changes)
            Trainer(config, images, World(), torch.device("cpu")).train()
            return float(pd.read_csv(f"{folder}/run/log.csv")["loss"].iloc[-1])

    return work


WORK = {
    "davis": (davis_work, f"{FRAMES} frames to J&F, ViT-S/16, fp32"),
    "training": (training_work, f"{STEPS} steps of the quickstart's training"),
}


def serve(name: str) -> None:
    """Do the work once for each line on standard input; print its seconds and its result."""
    work = WORK[name][0]()
    sys.stdout, answers = sys.stderr, sys.stdout
    work()  # warm-up
    for _ in sys.stdin:
        start = time.perf_counter()
        result = work()
        print(json.dumps((time.perf_counter() - start, result)), file=answers, flush=True)


# --- Quiet and busy in turn ---------------------------------------------------------------------------------


def measure(name: str, policy: str) -> Row:
    """Measure a kind of work under a policy; quiet and busy results must be equal."""
    clean = {key: value for key, value in os.environ.items() if key not in WAIT_VARIABLES}
    command = [sys.executable, "-c", f"from benchmarks.neighbor import serve; serve({name!r})"]
    quiet, busy, results = [], [], set()
    with tempfile.TemporaryFile() as messages:
        child = subprocess.Popen(
            command,
            env=clean | POLICIES[policy],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            text=True,
        )
        try:
            for _ in range(ROUNDS):
                for seconds, neighbor in ((quiet, False), (busy, True)):
                    with busy_neighbor() if neighbor else _nobody():
                        taken, result = ask(child)
                    seconds.append(taken)
                    results.add(result)
        finally:
            child.kill()
            child.wait()
    ratio = statistics.median(b / q for q, b in zip(quiet, busy, strict=True))
    before, after = statistics.median(quiet), statistics.median(busy)
    limit = FAIR * before if policy == "threads sleep" else None
    check = f"results {'equal' if len(results) == 1 else 'differ'}"
    note = f"with a neighbor {ratio:.2f} times as long (pair by pair)"
    work = f"{WORK[name][1]}, {policy}: alone, then with a busy neighbor"
    return Row("neighbor", work, before, after, "s", limit=limit, check=check, agrees=len(results) == 1, note=note)


def ask(child: "subprocess.Popen[str]") -> tuple[float, float]:
    """Run the work once more; its seconds and result."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("go\n")
    child.stdin.flush()
    answer = child.stdout.readline()
    if not answer:
        raise RuntimeError(f"the work ended with status {child.wait()}")
    seconds, result = json.loads(answer)
    return seconds, result


@contextmanager
def busy_neighbor() -> Iterator[None]:
    """A context with a process that keeps one processor busy."""
    process = subprocess.Popen(BUSY)
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def _nobody() -> Iterator[None]:
    yield


def main() -> list[Row]:
    rows = [measure(name, policy) for name in WORK for policy in POLICIES]
    publish(rows)
    return rows


if __name__ == "__main__":
    main()
