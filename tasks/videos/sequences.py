"""How tasks run the sequences of a data set: on a GPU several at once, each with threads that read and write."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from dino_dense.pipeline import read_ahead

if TYPE_CHECKING:
    from dino_dense import Backbone

Item = TypeVar("Item")
Result = TypeVar("Result")

GPU_SEQUENCES = 2  # propagated at once on a GPU: one begins and ends while the other computes
BACKLOG = 16  # masks waiting to be written


class Threads(NamedTuple):
    """Threads of one sequence."""

    readers: int = 1
    """Decode frames."""
    finishers: int = 1
    """Write and score masks."""


ON_CPU, ON_GPU = Threads(), Threads(4, 4)


def threads_for(backbone: Backbone) -> Threads:
    """On a CPU one of each, since features need the processors."""
    return ON_CPU if backbone.on_cpu else ON_GPU


def each(call: Callable[[Item], Result], items: Iterable[Item], *, on_cpu: bool) -> Generator[Result]:
    """`call(item)` for each item in order; on a GPU several at once, each in a thread of its own."""
    if on_cpu:
        yield from map(call, items)
    else:
        yield from read_ahead(call, items, ahead=GPU_SEQUENCES - 1, workers=GPU_SEQUENCES)


def frames(read: Callable[[int], Result], count: int, readers: int) -> Iterator[Result]:
    """`read(index)` of each frame in order, by several threads at once: avoid torch in it."""
    return (
        map(read, range(count)) if readers == 1 else read_ahead(read, range(count), ahead=2 * readers, workers=readers)
    )
