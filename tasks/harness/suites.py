"""Suites: lists of tasks and configs in YAML."""

import importlib.resources
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dino_dense.config import command_line, presets, schema
from tasks.harness.registry import get
from tasks.harness.task import Task

ENTRY_KEYS = ("task", "label", "preset", "config")


@dataclass(frozen=True)
class SuiteEntry:
    """A task with its config in a suite."""

    label: str
    task: Task
    config: Any


# --- The suite ---


def load_suite(name: str, data_root: str | None = None) -> list[SuiteEntry]:
    """The entries of a suite; all names and values are checked before anything runs.

    Raises:
        FileNotFoundError: no such suite; the message lists the suites.
        ValueError: the file is no list of entries, has an unknown task, field or preset, or a duplicate label.
    """
    text, path = _read_suite(name)
    try:
        records = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({str(error).splitlines()[0]}).") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records) or not records:
        raise ValueError(f"{path}: expected a list of entries, each with a task and its config.")
    entries = [_entry(record, path, data_root) for record in records]
    labels = [entry.label for entry in entries]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f"{path}: two entries are called {label!r}; give each a label of its own.")
    return entries


def _read_suite(name: str) -> tuple[str, str]:
    """The text of a suite, and its name in errors."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such suite file.")
        return path.read_text(), str(path)
    folder = importlib.resources.files("configs") / "suites"
    names = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    if name not in names:
        raise FileNotFoundError(f"no suite {name!r}; there are: {', '.join(names)}, or name a .yaml file.")
    return (folder / f"{name}.yaml").read_text(), f"configs/suites/{name}.yaml"


def _entry(record: dict[str, Any], path: str, data_root: str | None) -> SuiteEntry:
    unknown = set(map(str, record)) - set(ENTRY_KEYS)
    if unknown or "task" not in record:
        keys, expected = ", ".join(map(str, record)), ", ".join(ENTRY_KEYS[1:])
        raise ValueError(f"{path}: an entry has {keys}; expected task, and any of {expected}.")
    label = str(record.get("label", record["task"]))
    if not re.fullmatch(r"\w[\w.+-]*", label):
        raise ValueError(f"{path}: label {label!r}; expected letters, digits, dots, plus, minus and underscores.")
    try:
        task = get(str(record["task"]))
        return SuiteEntry(label, task, command_line.from_recipe(task.config, _values(record, task, data_root)))
    except ValueError as error:
        raise ValueError(f"{path}: entry {label}: {error}") from None


def _values(record: dict[str, Any], task: Task, data_root: str | None) -> dict[str, Any]:
    """The config values of an entry, over its preset's constants."""
    values = record.get("config") or {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"config is {values!r}; expected fields and their values, as {{data: FOLDER}}.")
    if data_root is not None:
        values = schema.below_root(task.config, values, data_root)
    if "preset" not in record:
        return values
    return {**presets.load_protocol(task.name, str(record["preset"])), **values}
