"""Masks along a video: one propagator, whatever the batches, the ids and the order in which frames come."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import pytest
import torch

from dino_dense.pipeline import MOST_AT_ONCE
from dino_dense.propagation.labels import decode_labels, encode_labels
from dino_dense.propagation.stream import LabelPropagator
from dino_dense.propagation.video import Frame, VideoPropagator
from tests.clip_files import moving_disc, moving_mask
from tests.color_backbone import PROTOCOL, color_backbone

SIZE = (48, 64)
LENGTH = 7


def frames(labels: dict[int, np.ndarray] | None = None, length: int = LENGTH) -> Iterator[Frame]:
    given = {0: moving_mask(0, SIZE)} if labels is None else labels
    for index in range(length):
        yield Frame(moving_disc(index, SIZE), given.get(index))


def carry(
    batch_size: int = 1, labels: dict[int, np.ndarray] | None = None, objects=(1,), **changes
) -> list[np.ndarray]:
    propagator = VideoPropagator(color_backbone(), replace(PROTOCOL, **changes), SIZE, objects, batch_size=batch_size)
    return [ids for _, ids in propagator.run(frames(labels))]


@pytest.mark.parametrize("changes", [{}, {"normalize": "minmax", "upsample_to": "original"}, {"pad_context": True}])
def test_it_is_features_then_labels_then_masks(changes: dict):
    """The parts, one after the other, on whole frames of 6 x 8 patches."""
    protocol, backbone = replace(PROTOCOL, **changes), color_backbone()
    propagator = LabelPropagator(protocol)
    for index, ids in enumerate(carry(**changes)):
        rgb = torch.from_numpy(moving_disc(index, SIZE)[None])
        features = backbone.extract(rgb.movedim(-1, -3)).patches
        given = encode_labels(moving_mask(0, SIZE), (6, 8), 1, protocol.label_encoding) if index == 0 else None
        soft = propagator.step(features[0], given)
        expected = decode_labels(soft, 8, SIZE, protocol.upsample, protocol.normalize, protocol.upsample_to)
        assert (ids == (expected if index else moving_mask(0, SIZE))).all()


@pytest.mark.parametrize("batch_size", [2, 3, 7, 20])
def test_batches_change_nothing(batch_size: int):
    assert (np.stack(carry(batch_size)) == np.stack(carry())).all()


def test_the_object_is_followed():
    for index, ids in enumerate(carry(3)):
        truth = moving_mask(index, SIZE)
        assert (ids & truth).sum() / (ids | truth).sum() > 0.6


def test_ids_may_have_gaps_and_reach_255():
    first = moving_mask(0, SIZE)
    one, two = carry(labels={0: first}), carry(labels={0: 255 * first}, objects=(7, 255))
    assert (255 * np.stack(one) == np.stack(two)).all()


def test_labels_of_a_later_frame_stand_over_what_was_propagated():
    later = np.zeros(SIZE, np.uint8)
    later[40:48, 8:40] = 2
    first = moving_mask(0, SIZE)
    ids = carry(2, labels={0: first, 3: later}, objects=(1, 2))
    before = carry(2, labels={0: first}, objects=(1, 2))
    assert (np.stack(ids[:3]) == np.stack(before[:3])).all()
    assert (ids[3][later > 0] == 2).all()
    untouched = ~np.asarray(cv2.dilate(later, np.ones((17, 17), np.uint8)) > 0)  # more than a patch away
    assert (ids[3][untouched] == before[3][untouched]).all()


def test_a_frame_comes_out_as_it_went_in():
    @dataclass(frozen=True)
    class Numbered(Frame):
        number: int = 0

    given = [Numbered(frame.rgb, frame.labels, number) for number, frame in enumerate(frames())]
    propagator = VideoPropagator(color_backbone(), PROTOCOL, SIZE, [1], batch_size=3)
    for expected, (frame, _) in zip(given, propagator.run(iter(given)), strict=True):
        assert frame is expected


@pytest.mark.parametrize("batch_size", [1, 4])
def test_frames_are_drawn_two_batches_ahead_of_those_computed_and_no_further(batch_size: int):
    drawn: list[int] = []
    at_once = min(torch.get_num_threads(), MOST_AT_ONCE)  # batches computed at once, besides the batch of `done`
    computed = at_once if at_once > 1 else 0

    def watched() -> Iterator[Frame]:
        for index, frame in enumerate(frames(length=60)):
            drawn.append(index)
            yield frame

    propagator = VideoPropagator(color_backbone(), PROTOCOL, SIZE, [1], batch_size=batch_size)
    before = threading.active_count()
    carried = propagator.run(watched())
    for done in range(1, 10):
        next(carried)
        time.sleep(0.02)
        assert len(drawn) <= done + (3 + computed) * batch_size + 1
    carried.close()
    assert threading.active_count() == before  # the reader has ended too
    drawn_until_then = len(drawn)
    time.sleep(0.05)
    assert len(drawn) == drawn_until_then


def test_an_error_of_a_frame_comes_in_its_place():
    def broken() -> Iterator[Frame]:
        yield from frames(length=4)
        raise OSError("no such frame")

    carried = VideoPropagator(color_backbone(), PROTOCOL, SIZE, [1]).run(broken())
    assert len([next(carried) for _ in range(4)]) == 4
    with pytest.raises(OSError, match="no such frame"):
        next(carried)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([Frame(moving_disc(0, SIZE))], "the first frame has no labels"),
        ([Frame(moving_disc(0, SIZE), 3 * moving_mask(0, SIZE))], r"labels have the ids \[3\]"),
        ([Frame(moving_disc(0, (40, 64)), moving_mask(0, (40, 64)))], r"\(40, 64\) .* expected \(48, 64\)"),
        ([Frame(moving_disc(0, SIZE), moving_mask(0, (40, 64)))], r"\(40, 64\) .* expected \(48, 64\)"),
    ],
)
def test_frames_that_cannot_be_carried(given: list[Frame], says: str):
    with pytest.raises(ValueError, match=says):
        list(VideoPropagator(color_backbone(), PROTOCOL, SIZE, [1, 2]).run(given))


def test_too_little_memory_is_said_before_the_first_frame():
    with pytest.raises(ValueError, match="raise max_memory"):
        VideoPropagator(color_backbone(), PROTOCOL, SIZE, [1], max_bytes=1000)


def test_the_pixel_statistics_of_the_protocol_replace_those_of_imagenet():
    for mean, std in (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5,) * 3, (0.5,) * 3)):
        backbone = color_backbone().with_normalization(mean, std)
        used = VideoPropagator(backbone, PROTOCOL, SIZE, [1]).backbone
        expected = (PROTOCOL.mean, PROTOCOL.std) if std == (0.229, 0.224, 0.225) else (mean, std)
        assert (used.mean, used.std) == expected
