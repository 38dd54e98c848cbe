"""Propagate masks that are given on any frames of a video, forward and backward.

The rule: each object in each frame is carried from the nearest frame on which that object is given; of two equally near
frames, from the earlier. Where two objects meet, the one from the nearer frame is on top (of equally near ones, the
larger id).

Two passes make it, one over the video and one over the reversed video. In a pass, the objects that a frame gives
replace the propagated ones, and propagation starts anew there (as `LabelPropagator.step`; unlike there, a given object
also loses the pixels that it no longer has).

Shapes: H x W pixels of a frame. A position is the number of a frame in the video, from 0.
"""

import dataclasses
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from typing import Generic

import numpy as np

from dino_dense.arrays import Pixels
from dino_dense.propagation.video import AnyFrame, VideoPropagator


@dataclass(frozen=True)
class GivenMasks:
    """Masks that are given on a frame."""

    ids: Pixels = dataclasses.field(repr=False)
    """uint8 [H, W]; 0 elsewhere."""
    objects: frozenset[int]
    """Ids of the given objects. One without pixels is not in the frame."""

    @classmethod
    def of(cls, ids: Pixels) -> "GivenMasks":
        """All objects of a mask [H, W]."""
        return cls(ids, present(ids))

    def over(self, ids: Pixels) -> Pixels:
        """Other ids [H, W] with the given objects in place of theirs."""
        others = np.where(np.isin(ids, list(self.objects)), 0, ids)
        merged: Pixels = np.where(self.ids > 0, self.ids, others).astype(np.uint8)
        return merged


def present(ids: Pixels) -> frozenset[int]:
    """Ids above 0 of a mask."""
    return frozenset(np.unique(ids[ids > 0]).tolist())


def nearest_given(given: Sequence[int], position: int) -> int:
    """The nearest of some positions; of two equally near ones, the earlier."""
    return min(given, key=lambda other: (abs(other - position), other))


class BothWays(Generic[AnyFrame]):
    """Propagates given masks to all frames of a video, by the rule above.

    Args:
        propagator: of the frames' size, with all objects.
        frames_of: the frames at some positions, ascending or descending. It is called several times.
        length: number of frames.
        given: masks by position.

    Raises:
        ValueError: nothing is given, a position is not in the video, or a mask has an object that it does not name.
    """

    def __init__(
        self,
        propagator: VideoPropagator,
        frames_of: Callable[[range], Iterable[AnyFrame]],
        length: int,
        given: Mapping[int, GivenMasks],
    ) -> None:
        if not any(masks.objects for masks in given.values()):
            raise ValueError("no frame has a mask: nothing to propagate")
        for position, masks in given.items():
            if not 0 <= position < length:
                raise ValueError(f"a mask of frame {position}: expected 0 to {length - 1}")
            if unnamed := present(masks.ids) - masks.objects:
                raise ValueError(f"the mask of frame {position} has the objects {sorted(unnamed)} without their names")
        self.propagator, self.frames_of, self.length, self.given = propagator, frames_of, length, dict(given)
        self._given_at = {
            identity: sorted(position for position, masks in given.items() if identity in masks.objects)
            for identity in sorted(frozenset().union(*(masks.objects for masks in given.values())))
        }

    @property
    def forward(self) -> range:
        """Positions of the pass over the video."""
        return range(min(positions[0] for positions in self._given_at.values()), self.length)

    @property
    def backward(self) -> range:
        """Positions of the pass over the reversed video, descending; empty if no object comes from a later frame."""
        needed = {}
        for position in range(self.length):
            later = [source for source in self.sources(position).values() if source > position]
            if later:
                needed[position] = max(later)
        return range(max(needed.values()), min(needed) - 1, -1) if needed else range(0)

    def sources(self, position: int) -> dict[int, int]:
        """The position from which each object of a frame is carried."""
        return {identity: nearest_given(positions, position) for identity, positions in self._given_at.items()}

    def run(self, seen: Callable[[AnyFrame, Pixels], None] | None = None) -> Generator[tuple[AnyFrame, Pixels]]:
        """Yield every frame with its ids uint8 [H, W], in order.

        The backward pass comes first. Its masks are kept in memory, compressed.

        Args:
            seen: called with each frame of the backward pass and its ids.

        Raises:
            ValueError: as `VideoPropagator.run`.
        """
        kept: dict[int, bytes] = {}
        with closing(self._pass(self.backward)) as carried:
            for position, (frame, ids) in zip(self.backward, carried, strict=True):
                kept[position] = zlib.compress(np.asarray(ids, np.uint8).tobytes(), 1)
                if seen is not None:
                    seen(frame, ids)
        nothing = np.zeros(self.propagator.size, np.uint8)

        def behind(position: int) -> Pixels:
            if position not in kept:
                return nothing
            return np.frombuffer(zlib.decompress(kept.pop(position)), np.uint8).reshape(nothing.shape)

        before = range(self.forward.start)
        for position, frame in zip(before, self.frames_of(before), strict=True):
            yield frame, self._merged(position, nothing, behind(position))
        with closing(self._pass(self.forward)) as carried:
            for position, (frame, ids) in zip(self.forward, carried, strict=True):
                yield frame, self._merged(position, ids, behind(position))

    def _pass(self, positions: range) -> Generator[tuple[AnyFrame, Pixels]]:
        """Frames with ids, in the order of the positions; the first position has a mask."""
        starts = [position for position in positions if position in self.given]
        carried = np.zeros(self.propagator.size, np.uint8)
        for start, end in zip_longest(starts, starts[1:]):
            stretch = range(start, (positions[-1] if end is None else end) + positions.step, positions.step)
            labeled = self._labeled(stretch, self.given[start].over(carried))
            with closing(self.propagator.run(labeled)) as run:
                for position, (frame, ids) in zip(stretch, run, strict=True):
                    if position == end:
                        carried = ids
                    else:
                        yield frame, ids

    def _labeled(self, stretch: range, ids: Pixels) -> Iterator[AnyFrame]:
        """The frames of a stretch, the first with its ids."""
        for number, frame in enumerate(self.frames_of(stretch)):
            yield dataclasses.replace(frame, labels=None if number else ids)

    def _merged(self, position: int, ahead: Pixels, behind: Pixels) -> Pixels:
        """The ids of a frame from both passes."""
        merged = np.zeros(self.propagator.size, np.uint8)
        sources = self.sources(position)
        for identity in sorted(sources, key=lambda other: (-abs(sources[other] - position), other)):
            merged[(ahead if sources[identity] <= position else behind) == identity] = identity
        return merged
