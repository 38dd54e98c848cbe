"""The runner lends a task its results folder, its processes and its seed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_dense import distributed
from dino_dense.files import write_text
from dino_dense.report import PAIRS_FILE, TASK_FILE

if TYPE_CHECKING:
    import torch

IDENTITY_FILE = TASK_FILE


class OtherRunError(ValueError):
    """A results folder that holds what another run made. The message says what differs."""


@dataclass(frozen=True)
class DataFacts:
    """Which data a number was measured on."""

    name: str
    """As people call it; says so where it is the embedded set."""
    root: str
    n: int
    """How many of `unit`."""
    unit: str
    """images, sequences, ..."""
    sha256: str
    """Of the list of files (names and sizes)."""
    dataset: str | None = None
    """The published data set this is, complete and unchanged; None for any other data."""


@dataclass(frozen=True)
class Context:
    """What the runner lends a task."""

    out: Path
    device: torch.device | None = None
    """None where a run computes nothing with PyTorch."""
    world: distributed.World = field(default_factory=distributed.World)
    identity: dict[str, Any] = field(default_factory=dict)
    """What makes these results these: they are kept apart from those of any other run."""
    pieces: frozenset[str] = frozenset()
    """Further pieces of image features (`_features`) that later tasks will ask for: extracted in one go."""
    seed: int = 0
    """Of every draw."""

    def bind(self, data: DataFacts) -> None:
        """Say which data the task's files are made from, before any is written or reused.

        Raises:
            OtherRunError: the results folder holds files made from other data, or by something else.
        """
        self.identity["data_sha256"] = data.sha256
        check_same_run(self.out, self.identity)
        distributed.barrier()  # every process has looked before any writes

    def folder(self, name: str = "") -> Path:
        """A folder for the task's files, made on first use, so that a run that fails early leaves nothing."""
        path = self.out / name
        path.mkdir(parents=True, exist_ok=True)
        if self.identity and self.world.is_main and not (self.out / IDENTITY_FILE).exists():
            write_text(self.out / IDENTITY_FILE, json.dumps(self.identity, indent=2) + "\n")
        return path


def check_same_run(out: Path, identity: Mapping[str, Any]) -> None:
    """Raise where `out` holds results that a run of this identity must not go on from."""
    before = out / IDENTITY_FILE
    if (out / PAIRS_FILE).is_file():
        raise ValueError(f"{out}: holds the report of a batch ({PAIRS_FILE}). Choose another --out.")
    if not before.is_file():
        if (out / "masks").exists():
            raise ValueError(f"{out}: holds masks but no {IDENTITY_FILE} that says of which run. Choose another --out.")
        return
    try:
        held = json.loads(before.read_text())
    except ValueError:
        raise ValueError(
            f"{before}: damaged, so that nobody knows which run's results these are. Delete {out}, or choose another "
            "--out."
        ) from None
    changed = _differences(held, identity)
    if changed:
        raise OtherRunError(
            f"{out}: holds the results of another run ({'; '.join(changed)}). Choose another --out, or delete it."
        )


def _differences(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two identities; what only the earlier one knows does not count yet."""
    if held.get("task") != wanted["task"]:
        return [f"of the task {held.get('task')}, not {wanted['task']}"]
    flat = [{**record, **record.get("config", {})} for record in (held, wanted)]
    keys = set(flat[1]) - {"config"}
    return [
        f"{key} was {_short(key, flat[0].get(key))}, now {_short(key, flat[1].get(key))}"
        for key in sorted(keys)
        if flat[0].get(key) != flat[1].get(key)
    ]


def _short(key: str, value: Any) -> Any:
    """A value as a person reads it: of a hash, what tells it from others."""
    return str(value)[:8] if key in ("weights", "data_sha256") else value
