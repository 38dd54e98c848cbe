"""Masks on any frames, carried forward and backward: the rule, against a naive statement of it."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import pytest

from dino_dense.propagation.both_ways import BothWays, GivenMasks, nearest_given
from dino_dense.propagation.video import Frame, VideoPropagator
from tests.clip_files import moving_disc, moving_mask
from tests.color_backbone import PROTOCOL, color_backbone

SIZE = (48, 64)
LENGTH = 8
PATCH = color_backbone().patch_size


EXACT = dataclasses.replace(PROTOCOL, top_k=1, upsample="nearest")
"""With one nearest patch a mask of whole patches stays exactly what it is in a still video."""


def still(index: int, size: tuple[int, int]) -> np.ndarray:
    """A frame in which nothing moves: each patch has its own color."""
    colors = np.random.default_rng(0).integers(0, 255, (size[0] // PATCH, size[1] // PATCH, 3)).astype(np.uint8)
    return colors.repeat(PATCH, axis=0).repeat(PATCH, axis=1)


def box(identity: int, rows: slice, columns: slice) -> np.ndarray:
    ids = np.zeros(SIZE, np.uint8)
    ids[rows, columns] = identity
    return ids


def work(given: Mapping[int, GivenMasks], draw=moving_disc, asked: list[range] | None = None) -> BothWays[Frame]:
    objects = sorted(frozenset().union(*(masks.objects for masks in given.values())))

    def frames_of(positions: range) -> Iterable[Frame]:
        if asked is not None:
            asked.append(positions)
        return [Frame(draw(index, SIZE)) for index in positions]

    protocol = EXACT if draw is still else PROTOCOL
    return BothWays(VideoPropagator(color_backbone(), protocol, SIZE, objects), frames_of, LENGTH, given)


def ids_of(both: BothWays[Frame]) -> list[np.ndarray]:
    return [ids for _, ids in both.run()]


def test_the_nearest_given_frame_and_of_two_the_earlier():
    assert [nearest_given([2, 6], position) for position in range(9)] == [2, 2, 2, 2, 2, 6, 6, 6, 6]


def test_a_mask_of_the_first_frame_alone_is_carried_as_ever():
    first = moving_mask(0, SIZE)
    both = work({0: GivenMasks.of(first)})
    assert (list(both.forward), list(both.backward)) == (list(range(LENGTH)), [])
    frames = [Frame(moving_disc(index, SIZE), first if index == 0 else None) for index in range(LENGTH)]
    plain = VideoPropagator(color_backbone(), PROTOCOL, SIZE, [1]).run(frames)
    for ids, (_, expected) in zip(ids_of(both), plain, strict=True):
        np.testing.assert_array_equal(ids, expected)


def test_a_mask_of_the_last_frame_is_carried_as_if_the_video_ran_backward():
    last = moving_mask(LENGTH - 1, SIZE)
    both = work({LENGTH - 1: GivenMasks.of(last)})
    frames = [
        Frame(moving_disc(index, SIZE), last if index == LENGTH - 1 else None) for index in reversed(range(LENGTH))
    ]
    plain = [ids for _, ids in VideoPropagator(color_backbone(), PROTOCOL, SIZE, [1]).run(frames)]
    carried = ids_of(both)
    for ids, expected, index in zip(carried, plain[::-1], range(LENGTH), strict=True):
        np.testing.assert_array_equal(ids, expected)
        truth = moving_mask(index, SIZE)
        assert (ids & truth).sum() / (ids | truth).sum() > 0.6


def test_each_object_comes_from_its_nearest_frame():
    """In a still video a mask stays where it is, so the ids of a frame are those of the frame they come from."""
    one, moved = box(1, slice(0, 16), slice(0, 16)), box(1, slice(0, 16), slice(32, 48))
    two = box(2, slice(32, 48), slice(0, 16))
    both = work({1: GivenMasks.of(one), 4: GivenMasks.of(moved), 6: GivenMasks.of(two)}, still)
    assert (both.forward, both.backward) == (range(1, 8), range(6, -1, -1))
    for position, ids in enumerate(ids_of(both)):
        source = one if abs(position - 1) <= abs(position - 4) else moved
        np.testing.assert_array_equal(ids, source + two, err_msg=f"frame {position}")


def test_where_two_objects_meet_the_nearer_is_on_top():
    one, two = box(1, slice(0, 16), slice(0, 32)), box(2, slice(0, 16), slice(16, 48))
    carried = ids_of(work({0: GivenMasks.of(one), 5: GivenMasks.of(two)}, still))
    for position, ids in enumerate(carried):
        top = 1 if position < 3 else 2
        assert (ids[0:16, 16:32] == top).all(), position
        assert (ids[0:16, 0:16] == 1).all()
        assert (ids[0:16, 32:48] == 2).all()


def test_an_object_can_lose_pixels_and_leave():
    large, small = box(1, slice(0, 32), slice(0, 32)), box(1, slice(0, 16), slice(0, 32))
    carried = ids_of(work({0: GivenMasks.of(large), 4: GivenMasks.of(small)}, still))
    assert [int((ids == 1).sum()) for ids in carried] == 3 * [1024] + 5 * [512]
    gone = GivenMasks(np.zeros(SIZE, np.uint8), frozenset({1}))
    carried = ids_of(work({0: GivenMasks.of(large), 4: gone}, still))
    assert [bool(ids.any()) for ids in carried] == 3 * [True] + 5 * [False]


def test_the_backward_pass_is_seen_and_only_what_is_needed_is_read():
    asked: list[range] = []
    both = work({2: GivenMasks.of(moving_mask(2, SIZE))}, asked=asked)
    seen: list[np.ndarray] = []
    frames = [frame for frame, _ in both.run(lambda frame, ids: seen.append(frame.rgb))]
    assert both.backward == range(2, -1, -1)
    assert len(seen) == len(both.backward)
    assert all((frame.rgb == moving_disc(index, SIZE)).all() for index, frame in enumerate(frames))
    assert asked == [range(2, -1, -1), range(2), range(2, 8)]


def test_masks_that_cannot_be_carried_are_refused():
    mask = GivenMasks.of(moving_mask(0, SIZE))
    for given, message in (
        ({}, "no frame has a mask"),
        ({0: GivenMasks(np.zeros(SIZE, np.uint8), frozenset())}, "no frame has a mask"),
        ({LENGTH: mask}, "expected 0 to 7"),
        ({0: dataclasses.replace(mask, objects=frozenset({2}))}, r"objects \[1\] without their names"),
    ):
        with pytest.raises(ValueError, match=message):
            work(given)
