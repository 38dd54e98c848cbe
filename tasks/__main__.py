"""`python -m tasks`: which tasks there are, any task by its name, and the quickstart."""

import sys

from dino_dense import cli
from tasks import get, names
from tasks import main as run_task
from tasks._quickstart import quickstart


def main() -> int:
    """`python -m tasks NAME [...]` (tasks of other packages too), `... quickstart`, or the list of tasks."""
    if sys.argv[1:2] == ["quickstart"]:
        return quickstart(sys.argv[2:])
    if sys.argv[1:] and sys.argv[1] in names():
        return run_task(sys.argv[1], sys.argv[2:])
    print("usage: python -m tasks NAME --ckpt CHECKPOINT [--help]\n       python -m tasks quickstart [--help]\n")
    for name in names():
        print(f"  {name:<12}{get(name).summary}")
    return 0 if len(sys.argv) == 1 else 2


if __name__ == "__main__":
    cli.run(main)
