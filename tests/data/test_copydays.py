"""Copydays: which copy shows which photograph, and folders that are not it."""

from pathlib import Path

import pytest
from PIL import Image

from data import DataError
from data.copydays import is_copydays, load_copydays


def make(root: Path, files: dict[str, list[str]]) -> Path:
    for folder, names in files.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            Image.new("RGB", (8, 8)).save(root / folder / name)
    return root


FILES = {
    "original": ["200000.jpg", "200100.jpg", "200200.jpg"],
    "strong": ["200001.jpg", "200002.jpg", "200201.jpg"],
    "crops/50": ["200000.jpg", "200100.jpg"],
    "crops/10": ["200000.jpg"],
    "jpegqual/3": ["200200.jpg"],
}


def test_copies_are_matched_by_the_first_four_characters(tmp_path: Path):
    root = make(tmp_path, FILES)
    found = load_copydays(root)
    assert [path.name for path in found.originals] == FILES["original"]
    assert [(copy.attack, copy.path.name, copy.originals) for copy in found.copies] == [
        ("strong", "200001.jpg", [0]),
        ("strong", "200002.jpg", [0]),
        ("strong", "200201.jpg", [2]),
        ("crops/10", "200000.jpg", [0]),
        ("crops/50", "200000.jpg", [0]),
        ("crops/50", "200100.jpg", [1]),
        ("jpegqual/3", "200200.jpg", [2]),
    ]
    assert is_copydays(root)
    assert not found.is_complete


def test_as_many_as_published_is_complete(tmp_path: Path):
    names = [f"{2000 + index}00.jpg" for index in range(157)]
    strong = [f"{2000 + index % 157}{1 + index // 157:02}.jpg" for index in range(229)]
    root = make(tmp_path, {"original": names, "strong": strong})
    assert load_copydays(root).is_complete
    (root / "strong" / strong[-1]).unlink()
    assert not load_copydays(root).is_complete


def test_one_photograph_twice_is_two_answers(tmp_path: Path):
    root = make(tmp_path, {"original": ["200000.jpg", "200050.jpg"], "strong": ["200001.jpg"]})
    assert load_copydays(root).copies[0].originals == [0, 1]


def test_folders_that_are_not_it(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="original: no such folder"):
        load_copydays(tmp_path)
    root = make(tmp_path, {"original": ["200000.jpg"]})
    with pytest.raises(DataError, match=r"no copies\. Expected strong/, crops/PERCENT/"):
        load_copydays(root)
    (root / "strong").mkdir()
    with pytest.raises(DataError, match="strong: no images"):
        load_copydays(root)
    Image.new("RGB", (8, 8)).save(root / "strong" / "300001.jpg")
    with pytest.raises(DataError, match=r"300001\.jpg: a copy of what\? No image in .*original begins with '3000'"):
        load_copydays(root)
