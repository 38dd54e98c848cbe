"""Notices for the user: decisions and skipped files of a reader, when nothing is wrong."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LOG = logging.getLogger("data")
_listeners: list[list[str]] = []
_said: set[str] = set()


def say(line: str) -> None:
    """Log a notice once per process (to stderr by default), and add it to all lists of `captured`."""
    for lines in _listeners:
        if line not in lines:
            lines.append(line)
    if line not in _said:
        _said.add(line)
        _LOG.warning(line)


@contextmanager
def captured() -> Iterator[list[str]]:
    """A list that collects the notices of the block, in order, for a report."""
    lines: list[str] = []
    _listeners.append(lines)
    try:
        yield lines
    finally:
        _listeners[:] = [other for other in _listeners if other is not lines]
