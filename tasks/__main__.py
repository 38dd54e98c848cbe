"""`python -m tasks`: which tasks there are, any task by its name, a suite of them, and the quickstart."""

import importlib
import sys

from dino_dense import cli
from tasks import get, names
from tasks import main as run_task
from tasks._batch import main as run_suite
from tasks._quickstart import quickstart
from tasks._task import COMMANDS

USAGE = """usage: python -m tasks NAME --ckpt CHECKPOINT [--help]
       python -m tasks --suite SUITE --ckpt A --ckpt B --out DIR [--help]
       python -m tasks quickstart [--help]
"""


def main() -> int:
    """`python -m tasks NAME [...]` (tasks of other packages too), `... --suite NAME`, `... quickstart`, or the list."""
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    if first == "quickstart":
        return quickstart(sys.argv[2:])
    if first in COMMANDS:
        return importlib.import_module(f"tasks.{first}").main(sys.argv[2:])
    if first in names():
        return run_task(first, sys.argv[2:])
    if first.startswith("--") and first != "--help":
        return run_suite()
    if first not in ("", "-h", "--help"):
        get(first)  # says which there are
    print(USAGE)
    for name in names():
        print(f"  {name:<12}{get(name).summary}")
    print()
    for name, summary in COMMANDS.items():
        print(f"  {name:<12}{summary}")
    print("\n--help after a name, or after --suite SUITE, explains its options.")
    return 0


if __name__ == "__main__":
    cli.run(main)
