"""Curves lie where their values say."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest

from data.images import read_upright
from data.masks import PALETTE
from tasks.harness import figures, plots

RED = (255, 0, 0)


def red(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Pixels of the curve, below the legend."""
    reddish = (rgb[..., 0] > 200) & (rgb[..., 1] < 120) & (rgb[..., 2] < 120)
    reddish[: plots.LEGEND] = False
    return reddish


@pytest.mark.parametrize("value", [0.0, 30.0, 100.0])
def test_a_level_curve_lies_at_its_height_from_side_to_side(value: float):
    rows, columns = np.nonzero(red(plots.percent_curves({"J": {"a": [value] * 40}}, {"a": RED}, "frame")))
    expected = plots.LEGEND + plots.PANEL * (100 + plots.MARGIN - value) / (100 + 2 * plots.MARGIN)
    assert np.abs(rows - expected).max() <= 2
    assert columns.max() - columns.min() > 0.8 * plots.WIDTH


def test_a_rising_curve_rises():
    rows, columns = np.nonzero(red(plots.percent_curves({"J": {"a": [0.0, 100.0]}}, {"a": RED}, "frame")))
    assert np.corrcoef(rows, columns)[0, 1] < -0.99


def test_frames_without_a_value_leave_a_gap():
    values = [50.0] * 20 + [math.nan] * 20 + [50.0] * 20
    _, columns = np.nonzero(red(plots.percent_curves({"J": {"a": values}}, {"a": RED}, "frame")))
    assert np.diff(np.unique(columns)).max() > 0.25 * plots.WIDTH


@pytest.mark.parametrize("values", [[], [40.0], [math.nan], [math.nan, 40.0, math.nan]])
def test_curves_of_no_or_one_value(values: list[float]):
    drawn = red(plots.percent_curves({"J": {"a": values}, "F": {"a": values}}, {"a": RED}, "frame"))
    assert drawn.any() == (40.0 in values)


def test_many_objects_have_all_a_place_in_the_legend():
    names = [f"object {number}" for number in range(1, 24)]
    few, many = (
        plots.percent_curves({"J": {name: [1.0] for name in some}}, dict.fromkeys(some, RED), "frame")
        for some in (names[:1], names)
    )
    assert many.shape[0] > few.shape[0]


def test_curves_of_a_sequence_are_a_picture_in_the_colors_of_its_masks(tmp_path: Path):
    table = pd.DataFrame({"object": [1, 1, 2, 2], "J": [0.2, 0.4, 0.9, 0.8], "F": [0.1, 0.1, 0.7, 0.7]})
    figures.object_curves(tmp_path / "a.png", table)
    rgb = read_upright(tmp_path / "a.png").astype(int)
    for identity in (1, 2):
        assert (np.abs(rgb - PALETTE[identity]).max(axis=-1) < 10).any()
