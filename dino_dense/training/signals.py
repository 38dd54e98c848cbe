"""SIGINT and SIGTERM: the training process saves before it ends; loader processes ignore them."""

import math
import os
import signal
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager

ONE_SIGNAL = 1.0
"""Seconds; signals within this time count once."""


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect the first SIGINT or SIGTERM instead of ending. A further signal after `ONE_SIGNAL` acts as usual.

    Launchers send a signal both to the process group and to each process: it counts once.
    """
    received: list[int] = []
    first = math.inf
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _frame: types.FrameType | None) -> None:
        nonlocal first
        first = min(first, time.monotonic())
        received.append(number)
        if time.monotonic() - first > ONE_SIGNAL:
            signal.signal(number, before[signal.Signals(number)])
            os.kill(os.getpid(), number)

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_signals_to_parent(_worker: int) -> None:
    """Ignore signals in a loader process: Ctrl-C and torchrun's SIGTERM reach the whole process group.

    A worker ends when the training process tells it to, or has ended.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
