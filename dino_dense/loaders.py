"""Worker processes that read items, for every loop over pictures; a worker's death is explained.

torch's loader buries the message of a bad picture in the worker's traceback. It reports a dead worker in many ways: a
RuntimeError from a signal handler, at any line of the main thread (which `_deaths_found_when_reading` prevents), a
RuntimeError within five seconds of the next read, or an error from reading a half-delivered tensor
(ConnectionResetError, EOFError, FileNotFoundError, ...).

PyTorch is imported when something is loaded: a command that loads nothing may never need it.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from dino_dense.threads import processors

if TYPE_CHECKING:
    from torch.utils.data import DataLoader, Dataset

DEATH_SECONDS = 15.0
"""Wait for a worker's exit after a read from it has failed: its sockets close first, on a busy machine a second or
more before the process ends."""
_POLL_SECONDS = 0.02
_LOST_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)")
"""torch/utils/data/dataloader.py and torch/csrc/DataLoader.cpp"""
_RAISED_IN_WORKER = re.compile(r"Caught \w+ in ")  # torch/_utils.py: the worker lives

READING, READ = 0, 1

MEMORY = "Most often the machine ran out of memory: take fewer {option}."
SHARED_MEMORY = "The shared memory, /dev/shm, is full: take fewer {option}, or docker run --shm-size=8g or --ipc=host."
DECODER = "A picture that crashes the decoder: remove it."
UNKNOWN = "Out of memory (take fewer {option}), or a picture that crashes the decoder (remove it)."
HINTS = {signal.SIGKILL: MEMORY, signal.SIGBUS: SHARED_MEMORY, signal.SIGSEGV: DECODER, signal.SIGABRT: DECODER}
"""Advice, by the signal that ended the worker."""


MOST_WORKERS = 16
"""Largest default number of worker processes."""


class LostWorkerError(OSError):
    """A loader process that died."""

    exit_status = 1


def default_workers() -> int:
    """0 on a CPU, where computing needs the processors; else one for each processor, `MOST_WORKERS` at most.

    One process reads about 180 images of ImageNet's size a second, a GPU takes thousands.
    """
    import torch

    return min(MOST_WORKERS, processors()) if torch.cuda.is_initialized() else 0


class WorkerItems:
    """The item that each worker process is reading, in shared memory, so that a death can name its item.

    Args:
        workers: number of worker processes; None for `default_workers`.
        name: item index -> its name in messages.
        option: the option that sets the number of workers.
    """

    def __init__(self, workers: int | None, name: Callable[[int], str], option: str = "--workers") -> None:
        import torch

        count = default_workers() if workers is None else workers
        self.table = torch.full((count, 3), -1).share_memory_()
        """A row for each worker: process id, item, READING or READ."""
        self.option = option
        self.processes: dict[int, BaseProcess] = {}
        """The workers by process id while the loader is open; in the main process only."""
        self._name: Callable[[int], str] | None = name

    def __getstate__(self) -> dict[str, Any]:
        return {"table": self.table, "option": self.option, "processes": {}, "_name": None}

    @contextmanager
    def reading(self, item: int) -> Iterator[None]:
        """Record in a worker process that the item is being read, then that it was read."""
        import torch
        from torch.utils.data import get_worker_info

        worker = get_worker_info()
        if worker is None:
            yield
            return
        self.table[worker.id] = torch.tensor((os.getpid(), item, READING))
        yield
        self.table[worker.id, 2] = READ

    def of(self, pids: Collection[int]) -> list[str]:
        """A phrase for each lost worker, such as `while reading a.jpg`."""
        words = {READING: "while reading", READ: "after reading"}
        assert self._name is not None
        return [f"{words[state]} {self._name(item)}" for pid, item, state in self.table.tolist() if pid in pids]

    def close(self) -> None:
        """End the remaining workers, and free the shared memory."""
        for child in self.processes.values():
            if child.is_alive():  # workers ignore torch's SIGTERM (`leave_signals_to_parent`)
                child.kill()
            child.join()
        self.processes = {}
        self.table = self.table.clone()


_OPEN: list[WorkerItems] = []
"""The tables of all open loaders."""


@atexit.register
def _end_workers() -> None:
    """End the workers that a traceback keeps open at exit: torch would send SIGTERM, which they ignore, and wait."""
    for child in [child for worker_items in _OPEN for child in worker_items.processes.values()]:
        child.kill()


class _ErrorsAsValues:
    """A data set that returns errors as values, and records the item being read.

    Args:
        index: key -> index of the item; None if the data set calls `worker_items.reading` itself.
    """

    def __init__(self, items: Dataset[Any], worker_items: WorkerItems, index: Callable[[Any], int] | None) -> None:
        self.items, self.worker_items, self.index = items, worker_items, index

    def __len__(self) -> int:
        return len(self.items)  # type: ignore[arg-type]

    def __getitem__(self, key: Any) -> Any:
        try:
            if self.index is None:
                return self.items[key]
            with self.worker_items.reading(self.index(key)):
                return self.items[key]
        except (ValueError, OSError) as error:
            return error


class _Collate:
    """The first error among the samples, else the batch."""

    def __init__(self, collate: Callable[[Any], Any], *, single: bool) -> None:
        self.collate, self.single = collate, single

    def __call__(self, samples: Any) -> Any:
        for sample in [samples] if self.single else samples:
            if isinstance(sample, Exception):
                return sample
        return self.collate(samples)


def read_items(
    items: Dataset[Any],
    worker_items: WorkerItems,
    *,
    index: Callable[[Any], int] | None = int,
    collate: Callable[[Any], Any] | None = None,
    set_up: Callable[[int], None] | None = None,
    **options: Any,
) -> Generator[Any]:
    """Batches of a data set, read by as many worker processes as `worker_items` has rows; 0 reads in this process.

    Args:
        items: a map-style data set. Its ValueErrors and OSErrors arrive here unchanged.
        index: key -> index of the item, which `worker_items` names; None if the data set calls `worker_items.reading`
            itself.
        collate: samples -> batch; torch's default if None.
        set_up: runs first in each worker.
        options: further options of torch's DataLoader. `batch_size=None` gives single items.

    Raises:
        LostWorkerError: a worker died.
    """
    from torch.utils.data import DataLoader, default_collate, default_convert

    from dino_dense.training.signals import leave_signals_to_parent

    single = options.get("batch_size", 1) is None
    loader: DataLoader[Any] = DataLoader(
        _ErrorsAsValues(items, worker_items, index),  # type: ignore[arg-type]
        num_workers=len(worker_items.table),
        collate_fn=_Collate(collate or (default_convert if single else default_collate), single=single),
        worker_init_fn=set_up or leave_signals_to_parent,
        **options,
    )
    _OPEN.append(worker_items)
    try:
        for batch in _batches(loader, worker_items):
            if isinstance(batch, Exception):
                raise batch
            yield batch
    finally:
        worker_items.close()
        _OPEN.remove(worker_items)


def _batches(loader: DataLoader[Any], worker_items: WorkerItems) -> Generator[Any]:
    """The loader's batches; a worker that dies raises LostWorkerError when a batch is read, and nowhere else."""
    others = set(multiprocessing.active_children())
    batches: Iterator[Any] | None = None
    try:
        with _deaths_found_when_reading(), _garbage_left_to_parent():
            batches = iter(loader)
        worker_items.processes = {
            child.pid or 0: child for child in multiprocessing.active_children() if child not in others
        }
        yield from batches
    except Exception as error:
        _explain(error)
        raise
    finally:
        # torch ends its workers when the iterator is freed, and a traceback may keep the iterator alive.
        if shut_down := getattr(batches, "_shutdown_workers", None):
            shut_down()


