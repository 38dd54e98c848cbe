"""The session of a run: results folder, share of the work, seed and progress, for a task's `measure`."""

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
"""Keys of an identity that are not compared as a whole: `config` field by field, the others elsewhere."""
Item = TypeVar("Item")


class OtherRunError(ValueError):
    """A results folder of another run. The message names the differences."""


@dataclass(frozen=True)
class DataFacts:
    """Description of the data of a measurement."""

    name: str
    """Usual name of the data; also tells if they are the embedded set."""
    root: str
    n: int
    """Number of units."""
    unit: str
    """images, sequences, ..."""
    sha256: str
    """SHA-256 of the list of files (names and sizes)."""
    dataset: str | None = None
    """Name of the published data set, if the data are complete and unchanged; else None."""


class OpenedData(Protocol):
    """The files that a task's `open` has listed and checked."""

    @property
    def facts(self) -> DataFacts:
        """The description of the data."""


@dataclass(frozen=True)
class Session:
    """A run of a task, for its `measure`. Every process has a session and measures its share."""

    out: Path
    """The results folder, claimed for this run."""
    world: distributed.World = field(default_factory=distributed.World)
    device: torch.device | None = None
    """None for a run without PyTorch."""
    seed: int = 0
    """Seed of all random numbers."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """All that determines the results; separates them from other runs."""
    pieces: frozenset[str] = frozenset()
    """Additional pieces of image features that later tasks need: extracted in the same pass."""
    commits: set[str] = field(default_factory=set)
    """Commits that computed the reused parts of this run: features, heads, masks."""

    def folder(self, name: str = "") -> Path:
        """A folder for the task's files, created on first use, so that an early failure leaves nothing."""
        path = self.out / name
        path.mkdir(parents=True, exist_ok=True)
        if self.identity and self.world.is_main and not (self.out / IDENTITY_FILE).exists():
            write_text(self.out / IDENTITY_FILE, json.dumps(self.identity, indent=2) + "\n")
        return path

    def share(self, items: Sequence[Item]) -> list[tuple[int, Item]]:
        """This process's items, each with its index among all items."""
        return distributed.share_of(items, self.world)

    def collect(self, results: Iterable[tuple[int, Item]]) -> list[Item]:
        """The results of all processes in the order of the items; each result comes with its item's index."""
        return distributed.in_order(list(results))

    def progress(
        self, items: Iterable[Item], label: str, *, unit: str = "image", total: int | None = None
    ) -> Iterator[Item]:
        """Yield the items; the main process shows progress. `total` is for items without a length."""
        return tracked(items, desc=label, unit=unit, total=total, disable=not self.world.is_main)

    def bar(
        self, total: int | None, label: str, *, unit: str = "image", initial: int = 0, leave: bool = True
    ) -> Progress:
        """A progress bar that the caller updates, shown by the main process."""
        quiet = not self.world.is_main
        return progress(total, desc=label, unit=unit, initial=initial, leave=leave, disable=quiet)

    def once(self, write: Callable[..., object], *arguments: Any, **options: Any) -> None:
        """Call the function in the main process only."""
        if self.world.is_main:
            write(*arguments, **options)

    def wait(self) -> None:
        """Wait for every process."""
        distributed.barrier()


def claim(out: Path, identity: Mapping[str, Any], *, is_main: bool = True) -> list[str]:
    """Check in every process that `out` is usable for this run, before any process writes.

    Results of another program version are moved to a subfolder, with a notice.

    Returns:
        In the main process: the commits that computed the existing results, which the run continues.

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
            f"{out}: made by an earlier version or from other pixels ({'; '.join(changed)}) and made anew; what was "
            f"there is in {out / STALE_FOLDER}."
        )
        if is_main:
            _set_aside(out)
    return _commits_with(out, identity.get("commits", ())) if is_main else []


def check_same_run(out: Path, identity: Mapping[str, Any]) -> None:
    """Raise if `out` has results that a run of this identity must not continue.

    Raises:
        OtherRunError: the results are of other data or another configuration.
        ValueError: the run of the results is unknown.
    """
    before = out / IDENTITY_FILE
    if (out / PAIRS_FILE).is_file():
        raise ValueError(f"{out}: holds the report of a batch ({PAIRS_FILE}). Choose another --out.")
    if not before.is_file():
        if (out / "masks").exists():
            raise ValueError(f"{out}: holds masks but no {IDENTITY_FILE}: unknown run. Choose another --out.")
        return
    try:
        held = json.loads(before.read_text())
    except ValueError:
        raise ValueError(
            f"{before}: damaged, so the run of these results is unknown. Delete {out}, or choose another --out."
        ) from None
    changed = _differences(held, identity)
    if changed:
        raise OtherRunError(
            f"{out}: holds the results of another run ({'; '.join(changed)}). Choose another --out, or delete it."
        )


def changed_versions(out: Path, identity: Mapping[str, Any]) -> list[str]:
    """A line for each part of the results in `out` that another version computed; [] without results."""
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
    """The commits that computed the results in `out` ([] without results); adds our commits to the file."""
    if not (out / IDENTITY_FILE).is_file():
        return []
    held = json.loads((out / IDENTITY_FILE).read_text())
    begun = list(held.get("commits", ()))
    if not set(ours) <= set(begun):
        write_text(out / IDENTITY_FILE, json.dumps({**held, "commits": [*begun, *ours]}, indent=2) + "\n")
    return begun


def _set_aside(out: Path) -> None:
    """Move the files of a results folder into a subfolder, `IDENTITY_FILE` last, without their report."""
    shutil.rmtree(out / STALE_FOLDER, ignore_errors=True)
    (out / STALE_FOLDER).mkdir()
    files = [path for path in out.iterdir() if path.name not in (STALE_FOLDER, IDENTITY_FILE)]
    for path in [*files, out / IDENTITY_FILE]:
        path.rename(out / STALE_FOLDER / path.name)
    (out / STALE_FOLDER / REPORT_FILE).unlink(missing_ok=True)  # tables of reports must not list it


def _differences(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Differences of two identities, ignoring keys that only the earlier identity has."""
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
    """A value in readable form; the first characters of a hash."""
    return str(value)[:8] if key in ("weights", "data_sha256") else value
