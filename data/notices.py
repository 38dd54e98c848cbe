"""Lines for a person: what a reader decided or left out, where nothing is wrong."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LOG = logging.getLogger("data")
_listeners: list[list[str]] = []
_said: set[str] = set()


def say(line: str) -> None:
    """Tell the user, once a process (on stderr, unless logging is set up otherwise), and all who gather."""
    for lines in _listeners:
        if line not in lines:
            lines.append(line)
    if line not in _said:
        _said.add(line)
        _LOG.warning(line)


@contextmanager
def captured() -> Iterator[list[str]]:
    """The lines that are said within, in order, for a report."""
    lines: list[str] = []
    _listeners.append(lines)
    try:
        yield lines
    finally:
        _listeners[:] = [other for other in _listeners if other is not lines]
