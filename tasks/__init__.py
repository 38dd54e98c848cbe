"""One public module = one task = one command: `python -m tasks.NAME`. See CONTRIBUTING for how to add one."""

from tasks.harness.context import Context, DataFacts
from tasks.harness.options import RunOptions
from tasks.harness.registry import get, names
from tasks.harness.runner import main, run_one
from tasks.harness.task import Outcome, Task, mean_scores

__all__ = ["Context", "DataFacts", "Outcome", "RunOptions", "Task", "get", "main", "mean_scores", "names", "run_one"]
