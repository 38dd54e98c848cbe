"""`python -m tasks`: list the tasks, run a task by name, run a suite, or run the quickstart."""

import importlib
import sys

from dino_dense.config import command_line
from tasks.harness import batch, command, quickstart
from tasks.harness.registry import commands, get, names, summary

USAGE = """usage: python -m tasks NAME --ckpt CHECKPOINT [--help]
       python -m tasks --suite SUITE --ckpt A --ckpt B --out DIR [--help]
       python -m tasks quickstart [--help]
"""


def main() -> int:
    """Run `python -m tasks NAME [...]` (also of other packages), `--suite NAME` or `quickstart`; else list tasks."""
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    if first == "quickstart":
        return quickstart.main(sys.argv[2:])
    if first in commands():
        return importlib.import_module(f"tasks.{first}").COMMAND.main(sys.argv[2:])
    if first in names():
        return command.main(first, sys.argv[2:])
    if first.startswith("--") and first != "--help":
        return batch.main()
    if first not in ("", "-h", "--help"):
        get(first)  # its error lists the tasks
    print(USAGE)
    width = 2 + max(map(len, [*names(), *commands()]))
    for name in names():
        print(f"  {name:<{width}}{summary(name)}")
    print()
    for name in commands():
        print(f"  {name:<{width}}{summary(name)}")
    print("\n--help after a name, or after --suite SUITE, explains its options.")
    return 0


if __name__ == "__main__":
    command_line.run(main)
