"""Background threads: read files ahead of the main thread, and finish results behind it.

Decoding, encoding and OpenCV release Python's lock, so threads are enough.
"""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


MOST_AT_ONCE = 4
"""Items that `computed_ahead` computes at once, at most: each needs its own memory."""


def read_ahead(
    read: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    ahead: int,
    workers: int = 1,
    set_up: Callable[[], None] | None = None,
) -> Generator[Result]:
    """`read(item)` for each item in order; up to `ahead` items (1 or more) are begun early.

    An error of a read is raised in the order of its item. Each worker thread calls ``set_up`` first.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers, initializer=set_up) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def computed_ahead(compute: Callable[[Item], Result], items: Iterable[Item], *, on_cpu: bool) -> Generator[Result]:
    """``compute(item)`` with PyTorch for each item in order; on a CPU several items at once, in threads of their own.

    On another device, one thread gives it the next item's work while the caller uses the last item. Both threads queue
    on one stream of the device, so it computes in the order in which they ask.

    Threads that share an item wait for each other after every operation, so one processor that another program keeps
    busy delays them all. Threads with items of their own do not wait. They share PyTorch's number of threads evenly;
    until the generator ends, the calling thread has no more than each of them.

    Args:
        compute: may run in several threads at once.
        items: drawn in the calling thread; its error is raised in the order of its item.
        on_cpu: whether the work is done by the CPU.
    """
    import torch

    def compute_or_raise(drawn: Item | _Failed) -> Result:
        if isinstance(drawn, _Failed):
            raise drawn.error
        return compute(drawn)

    if not on_cpu:
        with closing(read_ahead(compute_or_raise, _errors_last(items), ahead=1)) as computed:
            yield from computed
        return
    total = torch.get_num_threads()
    workers = min(total, MOST_AT_ONCE)
    if workers == 1:
        yield from map(compute, items)
        return

    def share_threads() -> None:
        torch.set_num_threads(total // workers)

    share_threads()
    try:
        pending = read_ahead(
            compute_or_raise, _errors_last(items), ahead=workers, workers=workers, set_up=share_threads
        )
        with closing(pending) as computed:
            yield from computed
    finally:
        torch.set_num_threads(total)


class _Failed(NamedTuple):
    """The error of an iterable, in the place of the item that it did not give."""

    error: Exception


def _errors_last(items: Iterable[Item]) -> Iterator[Item | _Failed]:
    try:
        yield from items
    except Exception as error:  # raised when it is its turn
        yield _Failed(error)


def drawn_ahead(items: Iterable[Item], *, ahead: int) -> Generator[Item]:
    """The items in order; another thread draws up to `ahead` items (1 or more) early from the iterable.

    An error of the iterable is raised in the order of its item.
    """
    iterator, end = iter(items), object()

    def draw(_: int) -> Item | object:
        return next(iterator, end)

    with closing(read_ahead(draw, itertools.count(), ahead=ahead)) as drawn:
        for item in drawn:
            if item is end:
                return
            yield item  # type: ignore[misc]


def in_batches(items: Iterable[Item], key: Callable[[Item], object], size: int) -> Generator[list[Item]]:
    """Runs of at most `size` consecutive items with the same key, in order."""
    batch: list[Item] = []
    for item in items:
        if batch and (len(batch) == size or key(item) != key(batch[0])):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def batches_by_key(items: Iterable[Item], key: Callable[[Item], object], size: int, most: int) -> Generator[list[Item]]:
    """Batches of at most `size` items with the same key, in the order in which batches fill.

    When `most` items wait, the items of the most frequent key become a smaller batch.
    """
    waiting: dict[object, list[Item]] = {}
    count = 0
    for item in items:
        batch = waiting.setdefault(key(item), [])
        batch.append(item)
        count += 1
        if len(batch) == size or count == most:
            fullest = max(waiting.values(), key=len)
            count -= len(fullest)
            yield waiting.pop(key(fullest[0]))
    yield from waiting.values()


class BackgroundCalls:
    """Calls made by other threads, at most `backlog` unfinished at a time; leaving the `with` waits for all.

    The first error is raised at the next `submit`, or at the end of the `with`.
    """

    def __init__(self, *, workers: int, backlog: int) -> None:
        self._pool = ThreadPoolExecutor(workers)
        self._free = threading.Semaphore(backlog)
        self._failed: list[BaseException] = []

    def submit(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Queue `call(*arguments)`; waits while the backlog is full."""
        self._free.acquire()
        self._raise_first()
        self._pool.submit(call, *arguments).add_done_callback(self._done)

    def __enter__(self) -> "BackgroundCalls":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None:
            self._raise_first()

    def _done(self, future: Future[Any]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._failed.append(error)
        self._free.release()

    def _raise_first(self) -> None:
        if self._failed:
            raise self._failed[0]
