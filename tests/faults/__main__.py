"""`make faults`: the long forms, one after another; a line each of what was found, or a traceback and status 1."""

import sys
import time
from collections.abc import Callable

from tests.faults import disks, growing, killing, leftovers, processes

PARTS: dict[str, Callable[[], list[str]]] = {
    "killing": killing.main,
    "disks": disks.main,
    "processes": processes.main,
    "growing": growing.main,
    "leftovers": leftovers.main,
}


def main() -> int:
    """Run the parts named on the command line, or all."""
    for name in sys.argv[1:] or list(PARTS):
        start = time.monotonic()
        for line in PARTS[name]():
            print(f"{name}: {line}", flush=True)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
