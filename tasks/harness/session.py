"""The runner lends a task its results folder, its share of the work and its seed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from data.notices import say
from dino_dense import distributed
from dino_dense.config.schema import with_new_names
from dino_dense.files import write_text
from dino_dense.progress import Progress, progress, tracked
from dino_dense.report import PAIRS_FILE, REPORT_FILE, TASK_FILE

if TYPE_CHECKING:
    import torch

IDENTITY_FILE = TASK_FILE
STALE_FOLDER = "stale"
"""In a results folder: what an earlier version of the program made there."""
UNCOMPARED = ("config", "versions", "commits")
"""Of an identity: what says not whose results they are, or is compared field by field."""
Item = TypeVar("Item")


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


class OpenedData(Protocol):
    """The files that a task's `open` listed and checked."""

    @property
    def facts(self) -> DataFacts:
        """Which data these are."""


@dataclass(frozen=True)
class Session:
    """One run of a task, as its `measure` sees it. Every process has one; they measure their shares alike."""

    out: Path
    """The results folder, claimed for this run."""
    world: distributed.World = field(default_factory=distributed.World)
    device: torch.device | None = None
    """None where a run computes nothing with PyTorch."""
    seed: int = 0
    """Of every draw."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """All that these results depend on: they are kept apart from those of any other run."""
    pieces: frozenset[str] = frozenset()
    """Further pieces of image features that later tasks will ask for: extracted in one go."""
    commits: set[str] = field(default_factory=set)
    """Commits that computed what this run found made: features, heads, masks."""

    def folder(self, name: str = "") -> Path:
        """A folder for the task's files, made on first use, so that a run that fails early leaves nothing."""
        path = self.out / name
        path.mkdir(parents=True, exist_ok=True)
        if self.identity and self.world.is_main and not (self.out / IDENTITY_FILE).exists():
            write_text(self.out / IDENTITY_FILE, json.dumps(self.identity, indent=2) + "\n")
        return path

    def share(self, items: Sequence[Item]) -> list[tuple[int, Item]]:
        """This process's part of the items, each with its index among all."""
        return distributed.share_of(items, self.world)

    def collect(self, results: Iterable[tuple[int, Item]]) -> list[Item]:
        """The results of all processes in the order of the items; each result comes with its item's index."""
        return distributed.in_order(list(results))

    def progress(
        self, items: Iterable[Item], label: str, *, unit: str = "image", total: int | None = None
    ) -> Iterator[Item]:
        """The items, while the main process shows how many are done; `total` for those without a length."""
        return tracked(items, desc=label, unit=unit, total=total, disable=not self.world.is_main)

    def bar(
        self, total: int | None, label: str, *, unit: str = "image", initial: int = 0, leave: bool = True
    ) -> Progress:
        """Progress that the caller moves, shown by the main process."""
        quiet = not self.world.is_main
        return progress(total, desc=label, unit=unit, initial=initial, leave=leave, disable=quiet)

    def once(self, write: Callable[..., object], *arguments: Any, **options: Any) -> None:
        """Call this on the main process alone."""
        if self.world.is_main:
            write(*arguments, **options)

    def wait(self) -> None:
        """Wait for every process."""
        distributed.barrier()


def claim(out: Path, identity: Mapping[str, Any], *, is_main: bool = True) -> list[str]:
    """Have every process look whether `out` is free for this run, before any writes.

    What an earlier version of the program made there is set aside, and a line says so.

    Returns:
        On the main process the commits that computed what is there, and that the run goes on from.

    Raises:
        ValueError: see `check_same_run`.
    """
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out}: results need a folder here, found a file. Choose another --out.")
    check_same_run(out, identity)
    changed = changed_versions(out, identity)
    distributed.barrier()  # every process has looked before any moves
    if changed:
        say(
            f"{out}: made by an earlier version ({'; '.join(changed)}) and made anew; what was there is in "
            f"{out / STALE_FOLDER}."
        )
        if is_main:
            _set_aside(out)
    return _commits_with(out, identity.get("commits", ())) if is_main else []


def check_same_run(out: Path, identity: Mapping[str, Any]) -> None:
    """Raise where `out` holds results that a run of this identity must not go on from.

    Raises:
        OtherRunError: they were made from other data, or by something else.
        ValueError: nobody knows which run's results they are.
    """
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


def changed_versions(out: Path, identity: Mapping[str, Any]) -> list[str]:
    """What another version made of the results in `out`: a line a part; [] where there is nothing to go on from."""
    try:
        held = json.loads((out / IDENTITY_FILE).read_text()).get("versions", {})
    except (OSError, ValueError, AttributeError):
        return []
    wanted = identity.get("versions", {})
    return [
        f"{part} was {held.get(part, 'of no version')}, now {version}"
        for part, version in wanted.items()
        if held.get(part) != version
    ]


def _commits_with(out: Path, ours: Sequence[str]) -> list[str]:
    """The commits that computed what is in `out`, in which ours are noted too; [] where nothing is."""
    if not (out / IDENTITY_FILE).is_file():
        return []
    held = json.loads((out / IDENTITY_FILE).read_text())
    begun = list(held.get("commits", ()))
    if not set(ours) <= set(begun):
        write_text(out / IDENTITY_FILE, json.dumps({**held, "commits": [*begun, *ours]}, indent=2) + "\n")
    return begun


def _set_aside(out: Path) -> None:
    """Move the files of a results folder into one below it, `IDENTITY_FILE` last, and unmake their report."""
    shutil.rmtree(out / STALE_FOLDER, ignore_errors=True)
    (out / STALE_FOLDER).mkdir()
    files = [path for path in out.iterdir() if path.name not in (STALE_FOLDER, IDENTITY_FILE)]
    for path in [*files, out / IDENTITY_FILE]:
        path.rename(out / STALE_FOLDER / path.name)
    (out / STALE_FOLDER / REPORT_FILE).unlink(missing_ok=True)  # else tables of reports would list it


def _differences(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two identities; what only the earlier one knows does not count yet."""
    if held.get("task") != wanted["task"]:
        return [f"of the task {held.get('task')}, not {wanted['task']}"]
    flat = [{**record, **with_new_names(record.get("config", {}))} for record in (held, wanted)]
    keys = set(flat[1]) - set(UNCOMPARED)
    return [
        f"{key} was {_short(key, flat[0].get(key))}, now {_short(key, flat[1].get(key))}"
        for key in sorted(keys)
        if flat[0].get(key) != flat[1].get(key)
    ]


def _short(key: str, value: Any) -> Any:
    """A value as a person reads it: of a hash, what tells it from others."""
    return str(value)[:8] if key in ("weights", "data_sha256") else value
