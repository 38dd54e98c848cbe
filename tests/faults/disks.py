"""Training on a real file system that is full, and on one that is read-only (Linux, where mounts are allowed)."""

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from dino_dense.checkpoint import read_tensors
from dino_dense.config import schema
from dino_dense.pretrain.run_folder import state_files
from tests.pretrain.tiny_run import TINY, write_pictures

PROJECT = Path(__file__).parents[2]
# A state of the tiny run is 13 MB, its teacher 3 MB: there is room for two and a half of the three states kept.
SCRIPT = """
set -e
mount -t tmpfs -o size={size} none {disk}
set +e
{python} -m dino_dense.pretrain --config {recipe}
echo $? > {folder}/full.status
cp -r {disk} {folder}/after
mount -o remount,ro {disk}
{python} -m dino_dense.pretrain --config {recipe} --resume auto
echo $? > {folder}/read-only.status
"""


def main(size: str = "40m") -> list[str]:
    """The long form; the lines it reports."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-rm", "true"], check=False).returncode:
        return ["not run: this system allows no mounts of one's own"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "disk").mkdir()
        write_pictures(folder / "pictures", 26)
        config = replace(TINY, data=str(folder / "pictures"), out=str(folder / "disk" / "run"), save_every=1, keep=3)
        (folder / "recipe.yaml").write_text(schema.to_yaml(config))
        places = {"disk": folder / "disk", "folder": folder, "recipe": folder / "recipe.yaml"}
        script = SCRIPT.format(size=size, python=sys.executable, **places)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
        command = [unshare, "-rm", "sh", "-c", script]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        full, read_only = ((folder / f"{name}.status").read_text().strip() for name in ("full", "read-only"))
        assert (full, read_only) == ("1", "1"), done.stderr[-3000:]
        assert "cannot be written" in done.stderr
        assert "No space left on device" in done.stderr
        assert "Read-only file system" in done.stderr
        states = [read_tensors(path)[1]["step"] for path in state_files(folder / "after" / "run")]
        assert states, "no state is left"
        assert not list((folder / "after" / "run").glob(".*"))
    return [f"a full disk: status 1, the states of steps {states} kept whole; a read-only one: status 1, said so"]


if __name__ == "__main__":
    print("\n".join(main()))
