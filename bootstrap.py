#!/usr/bin/env python3
"""Set up and run; needs only Python 3.11 or later: `python3 bootstrap.py quickstart` or `... test`.

The first call creates a virtual environment in .venv and installs the pinned, hash-checked packages of
requirements.lock; later calls reuse it. This script uses only the standard library.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
LOCK = ROOT / "requirements.lock"
ENVIRONMENT = ROOT / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
COMMANDS = {
    "quickstart": ["-m", "tasks", "quickstart"],
    "test": ["-m", "pytest", "--numprocesses", "auto", "--dist", "loadscope"],
    "setup": ["-c", "print('ready: .venv')"],
}


def set_up() -> None:
    """Create .venv and install the packages of the lock file, unless this was done for this lock file already."""
    marker = ENVIRONMENT / "installed-from"
    wanted = hashlib.sha256(LOCK.read_bytes()).hexdigest()
    if marker.is_file() and marker.read_text() == wanted:
        return
    print("Setting up .venv (once; some gigabytes, since PyTorch is large)...", flush=True)
    subprocess.check_call([sys.executable, "-m", "venv", str(ENVIRONMENT)])
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check"]
    subprocess.check_call([*pip, "install", "--quiet", "uv"])
    # Compiled once here: some environments do not keep compiled files, so that every start would compile PyTorch.
    install = [str(PYTHON), "-m", "uv", "pip", "install", "--quiet", "--compile-bytecode", "--python", str(PYTHON)]
    subprocess.check_call([*install, "--require-hashes", "-r", str(LOCK)])
    subprocess.check_call([*install, "--no-deps", "--editable", str(ROOT)])
    marker.write_text(wanted)


def main() -> int:
    """Set up, then run the command with the remaining arguments."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(f"usage: python3 bootstrap.py {{{','.join(COMMANDS)}}} [options]")
        return 2
    if sys.version_info < (3, 11):  # noqa: UP036, this file is what an older Python meets first
        print(f"Python 3.11 or later is needed; this is {sys.version.split()[0]}.")
        return 1
    try:
        set_up()
    except subprocess.CalledProcessError as error:
        print(
            f"set-up stopped at: {' '.join(map(str, error.cmd))}\nIts message is above. Mend that and run this again."
        )
        return 1
    os.chdir(ROOT)
    sys.stdout.flush()
    # Replaces this process, so that only the command receives Ctrl-C and saves before it ends.
    os.execv(PYTHON, [str(PYTHON), *COMMANDS[sys.argv[1]], *sys.argv[2:]])


if __name__ == "__main__":
    raise SystemExit(main())
