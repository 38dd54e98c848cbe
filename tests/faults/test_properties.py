"""What must hold for every input: metrics, propagation, crops. Beside the properties in each task's own tests."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dino_dense.pretrain.crops import draw_box
from dino_dense.propagation.search import Neighborhood
from tasks.scores.boxes import box_iou
from tasks.scores.classification import hits
from tasks.scores.jf import score_frame
from tasks.scores.retrieval import average_precision
from tasks.scores.saliency import accuracy, f_curve, iou
from tasks.scores.segmentation import class_iou, confusion, pixel_accuracy
from tests.propagation.frames import carry_to_frame

QUICK = settings(max_examples=25, deadline=None)
seeds = st.integers(0, 10_000)


def ids(seed: int, most: int) -> np.ndarray:
    """Blocks of ids 0..most, uint8 [24, 30]."""
    blocks = np.random.default_rng(seed).integers(0, most + 1, (4, 5), dtype=np.uint8)
    return blocks.repeat(6, axis=0).repeat(6, axis=1)


@given(seeds, seeds, st.integers(1, 5))
@QUICK
def test_j_and_f_range_identity_and_permuted_ids(a: int, b: int, objects: int):
    predicted, truth = ids(a, objects), ids(b, objects)
    scores = np.stack(score_frame(predicted, truth, objects))
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (np.stack(score_frame(truth, truth, objects)) == 1).all()
    order = np.random.default_rng(a).permutation(objects) + 1  # id n becomes order[n - 1]
    renamed = np.concatenate([[0], order]).astype(np.uint8)
    again = np.stack(score_frame(renamed[predicted], renamed[truth], objects))
    np.testing.assert_array_equal(again[:, order - 1], scores)


@given(seeds, seeds)
@QUICK
def test_masks_range_symmetry_and_identity(a: int, b: int):
    predicted, truth = ids(a, 1) > 0, ids(b, 1) > 0
    assert 0 <= iou(predicted, truth) <= 1
    assert iou(predicted, truth) == iou(truth, predicted)
    assert accuracy(predicted, truth) == accuracy(truth, predicted)
    assert iou(truth, truth) == accuracy(truth, truth) == f_curve(truth, truth).max() == 1
    curve = f_curve(predicted, truth)
    assert ((curve >= 0) & (curve <= 1)).all()


@given(seeds, seeds, st.integers(1, 4))
@QUICK
def test_classes_of_pixels_range_identity_and_permutation(a: int, b: int, classes: int):
    predicted, truth = ids(a, classes - 1), ids(b, classes - 1)
    matrix = confusion(predicted, truth, classes)
    found = class_iou(matrix)
    seen = found[~np.isnan(found)]
    assert ((seen >= 0) & (seen <= 100)).all()
    assert 0 <= pixel_accuracy(matrix) <= 100
    assert np.nanmin(class_iou(confusion(truth, truth, classes))) == 100
    order = np.random.default_rng(a).permutation(classes).astype(np.uint8)
    again = class_iou(confusion(order[predicted], order[truth], classes))
    np.testing.assert_array_equal(again[order], found)


@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(0, 5))
@QUICK
def test_average_precision_is_a_share_and_grows_with_better_places(found: list[bool], unfound: int):
    ranks = np.flatnonzero(found)
    total = len(ranks) + unfound
    if not len(ranks):
        return
    value = average_precision(ranks, total)
    assert 0 <= value <= 1 + 1e-12
    assert average_precision(np.arange(len(ranks)), total) >= value - 1e-12


@given(seeds, st.integers(2, 7), st.integers(1, 12))
@QUICK
def test_hits_are_shares_grow_with_guesses_and_know_no_names_of_classes(seed: int, classes: int, n: int):
    generator = torch.Generator().manual_seed(seed)
    ranking = torch.stack([torch.randperm(classes, generator=generator) for _ in range(n)])
    labels = torch.randint(classes, (n,), generator=generator)
    names = [str(i) for i in range(n)]
    table = hits(ranking, labels, names)
    assert (table["top-1"] <= table["top-5"]).all()
    assert set(table["top-1"]) <= {0.0, 100.0}
    order = torch.randperm(classes, generator=generator)
    assert hits(order[ranking], order[labels], names).equals(table)
    assert (hits(labels[:, None], labels, names)["top-1"] == 100).all()


boxes = st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 20)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@given(boxes, boxes)
@QUICK
def test_boxes_range_symmetry_and_identity(a: tuple[int, ...], b: tuple[int, ...]):
    value = box_iou(a, [b])[0]
    assert 0 <= value <= 1
    assert value == box_iou(b, [a])[0]
    assert box_iou(a, [a])[0] == 1


@st.composite
def frames(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int], dict, int]:
    """Features of a frame [h*w, D] and of its context [n, D, h*w], the grid, the neighborhood, and memory in bytes."""
    hw = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    n, generator = draw(st.integers(1, 4)), torch.Generator().manual_seed(draw(seeds))
    target = torch.randn(hw[0] * hw[1], 8, generator=generator)
    sources = torch.randn(n, 8, hw[0] * hw[1], generator=generator)
    options = {
        "radius": draw(st.integers(0, 4)),
        "top_k": draw(st.integers(1, 10)),
        "temperature": draw(st.sampled_from([0.05, 0.1, 1.0])),
        "unrestricted": draw(st.integers(0, n)),
        "window": draw(st.sampled_from(["square", "circle"])),
        "keep_ties": draw(st.booleans()),
    }
    return target, sources, hw, options, draw(st.sampled_from([1, 10_000, 2**26]))


@given(frames(), st.integers(1, 4), seeds)
@QUICK
def test_propagated_rows_sum_to_1(frame: tuple, channels: int, seed: int):
    """Labels are a mean of labels: shares stay shares, in the range of those of the context."""
    target, sources, hw, options, max_bytes = frame
    labels = torch.rand(len(sources), channels, *hw, generator=torch.Generator().manual_seed(seed)).softmax(dim=1)
    result = carry_to_frame(target, sources, labels, Neighborhood(**options), max_bytes)
    torch.testing.assert_close(result.sum(dim=0), torch.ones(hw), rtol=0, atol=1e-5)
    assert (result >= labels.amin((0, 2, 3))[:, None, None] - 1e-5).all()
    assert (result <= labels.amax((0, 2, 3))[:, None, None] + 1e-5).all()


@given(frames(), st.floats(0, 1, width=32))
@QUICK
def test_constant_labels_stay_constant(frame: tuple, value: float):
    target, sources, hw, options, max_bytes = frame
    labels = torch.full((len(sources), 1, *hw), value)
    result = carry_to_frame(target, sources, labels, Neighborhood(**options), max_bytes)
    torch.testing.assert_close(result, torch.full((1, *hw), value), rtol=1e-5, atol=1e-6)


@given(frames(), seeds)
@QUICK
def test_propagation_equals_the_dense_form(frame: tuple, seed: int):
    """Without window and with every patch kept, it is softmax attention: one matrix."""
    target, sources, hw, options, max_bytes = frame
    labels = torch.rand(len(sources), 2, *hw, generator=torch.Generator().manual_seed(seed))
    every = {**options, "radius": 0, "top_k": sources.shape[0] * sources.shape[2]}
    result = carry_to_frame(target, sources, labels, Neighborhood(**every), max_bytes)
    context = F.normalize(sources.double(), dim=1).transpose(1, 2).flatten(0, 1)  # [n*h*w, D]
    affinity = (F.normalize(target.double(), dim=1) @ context.T / options["temperature"]).softmax(dim=1)
    dense = affinity @ labels.double().permute(0, 2, 3, 1).flatten(0, 2)  # [h*w, C]
    torch.testing.assert_close(result.double(), dense.T.unflatten(1, hw), rtol=0, atol=1e-5)


@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.01, 1), st.floats(0, 1), seeds)
@settings(max_examples=100, deadline=None)
def test_crops_lie_in_the_picture(height: int, width: int, low: float, share: float, seed: int):
    """At least a pixel, however flat the picture; of the area asked for, but for rounding, or the largest that fits."""
    scale = (low, low + (1 - low) * share)
    box = draw_box((height, width), scale, random.Random(seed))
    assert 0 <= box.top < box.top + box.height <= height
    assert 0 <= box.left < box.left + box.width <= width
    assert box == draw_box((height, width), scale, random.Random(seed))
