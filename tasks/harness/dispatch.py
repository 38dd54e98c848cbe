"""The command `dino-dense`: one name for what `python -m` runs."""

import importlib
import sys
from typing import NoReturn

from dino_dense.config import command_line

MODULES = {
    "pretrain": "dino_dense.pretrain.__main__",
    "report": "dino_dense.report.__main__",
    "export": "dino_dense.export.__main__",
}
"""Word -> the module whose `main` reads the words after it."""
USAGE = """usage: dino-dense pretrain [--help]                     python -m dino_dense.pretrain
       dino-dense TASK --ckpt CHECKPOINT [--help]       python -m tasks.TASK
       dino-dense suite SUITE --ckpt A --ckpt B [--help]  python -m tasks --suite SUITE
       dino-dense report FOLDERS [--help]               python -m dino_dense.report
       dino-dense export --ckpt CHECKPOINT [--help]     python -m dino_dense.export
       dino-dense quickstart [--help]                   python -m tasks quickstart
"""


def main() -> NoReturn:
    """Run the command line of `dino-dense`."""
    command_line.run(_main)


def _main() -> int | None:
    first, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if first in MODULES:
        sys.argv = [sys.argv[0], *rest]
        return importlib.import_module(MODULES[first]).main()
    if first == "suite":
        named = ["--suite", *rest] if rest and not rest[0].startswith("-") else ["--suite=", *rest]
        sys.argv = [sys.argv[0], *named]
    elif first in ("", "-h", "--help"):
        print(USAGE)
    return importlib.import_module("tasks.__main__").main()
