"""J and F against a naive scorer, their properties, and the official tables."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data.davis import load_davis
from data.masks import write_mask
from data.sample import sample_data
from dino_dense.arrays import Mask
from tasks.scores.jf import (
    boundary,
    contour_accuracy,
    region_similarity,
    score_folder,
    score_frame,
    score_sequence,
    statistics,
    summarize,
)
from tests.davis_files import all_masks, all_predictions

sizes = st.tuples(st.integers(2, 24), st.integers(2, 24))


@st.composite
def mask_pairs(draw: st.DrawFn) -> tuple[Mask, Mask]:
    size = draw(sizes)
    sparse = st.sampled_from([False] * 6 + [True])
    pred, gt = (draw(arrays(bool, size, elements=sparse)) for _ in range(2))
    return pred, gt


def naive_boundary(mask: Mask) -> Mask:
    height, width = mask.shape
    out = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            below, right = min(y + 1, height - 1), min(x + 1, width - 1)
            out[y, x] = len({bool(mask[a, b]) for a in (y, below) for b in (x, right)}) > 1
    return out


def naive_match(boundary_pixels: Mask, other: Mask, radius: int) -> float:
    """Share of boundary pixels within `radius` of a pixel of the other boundary."""
    ours, theirs = np.argwhere(boundary_pixels), np.argwhere(other)
    return float(np.mean([((theirs - pixel) ** 2).sum(1).min() <= radius**2 for pixel in ours]))


def naive_contour_accuracy(pred: Mask, gt: Mask, radius: int) -> float:
    pred_boundary, gt_boundary = naive_boundary(pred), naive_boundary(gt)
    if not pred_boundary.any() or not gt_boundary.any():
        return float(pred_boundary.any() == gt_boundary.any())
    precision = naive_match(pred_boundary, gt_boundary, radius)
    recall = naive_match(gt_boundary, pred_boundary, radius)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@given(mask_pairs(), st.sampled_from([1, 2, 3, 5]))
@settings(max_examples=150, deadline=None)
def test_contour_accuracy_equals_the_uncropped_definition(masks: tuple[Mask, Mask], radius: int) -> None:
    pred, gt = masks
    np.testing.assert_array_equal(boundary(pred), naive_boundary(pred))
    expected = naive_contour_accuracy(pred, gt, radius)
    assert contour_accuracy(pred, gt, bound=radius) == pytest.approx(expected, abs=1e-12)


@st.composite
def id_pairs(draw: st.DrawFn) -> tuple[Mask, Mask, int]:
    """Ids of up to ten objects, some of them absent, some frames empty or full, and ids that are no object's."""
    size, objects = draw(sizes), draw(st.integers(1, 10))
    values = draw(st.lists(st.integers(0, objects + 2), min_size=1, max_size=6))
    pred, gt = (draw(arrays(np.uint8, size, elements=st.sampled_from(values))) for _ in range(2))
    return pred, gt, objects


@given(id_pairs(), st.sampled_from([1, 2, 4, 7, 30]))
@settings(max_examples=150, deadline=None)
def test_all_objects_of_a_frame_at_once_equal_each_alone(
    case: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], int], radius: int
) -> None:
    pred, gt, objects = case
    similarity, accuracy = score_frame(pred, gt, objects, bound=radius)
    for index in range(objects):
        masks = pred == index + 1, gt == index + 1
        assert similarity[index] == region_similarity(*masks)
        assert accuracy[index] == pytest.approx(naive_contour_accuracy(*masks, radius), abs=1e-12)


def test_frames_of_two_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"predicted ids \(4, 5\), true ids \(5, 4\)"):
        score_frame(np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint8), 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_folder_of_masks_scores_as_its_arrays(tmp_path: Path, workers: int) -> None:
    sequences = load_davis(sample_data().davis, max_frames=5)[:2]
    for sequence in sequences:
        for index in range(1, len(sequence) - 1):
            moved = np.roll(sequence.read_mask(index), 2, axis=1)
            write_mask(tmp_path / sequence.name / f"{sequence.frames[index].stem}.png", moved)
    tables = score_folder(tmp_path, sequences, workers=workers)
    for sequence, table in zip(sequences, tables, strict=True):
        arrays = all_predictions(tmp_path, sequence), all_masks(sequence)
        names = [frame.stem for frame in sequence.frames]
        expected = score_sequence(*arrays, sequence.num_objects, sequence=sequence.name, frames=names)
        pd.testing.assert_frame_equal(table, expected)
        assert expected["J"].between(0, 1, inclusive="neither").any()


@given(mask_pairs())
@settings(max_examples=100, deadline=None)
def test_both_measures_are_symmetric_bounded_and_one_for_equal_masks(masks: tuple[Mask, Mask]) -> None:
    for measure in (region_similarity, contour_accuracy):
        assert measure(*masks) == pytest.approx(measure(masks[1], masks[0]), abs=1e-12)
        assert 0 <= measure(*masks) <= 1
        assert measure(masks[0], masks[0]) == 1


