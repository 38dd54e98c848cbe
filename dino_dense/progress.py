"""Progress on standard error: a bar on a terminal, occasional lines in a log file.

A bar redraws ten times a second, which would fill a log. If standard error is no terminal, a stage prints a line with
its rate and the time left every `LINE_SECONDS`, and nothing if it ends earlier.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Protocol, Self, TextIO, TypeVar

from tqdm import tqdm

LINE_SECONDS = 30.0  # between two lines of a stage in a log

T = TypeVar("T")


class Progress(Protocol):
    """The progress of a stage. Threads may share it."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> None: ...

    def update(self, n: int = 1) -> Any:
        """Count `n` more units as done."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Show this text after the rate."""

    def write(self, s: str, file: TextIO | None = None) -> None:
        """Print a message (on standard output by default) without breaking the bar."""

    def close(self) -> None:
        """End the stage."""


def progress(
    total: int | None,
    *,
    desc: str,
    unit: str,
    initial: int = 0,
    leave: bool = True,
    disable: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """Show a stage that calls `update` itself.

    Args:
        total: number of units, None if unknown.
        desc: name of the stage.
        unit: name of a unit, singular.
        initial: units done by an earlier run.
        leave: keep the bar on a terminal when the stage is over.
        disable: show nothing, as in every process but the main one; `write` still prints.
        clock: seconds; for the lines of a log.
    """
    if disable or sys.stderr.isatty():
        bar: Any = tqdm(
            desc=desc, unit=unit, total=total, initial=initial, leave=leave, disable=disable, dynamic_ncols=True
        )
        return bar
    return _Lines(desc, unit, total, initial, clock)


def tracked(
    items: Iterable[T],
    *,
    desc: str,
    unit: str,
    total: int | None = None,
    leave: bool = True,
    disable: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[T]:
    """Yield the items and show how many are done; `total` is their number if they have no length."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(total, desc=desc, unit=unit, leave=leave, disable=disable, clock=clock) as bar:
        for item in items:
            yield item
            bar.update()


class _Lines(Progress):
    """A stage in a log."""

    def __init__(self, desc: str, unit: str, total: int | None, initial: int, clock: Callable[[], float]) -> None:
        self.desc, self.unit, self.total, self.initial, self.clock = desc, unit, total, initial, clock
        self.text = ""
        self.lock = threading.Lock()
        self.done = self.done_in_last_line = initial
        self.started = self.last_line = clock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def update(self, n: int = 1) -> None:
        with self.lock:
            self.done += n
            now = self.clock()
            seconds = now - self.last_line
            if seconds >= LINE_SECONDS:
                # The rate since the last line: the mean of a stage of days would keep its slow start for hours.
                self._print(now, (self.done - self.done_in_last_line) / seconds)

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        self.text = s

    def write(self, s: str, file: TextIO | None = None) -> None:
        print(s, file=file)

    def close(self) -> None:
        with self.lock:
            if self.last_line > self.started and self.done > self.done_in_last_line:
                self._print(self.clock(), None)

    def _print(self, now: float, rate: float | None) -> None:
        """Print one line; without a rate, with the rate of the whole stage."""
        line = tqdm.format_meter(
            self.done,
            self.total,  # type: ignore[arg-type]  # the stubs want a number; the documentation allows None
            now - self.started,
            ncols=0,
            prefix=self.desc,
            unit=self.unit,
            rate=rate,
            postfix=self.text or None,
            initial=self.initial,
        )
        print(line, file=sys.stderr, flush=True)
        self.last_line, self.done_in_last_line = now, self.done
