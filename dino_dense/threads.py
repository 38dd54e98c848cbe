"""How many processors this process may use, and what its threads do while they wait.

PyTorch is not imported here: its threads read their settings once, when its library is loaded.
"""

import os
import sys

WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Any of them in the environment is the user's own choice."""


def let_threads_sleep() -> None:
    """Make OpenMP threads sleep while they wait for each other; call it before PyTorch is imported.

    By default they spin, for milliseconds after each parallel loop. Where another process wants the processor too, the
    spinning thread keeps it from the very thread that it waits for. Threads split the work as before, so that results
    are equal bit by bit. Nothing happens where the user has set one of `WAIT_VARIABLES`, or PyTorch is loaded already.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in WAIT_VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "passive"


def processors() -> int:
    """Processors for this process: those that the system lets it use, shared among the run's processes of this machine.

    torchrun says how many these are (LOCAL_WORLD_SIZE); without it all processes of the run are taken to be here,
    unless the launcher has given each its own processors, as Slurm does.
    """
    everything = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else everything
    total = os.environ.get("WORLD_SIZE", "1") if usable == everything else "1"
    here = os.environ.get("LOCAL_WORLD_SIZE") or total
    return max(1, usable // max(1, int(here) if here.isdecimal() else 1))
