"""One public module = one task = one command: `python -m tasks.NAME`. See CONTRIBUTING for how to add one."""

from typing import TYPE_CHECKING

from dino_dense.lazy import lazy_names

if TYPE_CHECKING:
    from tasks.harness.context import Context, DataFacts
    from tasks.harness.options import RunOptions
    from tasks.harness.registry import get, names
    from tasks.harness.runner import main, run_one
    from tasks.harness.task import Outcome, Task, mean_scores
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "tasks.harness.context": ("Context", "DataFacts"),
            "tasks.harness.options": ("RunOptions",),
            "tasks.harness.registry": ("get", "names"),
            "tasks.harness.runner": ("main", "run_one"),
            "tasks.harness.task": ("Outcome", "Task", "mean_scores"),
        },
    )

__all__ = ["Context", "DataFacts", "Outcome", "RunOptions", "Task", "get", "main", "mean_scores", "names", "run_one"]
