"""Work in a thread that shows its last frame while it runs, and that a visitor can stop."""

import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar

from dino_dense.arrays import Pixels

INTERVAL = 0.25  # seconds between two looks at the work

Result = TypeVar("Result")
Tell = Callable[[int, int], None]


class StoppedError(Exception):
    """The visitor stopped the work."""


@dataclass
class Live:
    """The state of a visitor's work, which two threads share."""

    done: int = 0
    """Frames done."""
    total: int = 0
    picture: Pixels | None = None
    """RGB [H, W, 3]: the last frame done, with its masks or points."""
    stop: threading.Event = field(default_factory=threading.Event)

    def tell(self, done: int, total: int) -> None:
        """Note the progress; called by the work after each frame.

        Raises:
            StoppedError: the visitor stopped the work.
        """
        self.done, self.total = done, total
        if self.stop.is_set():
            raise StoppedError


def follow(work: Callable[[Live], Result], live: Live) -> Generator[Live, None, Result | None]:
    """Run work(live) in a thread, and yield its state until it ends.

    The work stops at its next frame if `live.stop` is set, or this generator is closed.

    Returns:
        The result of the work; None if it was stopped.
    """
    live.done, live.total, live.picture = 0, 0, None
    live.stop.clear()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work, live)
        try:
            while wait([future], INTERVAL).not_done:
                yield live
        finally:
            live.stop.set()
        try:
            return future.result()
        except StoppedError:
            return None
