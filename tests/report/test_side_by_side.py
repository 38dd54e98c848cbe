"""Samples side by side: the values are the tables' own, the largest differences are never left out."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dino_dense.report import Entry, Metric, Picture
from dino_dense.report import side_by_side as room
from dino_dense.report.side_by_side import as_data, sample_tables
from tests.report.builders import RANDOM, VITS8, VITS16, edited, failed_entry, make_entry, make_samples

METRICS = (Metric("top-1"), Metric("top-5"))
NAMES = [VITS16, VITS8, RANDOM]


def of_values(root: Path, values: dict[str, np.ndarray], **words: Any) -> list[Entry]:
    """An entry for each checkpoint, with these values of the headline."""
    entries = []
    for name, column in values.items():
        samples = pd.DataFrame({"sample": [f"s{place:05d}" for place in range(len(column))], "top-1": column})
        entries.append(make_entry(root, "knn", name, samples=samples, **words))
    return entries


def test_values_are_those_of_the_samples(tmp_path: Path):
    values = {name: np.random.default_rng(place).random(7) * 100 for place, name in enumerate(NAMES)}
    values[VITS8][3] = np.nan
    (table,) = sample_tables(of_values(tmp_path, values))
    assert (table.label, table.metric.name, table.total, table.sure) == ("knn", "top-1", 7, 7)
    pd.testing.assert_frame_equal(table.values.reset_index(drop=True), pd.DataFrame(values), check_names=False)
    data = as_data(table)
    assert data["checkpoints"] == NAMES
    assert data["values"][3][1] is None
    assert data["values"][0] == [pytest.approx(values[name][0], abs=1e-4) for name in NAMES]


def test_a_mean_of_ratios_is_taken_over_a_samples_own_classes(tmp_path: Path):
    samples = pd.DataFrame(
        {
            "sample": ["a", "b"],
            **{f"top-1 hits {name}": hits for name, hits in (("cat", [1.0, 0.0]), ("dog", [1.0, 3.0]))},
            **{f"top-1 union {name}": union for name, union in (("cat", [4.0, 0.0]), ("dog", [2.0, 4.0]))},
        }
    )
    total = 100 * (1 / 4 + 4 / 6) / 2
    entries = [make_entry(tmp_path, "knn", name) for name in (VITS16, VITS8)]
    for place, entry in enumerate(entries):
        samples.to_csv(entry.folder / "samples.csv", index=False)
        scores = tuple(type(score)(score.metric, total, 2) for score in entry.report.scores[:1])
        entries[place] = edited(entry, scores=scores, metrics=METRICS[:1])
    (table,) = sample_tables(entries)
    assert table.values[VITS16].to_dict() == {"a": pytest.approx(37.5), "b": pytest.approx(75.0)}


def test_what_cannot_be_paired_is_left_out(tmp_path: Path):
    entries = [make_entry(tmp_path, "knn", VITS16), failed_entry(tmp_path, "knn", RANDOM, "no memory")]
    assert sample_tables(entries) == []
    other = make_entry(tmp_path, "knn", VITS8, config={"k": [1]})
    assert sample_tables([*entries, other]) == []
    unread = make_entry(tmp_path, "knn", VITS8)
    (unread.folder / "samples.csv").unlink()
    assert sample_tables([*entries, unread]) == []


@pytest.mark.parametrize("seed", range(3))
def test_the_largest_differences_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int):
    """Of many samples, both ends of each two checkpoints are there, against a full sort."""
    monkeypatch.setattr(room, "MOST_ROWS", 60)
    values = {name: np.random.default_rng([seed, place]).random(300) * 100 for place, name in enumerate(NAMES)}
    (table,) = sample_tables(of_values(tmp_path, values))
    assert (table.total, table.sure) == (300, 10)
    assert len(table.values) <= 60
    frame = pd.DataFrame(values, index=[f"s{place:05d}" for place in range(300)])
    for a, b in ((VITS16, VITS8), (VITS16, RANDOM), (VITS8, RANDOM)):
        order = (frame[b] - frame[a]).sort_values().index
        assert {*order[:10], *order[-10:]} <= set(table.values.index)


def test_pictures_belong_to_samples_or_their_clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A picture of a video shows each of its objects; a name that begins another name is not taken for it."""
    samples = make_samples(METRICS, (50.0, 70.0), 4, 0).assign(sample=["cat_1", "cat_2", "cats", "dog"])
    samples.insert(1, "cluster", ["cat", "cat", "cats", "dog"])
    entries = []
    for place, name in enumerate((VITS16, VITS8)):
        changed = samples.assign(**{"top-1": samples["top-1"] * (1 + place * np.array([0.1, 0.2, 0.3, 0.4]))})
        entry = make_entry(tmp_path, "knn", name, samples=changed, pictures=4)
        captions = ("cat (worst): 3", "cats: 4", "cats: curves", "dogs: 5")
        files = [picture.file for picture in entry.report.pictures]
        entries.append(edited(entry, pictures=tuple(map(Picture, files, captions))))
    (table,) = sample_tables(entries)
    assert {sample for sample, _ in table.pictures} == {"cat_1", "cat_2", "cats"}
    assert table.pictures["cats", VITS8][1].caption == "cats: 4"
    data = as_data(table)
    assert len(data["pictures"]) == 4, "a picture of two samples is in the page once"
    assert data["shown"][0] == data["shown"][1]
    monkeypatch.setattr(room, "MOST_PICTURES", 2)
    (table,) = sample_tables(entries)
    assert {sample for sample, _ in table.pictures} == {"cats"}, "the largest difference comes first"


def test_unreadable_pictures_are_left_out(tmp_path: Path):
    entries = [make_entry(tmp_path, "knn", name, pictures=1) for name in (VITS16, VITS8)]
    entries = [
        edited(entry, pictures=(Picture(entry.report.pictures[0].file, "val/0000.jpg: 3"),)) for entry in entries
    ]
    (entries[0].folder / entries[0].report.pictures[0].file).write_bytes(b"no picture")
    data = as_data(*sample_tables(entries))
    assert len(data["pictures"]) == 1
    assert list(data["shown"].values()) == [{1: 0}]