def test_the_tolerance_is_a_share_of_the_diagonal_rounded_up() -> None:
    gt = np.zeros((300, 400), bool)  # diagonal 500: 0.008 of it is 4 pixels
    gt[100:200, 100:200] = True
    assert contour_accuracy(np.roll(gt, 4, axis=1), gt) == 1
    assert contour_accuracy(np.roll(gt, 5, axis=1), gt) < 1
    assert contour_accuracy(np.roll(gt, 5, axis=1), gt, bound=0.0081) == 1


def test_empty_masks() -> None:
    empty, full = np.zeros((9, 9), bool), np.ones((9, 9), bool)
    dot = empty.copy()
    dot[4, 4] = True
    assert region_similarity(empty, empty) == contour_accuracy(empty, empty) == 1
    for pair in ((empty, dot), (dot, empty)):
        assert region_similarity(*pair) == contour_accuracy(*pair) == 0
    assert contour_accuracy(empty, full) == 1, "a mask that fills the frame has no boundary"


def test_decay_compares_the_first_and_last_of_four_bins_that_share_their_ends() -> None:
    # Bin limits of 9 values: round(linspace(1, 9, 5)) = 1, 3, 5, 7, 9: the bins are 1-3, 3-5, 5-7, 7-9.
    assert statistics([0.9, 0.8, 0.7, 0, 0, 0, 0.1, 0.2, 0.6]) == pytest.approx((3.3 / 9, 4 / 9, 0.8 - 0.3))


def test_a_value_of_one_half_is_not_recalled() -> None:
    assert statistics([0.5, 0.5, 0.6]).recall == pytest.approx(1 / 3)


@given(st.integers(20, 700))
@settings(max_examples=60)
def test_decay_of_a_straight_fall_does_not_depend_on_the_number_of_frames(n: int) -> None:
    assert statistics(np.linspace(1, 0, n)).decay == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_short_videos_have_statistics(n: int) -> None:
    assert statistics(np.ones(n)) == (1, 1, 0)


def video(seed: int = 0, frames: int = 6, objects: int = 2) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, objects + 1, (frames, 12, 15)).astype(np.uint8)


def test_the_truth_scores_one_and_the_first_and_last_frame_are_left_out() -> None:
    gt = video()
    pred = gt.copy()
    pred[[0, -1]] = 0
    table = score_sequence(pred, gt, 2, sequence="dog", frames=[f"{i:05d}" for i in range(6)])
    assert table["frame"].tolist() == ["00001", "00002", "00003", "00004"] * 2
    assert table["object"].tolist() == [1] * 4 + [2] * 4
    assert (table[["J", "F"]] == 1).all(axis=None)
    overall, _ = summarize(table)
    assert overall.iloc[0].tolist() == [1, 1, 1, 0, 1, 1, 0]


def test_scores_of_an_object_do_not_depend_on_the_others() -> None:
    gt, pred = video(0), video(1)
    both = score_sequence(pred, gt, 2)
    alone = score_sequence((pred == 2).astype(np.uint8), (gt == 2).astype(np.uint8), 1)
    np.testing.assert_array_equal(both.loc[both["object"] == 2, ["J", "F"]], alone[["J", "F"]])


def test_an_object_that_is_never_predicted_scores_zero() -> None:
    gt = video()
    table = score_sequence(np.where(gt == 2, 0, gt), gt, 2)
    assert (table.loc[table["object"] == 2, ["J", "F"]] == 0).all(axis=None)


@pytest.mark.parametrize(
    ("pred", "gt", "message"),
    [
        (video(objects=3), video(), r"dog frame 1: predicted id 3, .* 2 object"),
        (video(frames=5), video(), r"dog: predicted masks \(5, 12, 15\), true masks \(6, 12, 15\)"),
        (video(frames=2), video(frames=2), r"dog: 2 frame\(s\)"),
    ],
)
def test_masks_that_cannot_be_scored_are_refused(pred: np.ndarray, gt: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_sequence(pred, gt, 2, sequence="dog")


def test_the_global_table_averages_over_objects_not_sequences() -> None:
    rows = [("a", 1, 1.0, 0.4), ("a", 2, 0.2, 0.6), ("b", 1, 0.0, 0.2)]
    table = pd.DataFrame(
        [(name, identity, frame, j, f) for name, identity, j, f in rows for frame in range(5)],
        columns=["sequence", "object", "frame", "J", "F"],
    )
    overall, per_sequence = summarize(table)
    expected = {"J&F-Mean": 0.4, "J-Mean": 0.4, "J-Recall": 1 / 3, "J-Decay": 0.0}
    expected |= {"F-Mean": 0.4, "F-Recall": 1 / 3, "F-Decay": 0.0}
    assert list(overall.columns) == list(expected)
    assert overall.iloc[0].to_dict() == pytest.approx(expected)
    assert per_sequence.columns.tolist() == ["Sequence", "J-Mean", "F-Mean"]
    assert per_sequence["Sequence"].tolist() == ["a_1", "a_2", "b_1"]
    assert per_sequence["J-Mean"].tolist() == pytest.approx([1.0, 0.2, 0.0])


def test_nothing_to_summarize_is_an_error() -> None:
    with pytest.raises(ValueError, match="no scored frame"):
        summarize(pd.DataFrame(columns=["sequence", "object", "frame", "J", "F"]))
    with pytest.raises(ValueError, match="no scored frame"):
        statistics([])
