"""Rank correlations of measures over checkpoints: by hand, by chance, and left out where they would say nothing."""

from pathlib import Path

import pandas as pd
import pytest

from dino_dense.report import Entry, render_page, write_batch
from dino_dense.report.correlations import rank_correlations
from tests.report.builders import edited, failed_entry, make_entry

KNN, DAVIS, DEPTH = (50.0, 60.0, 70.0, 80.0), (30.0, 55.0, 40.0, 70.0), (0.9, 0.7, 0.6, 0.5)


def entries(root: Path, count: int = 4) -> list[Entry]:
    values = {"knn": KNN, "davis": DAVIS, "depth": DEPTH}
    return [
        make_entry(root, task, f"checkpoint-{index}", (values[task][index], 50.0, 10.0))
        for index in range(count)
        for task in values
    ]


def test_by_hand(tmp_path: Path):
    table = rank_correlations(entries(tmp_path)).set_index(["first", "second"])
    assert table.loc[("knn", "davis"), "rho"] == pytest.approx(1 - 6 * 2 / (4 * 15)), "two neighbors are exchanged"
    assert table.loc[("knn", "depth"), "rho"] == pytest.approx(1), "a smaller RMSE is better"
    assert table["n"].tolist() == [4, 4, 4]


def test_fewer_than_three_checkpoints_in_common_give_none(tmp_path: Path):
    assert rank_correlations(entries(tmp_path, 2)).empty
    three = entries(tmp_path, 3)
    assert len(rank_correlations(three)) == 3
    broken = [
        failed_entry(tmp_path, "depth", entry.checkpoint, "lost")
        if (entry.label, entry.checkpoint) == ("depth", "checkpoint-1")
        else entry
        for entry in three
    ]
    (row,) = rank_correlations(broken).to_dict("records")
    assert (row["first"], row["second"], row["n"]) == ("knn", "davis", 3)


def test_one_number_for_all_or_other_data_give_none(tmp_path: Path):
    four = entries(tmp_path)
    flat = [make_entry(tmp_path, "knn", f"checkpoint-{index}", (50.0, 50.0)) for index in range(4)]
    alike = [entry for entry in four if entry.label != "knn"] + flat
    assert set(rank_correlations(alike)["first"]) == {"davis"}
    other = [
        edited(entry, data={**entry.report.data, "sha256": "d" * 64}) if entry is four[0] else entry for entry in four
    ]
    assert set(rank_correlations(other)["first"]) == {"davis"}, "knn was measured on other data once"


def test_the_page_and_the_folder_show_them_with_n(tmp_path: Path):
    page = render_page(entries(tmp_path), title="four")
    assert 'id="correlations"' in page
    assert "n = 4" in page
    assert 'id="correlations"' not in render_page(entries(tmp_path, 2), title="two")
    write_batch(entries(tmp_path), tmp_path / "out")
    assert len(pd.read_csv(tmp_path / "out" / "correlations.csv")) == 3
    write_batch(entries(tmp_path, 2), tmp_path / "out")
    assert not (tmp_path / "out" / "correlations.csv").exists()
