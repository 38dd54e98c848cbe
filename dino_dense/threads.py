"""The processors that this process may use, and how its threads wait.

PyTorch is not imported here: its threads read their settings once, when the library is loaded.
"""

import os
import sys

WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""If any of them is set, the user has chosen."""


def let_threads_sleep() -> None:
    """Make OpenMP threads sleep while they wait for each other; call it before PyTorch is imported.

    By default they spin for milliseconds after each parallel loop. If processes share a processor, a spinning thread
    can keep it from the thread that it waits for. The split of the work is unchanged, so results are equal bit by bit.
    Does nothing if one of `WAIT_VARIABLES` is set or PyTorch is loaded already.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in WAIT_VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "passive"


def processors() -> int:
    """Processors for this process: the allowed processors, divided among the run's processes on this machine.

    torchrun states the number of processes (LOCAL_WORLD_SIZE). Without it, all processes of the run are assumed to be
    on this machine, unless the launcher has given each its own processors, as Slurm does.
    """
    everything = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else everything
    total = os.environ.get("WORLD_SIZE", "1") if usable == everything else "1"
    here = os.environ.get("LOCAL_WORLD_SIZE") or total
    return max(1, usable // max(1, int(here) if here.isdecimal() else 1))
