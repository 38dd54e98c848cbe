"""Reports read back from disk, under names that tell them apart."""

import dataclasses
import json
from pathlib import Path

import pytest

from dino_dense.report import Entry, read_entries
from tests.report.builders import RANDOM, VITS8, VITS16, edited, failed_entry, make_batch, make_entry


def names(entries: list[Entry]) -> set[tuple[str, str]]:
    return {(entry.label, entry.checkpoint) for entry in entries}


def test_files_folders_and_batches_give_the_same_report(tmp_path: Path):
    entry = make_entry(tmp_path / "batch" / "deep")
    for path in (entry.folder / "report.json", entry.folder, tmp_path, tmp_path / "batch"):
        (found,) = read_entries([path])
        assert found.report == dataclasses.replace(entry.report, config=found.report.config)
        assert (found.label, found.checkpoint, found.folder) == ("knn", VITS16, entry.folder)
    assert len(read_entries([tmp_path, entry.folder])) == 1  # named twice, read once


def test_a_batch_keeps_its_pairs(tmp_path: Path):
    found = read_entries([make_batch(tmp_path)[0].folder.parent])
    assert len(found) == 12
    assert {label for label, _ in names(found)} == {
        "davis",
        "depth",
        "knn (crop 224)",
        "knn (crop 64)",
    }
    assert {entry.checkpoint for entry in found} == {VITS16, VITS8, RANDOM}
    assert len(names(found)) == 12


def test_what_differs_names_the_ways_to_measure(tmp_path: Path):
    a = make_entry(tmp_path / "a", config={"k": 10, "crop": 224, "batch_size": 1})
    b = make_entry(tmp_path / "b", config={"k": 20, "crop": 224, "batch_size": 2})
    assert names(read_entries([a.folder, b.folder])) == {("knn (k 10)", VITS16), ("knn (k 20)", VITS16)}
    c = make_entry(tmp_path / "c", checkpoint=VITS8, config={"k": 10, "crop": 224, "batch_size": 3})
    assert ("knn (k 10)", VITS8) in names(read_entries([a.folder, b.folder, c.folder]))
    d = edited(
        make_entry(tmp_path / "d", config=b.report.config), data={**b.report.data, "name": "mine", "sha256": "9"}
    )
    assert names(read_entries([b.folder, d.folder])) == {
        ("knn (data knn data)", VITS16),
        ("knn (data mine)", VITS16),
    }
    e = edited(make_entry(tmp_path / "e", config=b.report.config), data={**b.report.data, "sha256": "8"})
    assert names(read_entries([b.folder, e.folder])) == {("knn (#1)", VITS16), ("knn (#2)", VITS16)}


def test_a_failed_report_joins_those_with_its_settings(tmp_path: Path):
    a = make_entry(tmp_path / "a", config={"k": 10})
    b = make_entry(tmp_path / "b", config={"k": 20})
    failed = edited(failed_entry(tmp_path / "c", "knn", VITS8, "no"), config={"k": 20}, data={})
    assert ("knn (k 20)", VITS8) in names(read_entries([a.folder, b.folder, failed.folder]))
    assert names(read_entries([failed.folder])) == {("knn", VITS8)}


def test_one_name_for_two_checkpoints_is_made_two(tmp_path: Path):
    a, b, c, d = (make_entry(tmp_path / letter) for letter in "abcd")
    b = edited(b, checkpoint={**b.report.checkpoint, "weights_sha256": "e" * 64})
    assert names(read_entries([a.folder, b.folder])) == {
        ("knn", f"{VITS16} (bbbbbbbb)"),
        ("knn", f"{VITS16} (eeeeeeee)"),
    }
    c = edited(c, environment={**c.report.environment, "dtype": "bf16"})
    assert names(read_entries([a.folder, c.folder])) == {("knn", f"{VITS16} (fp32)"), ("knn", f"{VITS16} (bf16)")}
    assert names(read_entries([a.folder, d.folder])) == {
        ("knn", f"{VITS16} ({a.folder})"),
        ("knn", f"{VITS16} ({d.folder})"),
    }


def test_a_report_without_a_checkpoint_is_called_after_its_folder(tmp_path: Path):
    entry = edited(make_entry(tmp_path), checkpoint={})
    assert names(read_entries([entry.folder])) == {("knn", entry.folder.name)}


def test_what_is_no_report_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"gone: no such file or folder; expected report\.json"):
        read_entries([tmp_path / "gone"])
    with pytest.raises(ValueError, match=r"no report\.json in or below"):
        read_entries([tmp_path])
    file = tmp_path / "report.json"
    for text in ("{", "[]", "{}", '{"task": "knn"}', "\xff"):
        file.write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match="expected a report, found something else"):
            read_entries([file])
    file.write_text(json.dumps({"schema": 99}))
    with pytest.raises(ValueError, match=r"report\.json: report schema 99.*newer version"):
        read_entries([file])
