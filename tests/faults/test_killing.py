"""The short form of `make faults`: kills, signals, and states that cannot be written or read."""

import signal
import time
from pathlib import Path

import pandas as pd

from tests.faults.killing import MOMENTS, Lives, assert_same_run, kill_and_resume


def test_a_run_killed_at_every_moment_ends_as_one_in_peace(tmp_path: Path):
    fallen, _ = kill_and_resume(tmp_path, list(MOMENTS), seed=1, epochs=5)
    assert set(fallen) == set(MOMENTS)
    sigterm_saves_and_ends_with_0(Lives(tmp_path, epochs=5), tmp_path)


def sigterm_saves_and_ends_with_0(lives: Lives, folder: Path) -> None:
    run = folder / "terminated"
    process = lives.start(run, None, "--save-every", "100")
    while not (run / "log.csv").is_file() or len(pd.read_csv(run / "log.csv")) < 2:
        assert process.is_alive()
        time.sleep(0.01)
    process.terminate()
    process.join(60)
    assert process.exitcode == 0
    output = (folder / "output.txt").read_text()
    assert "saved. Continue with: python -m dino_dense.pretrain --config" in output
    process = lives.start(run)
    assert lives.end(process) == 0 != signal.SIGTERM
    assert_same_run(run, folder / "peaceful")
