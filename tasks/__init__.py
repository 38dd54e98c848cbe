"""One public module = one task = one command: `python -m tasks.NAME`. See CONTRIBUTING for how to add one."""

from typing import TYPE_CHECKING

from dino_dense.lazy import lazy_names

if TYPE_CHECKING:
    from tasks.harness.command import main
    from tasks.harness.options import RunOptions
    from tasks.harness.registry import get, names
    from tasks.harness.runner import measured, run_one
    from tasks.harness.session import DataFacts, Session
    from tasks.harness.task import Outcome, Task, mean_scores
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "tasks.harness.options": ("RunOptions",),
            "tasks.harness.registry": ("get", "names"),
            "tasks.harness.command": ("main",),
            "tasks.harness.runner": ("measured", "run_one"),
            "tasks.harness.session": ("DataFacts", "Session"),
            "tasks.harness.task": ("Outcome", "Task", "mean_scores"),
        },
    )

__all__ = [
    "DataFacts",
    "Outcome",
    "RunOptions",
    "Session",
    "Task",
    "get",
    "main",
    "mean_scores",
    "measured",
    "names",
    "run_one",
]
