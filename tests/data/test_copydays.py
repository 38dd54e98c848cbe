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


@pytest.mark.parametrize(
    ("originals", "copies"),
    [
        pytest.param("IMG_0001 IMG_0002 IMG_0010", "IMG_000101 IMG_000201 IMG_001001", id="two digits more"),
        pytest.param("IMG_1 IMG_2 IMG_10", "IMG_1_blur IMG_2-crop IMG_10_blur", id="word after the number"),
        pytest.param("DSC00001 DSC00002 DSC00003", "DSC00001 DSC00002 DSC00003", id="the same names"),
        pytest.param("000001 000002 000003", "000001 000002 000003", id="the same six digits"),
        pytest.param("photo-1 photo-2 photo-3", "photo-1 photo-2_a photo-3 (2)", id="of several kinds"),
        pytest.param("1 2 10", "101 201 1001", id="shorter than the key"),
        pytest.param("holiday holiday_2 holiday_3", "holiday-x holiday_2_x holiday_3_x", id="one begins another"),
    ],
)
def test_names_of_cameras_are_matched_as_wholes(originals: str, copies: str, tmp_path: Path):
    files = {"original": originals, "strong": copies}
    root = make(tmp_path, {folder: [f"{name}.jpg" for name in names.split()] for folder, names in files.items()})
    if "(2)" in copies:
        (root / "strong" / "(2).jpg").rename(root / "strong" / "photo-3 (2).jpg")
        (root / "strong" / "photo-3.jpg").unlink()
    loaded = load_copydays(root)
    shown = {copy.path.stem: [loaded.originals[index].stem for index in copy.originals] for copy in loaded.copies}
    assert list(shown.values()) == [[name] for name in originals.split()]


@pytest.mark.parametrize(
    ("originals", "copies"),
    [
        pytest.param("IMG_0001 IMG_0002", "COPY_0001 COPY_0002", id="no name in common"),
        pytest.param("IMG_1 IMG_10 IMG_100", "IMG_1000", id="a number cut anywhere"),
        pytest.param("IMG_1 IMG_2", "IMG_2_blur IMG_12 IMG_234", id="numbers without an original"),
        pytest.param("000001 000002 000003", "000011 000012 000013", id="other numbers"),
    ],
)
def test_names_that_do_not_say_the_original_are_an_error_with_examples(originals: str, copies: str, tmp_path: Path):
    files = {"original": originals, "strong": copies}
    root = make(tmp_path, {folder: [f"{name}.jpg" for name in names.split()] for folder, names in files.items()})
    with pytest.raises(DataError, match=r"strong: \d of \d copies do not say which image .*Expected the name of"):
        load_copydays(root)


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
    missing = r"300001\.jpg: its original is missing\. No image in .*original begins with '3000'"
    with pytest.raises(DataError, match=missing):
        load_copydays(root)
