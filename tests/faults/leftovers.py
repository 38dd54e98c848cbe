"""What a process leaves behind after success, an error and Ctrl-C: no process, no temporary file, no shared memory."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from dino_dense.config import schema
from tests.faults import broken
from tests.pretrain.tiny_run import TINY, write_pictures

PROJECT = Path(__file__).parents[2]
SHARED = Path("/dev/shm")
PATIENCE = 15.0
"""Seconds within which the last process must be gone; a loader worker looks for its parent every 5."""


def group_is_alive(group: int) -> bool:
    """Whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def shared_memory() -> set[str]:
    """Names of torch's blocks of shared memory."""
    return {path.name for path in SHARED.glob("torch_*")} if SHARED.is_dir() else set()


def run_and_look(folder: Path, ending: str, expected: int) -> None:
    """Train with two loader processes to this ending; raise AssertionError for whatever is left."""
    config = replace(TINY, data=str(folder / "pictures"), out=str(folder / ending), num_workers=2, epochs=4)
    if ending == "error":
        config = replace(config, data=str(folder / "broken"), on_bad_sample="raise")
    if ending == "ctrl-c":
        config = replace(config, epochs=4000)
    (folder / f"{ending}.yaml").write_text(schema.to_yaml(config))
    temporary = folder / f"tmp-{ending}"
    temporary.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT), "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "dino_dense.pretrain", "--config", str(folder / f"{ending}.yaml")]
    before = shared_memory()
    with (folder / f"{ending}.txt").open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
        if ending == "ctrl-c":
            wait_for_rows(folder / ending / "log.csv", process)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        status = process.wait(300)
    assert status == expected, f"{ending}: {status}\n{(folder / f'{ending}.txt').read_text()[-3000:]}"
    until = time.monotonic() + PATIENCE
    while group_is_alive(process.pid) and time.monotonic() < until:
        time.sleep(0.1)
    assert not group_is_alive(process.pid), f"{ending}: a process is left"
    assert not list(temporary.iterdir()), f"{ending}: {list(temporary.iterdir())}"
    assert not list((folder / ending).glob(".*")), f"{ending}: half files are left"
    mine = {name for name in shared_memory() - before if f"_{process.pid}_" in name}
    assert not mine, f"{ending}: {mine}"


def wait_for_rows(log: Path, process: "subprocess.Popen[bytes]") -> None:
    """Until training has logged a step."""
    until = time.monotonic() + 300
    while not (log.is_file() and len(log.read_text().splitlines()) > 3):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)


def main() -> list[str]:
    """The long form; the lines it reports."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "pictures", 26)
        write_pictures(folder / "broken", 26)
        broken.cut(folder / "broken" / "9.png")
        for ending, expected in (("success", 0), ("error", 2), ("ctrl-c", 130)):
            run_and_look(folder, ending, expected)
    return ["after success, error and Ctrl-C: no process, no temporary file, no shared memory left"]


if __name__ == "__main__":
    print("\n".join(main()))