@contextmanager
def _deaths_found_when_reading() -> Iterator[None]:
    """Take away the signal handler that torch sets when a loader starts in the block.

    It raises when a worker dies, at any line of the main thread: in the middle of a training step, or in the lines that
    explain an earlier death. Without it torch finds the death when it next waits for a batch.
    """
    before = signal.getsignal(signal.SIGCHLD)
    if (getattr(before, "__module__", None) or "").startswith("torch."):  # of another loader in this process
        before = signal.SIG_DFL
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)


@contextmanager
def _garbage_left_to_parent() -> Iterator[None]:
    """Worker processes started in the block never free what this process has made.

    A forked worker has a copy of this process's memory, but none of its threads. Freeing a video frame of PyAV waits
    for the threads of its color conversion, so a worker whose garbage collector met one would wait forever.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def lost_workers_explained(where: str = "", then: str = "") -> Iterator[None]:
    """Begin the message of a LostWorkerError with `where` (the run's folder) and end it with `then` (how to go on)."""
    try:
        yield
    except LostWorkerError as error:
        parts = (where and f"{where}:", str(error), then)
        raise LostWorkerError(" ".join(filter(None, parts))) from error.__cause__


def _explain(error: Exception) -> None:
    """Raise LostWorkerError if the error names a dead worker, or if one is seen dead within `DEATH_SECONDS`."""
    if _RAISED_IN_WORKER.match(str(error)):
        return
    lost = _dead_workers(error)
    until = time.monotonic() + DEATH_SECONDS
    while not lost and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
        lost = {pid for worker_items in _OPEN for pid, child in worker_items.processes.items() if child.exitcode}
    if not lost:
        return
    losers = [worker_items for worker_items in _OPEN if lost & worker_items.processes.keys()]
    phrases = [phrase for worker_items in losers for phrase in worker_items.of(lost)]
    codes = [
        worker_items.processes[pid].exitcode for worker_items in losers for pid in lost & worker_items.processes.keys()
    ]
    hint = next((HINTS[signal.Signals(-code)] for code in codes if code and -code in HINTS), UNKNOWN)
    option = next((worker_items.option for worker_items in losers), "--workers")
    raise LostWorkerError(
        f"loader process {', '.join(map(str, sorted(lost)))} died {', '.join(phrases) or 'before its first item'}. "
        + hint.format(option=option)
    ) from error


def _dead_workers(error: Exception) -> set[int]:
    """Process ids of the workers that torch's loader reports dead."""
    match = _LOST_WORKER.search(str(error))
    return {int(pid) for pid in match[1].split(",")} if match else set()
