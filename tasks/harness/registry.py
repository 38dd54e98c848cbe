"""Find tasks and commands by name: modules of `tasks`, and entry points of other packages."""

import ast
import difflib
import functools
import importlib
import importlib.util
import pkgutil
import re
from importlib.metadata import entry_points
from typing import Any, Literal

import tasks
from tasks.harness.task import Task

ENTRY_POINT_GROUP = "dino_dense.tasks"


def names() -> list[str]:
    """Names of all tasks: modules of `tasks` that define TASK, and entry points of other packages."""
    return sorted({*_own_names("TASK"), *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def commands() -> list[str]:
    """Names of the commands that only draw: modules of `tasks` that define COMMAND."""
    return _own_names("COMMAND")


def summary(name: str) -> str:
    """The summary of a task or command: the first line of its module, which is not imported.

    A task of another package is imported.
    """
    if name not in _own_names("TASK") + _own_names("COMMAND"):
        return get(name).summary
    return (ast.get_docstring(ast.parse(_source(name))) or "").partition("\n")[0]


def _own_names(kind: Literal["TASK", "COMMAND"]) -> list[str]:
    """Modules of `tasks` that define this name at top level; packages are rooms that tasks share."""
    modules = [module.name for module in pkgutil.iter_modules(tasks.__path__) if not module.ispkg]
    return sorted(name for name in modules if re.search(rf"^{kind} = ", _source(name), re.MULTILINE))


@functools.cache
def _source(name: str) -> str:
    """The source of a module of `tasks`; importing it may be slow."""
    spec = importlib.util.find_spec(f"tasks.{name}")
    loader: Any = spec.loader if spec else None
    return loader.get_source(f"tasks.{name}") or ""


def get(name: str) -> Task:
    """The task of that name.

    Raises:
        ValueError: there is no such task; the message lists the tasks.
    """
    if name in _own_names("TASK"):  # our tasks take precedence over entry points
        return importlib.import_module(f"tasks.{name}").TASK
    for point in entry_points(group=ENTRY_POINT_GROUP):
        if point.name == name:
            return point.load()
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ValueError(f"unknown task {name!r}; there are: {', '.join(names())}.{hint}")
