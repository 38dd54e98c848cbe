"""One public module = one task = one command: `python -m tasks.NAME`. See CONTRIBUTING for how to add one."""

from tasks._task import Context, DataFacts, Outcome, RunOptions, Task, get, main, mean_scores, names, run_one

__all__ = ["Context", "DataFacts", "Outcome", "RunOptions", "Task", "get", "main", "mean_scores", "names", "run_one"]
