"""Saliency sets in every layout they ship in, and folders that cannot be used."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import DataError
from data.masks import write_mask
from data.saliency import FOLDER_PAIRS, MaskedImage, detect_layout, load_saliency, object_masks
from data.sample import sample_data

SIZE = (20, 30)  # height, width


def write_image(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)


def disc(value: int = 255, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[5:12, 8:20] = value
    return mask


def write_pairs(root: Path, folders: tuple[str, str] = ("images", "masks"), names: str = "ab") -> Path:
    for name in names:
        write_image(root / folders[0] / f"{name}.jpg")
        (root / folders[1]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(disc()).save(root / folders[1] / f"{name}.png")
    return root


@pytest.mark.parametrize("folders", [*FOLDER_PAIRS, ("photos", "truth")], ids="/".join)
@pytest.mark.parametrize("nested", [False, True])
def test_pairs_are_found_by_name_or_by_content(folders: tuple[str, str], nested: bool, tmp_path: Path):
    write_pairs(tmp_path / "set" if nested else tmp_path, folders)
    images = load_saliency(tmp_path)
    assert [image.name for image in images] == ["a", "b"]
    rgb, ids = images[0].read()
    assert rgb.shape == (*SIZE, 3)
    np.testing.assert_array_equal(ids, disc(1))
    assert images[0].image.parent.name == folders[0]


def test_any_value_above_zero_is_the_object(tmp_path: Path):
    """Anti-aliased edges count, as in the published scores."""
    write_pairs(tmp_path, names="a")
    soft = disc()
    soft[4] = 1
    Image.fromarray(soft).save(tmp_path / "masks" / "a.png")
    _, ids = load_saliency(tmp_path)[0].read()
    np.testing.assert_array_equal(ids, soft > 0)


def test_what_does_not_match_is_named(tmp_path: Path):
    write_pairs(tmp_path, names="abc")
    (tmp_path / "masks" / "b.png").unlink()
    (tmp_path / "images" / "c.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 2 images in images have no mask.*1 of 2 masks in masks no image: b, c"):
        load_saliency(tmp_path)


def test_names_must_be_unique(tmp_path: Path):
    write_pairs(tmp_path)
    write_image(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match="more than one file named a"):
        load_saliency(tmp_path)


def test_folders_that_are_no_pair(tmp_path: Path):
    with pytest.raises(DataError, match=r"missing: no such folder"):
        load_saliency(tmp_path / "missing")
    with pytest.raises(DataError, match=r"found folders with images: none"):
        load_saliency(tmp_path)
    write_image(tmp_path / "one" / "a.jpg")
    write_image(tmp_path / "two" / "a.jpg")
    with pytest.raises(DataError, match=r"found folders with images: one, two, with gray ones: 0"):
        load_saliency(tmp_path)
    (tmp_path / "one" / "a.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"one/a\.jpg: not an image"):
        load_saliency(tmp_path)


def test_sizes_must_agree(tmp_path: Path):
    write_pairs(tmp_path, names="a")
    Image.fromarray(disc(size=(30, 20))).save(tmp_path / "masks" / "a.png")
    with pytest.raises(DataError, match=r"a\.png: 30x20 pixels .* has 20x30"):
        load_saliency(tmp_path)[0].read()


def test_broken_mask_is_named(tmp_path: Path):
    write_pairs(tmp_path, names="a")
    path = tmp_path / "masks" / "a.png"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"masks/a\.png: unreadable mask"):
        load_saliency(tmp_path)[0].read()


def write_voc(root: Path, names: str = "ab") -> Path:
    for name in names:
        write_image(root / "JPEGImages" / f"{name}.jpg")
        ids = disc(1)
        ids[15:18, 2:6], ids[14, 2:6] = 2, 255
        write_mask(root / "SegmentationObject" / f"{name}.png", ids)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("b\n\na\n")
    return root


def test_voc_segmentation(tmp_path: Path):
    root = write_voc(tmp_path)
    assert detect_layout(root) == "voc"
    images = load_saliency(root)
    assert [image.name for image in images] == ["b", "a"], "in the order of the list"
    _, ids = images[0].read()
    assert sorted(np.unique(ids)) == [0, 1, 2, 255]
    assert [mask.sum() for mask in object_masks(ids)] == [84, 12]


def test_voc_trees_that_lack_something(tmp_path: Path):
    root = write_voc(tmp_path / "VOC2012")
    with pytest.raises(DataError, match=r"train\.txt: no such list; there are val"):
        load_saliency(root, split="train")
    with pytest.raises(DataError, match=r"did you mean .*VOC2012"):
        load_saliency(tmp_path, "voc")
    (root / "SegmentationObject" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png: no such file, but .*val\.txt lists it"):
        load_saliency(root)
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")
    with pytest.raises(DataError, match="the list is empty"):
        load_saliency(root)


def write_davis(root: Path, frames: int = 3) -> Path:
    for name in ("dog", "cat"):
        for index in range(frames):
            write_image(root / "JPEGImages" / "480p" / name / f"{index:05d}.jpg")
            write_mask(root / "Annotations" / "480p" / name / f"{index:05d}.png", disc())
    lists = root / "ImageSets" / "2016"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("dog\ncat\n")
    return root


def test_davis_frames(tmp_path: Path):
    root = write_davis(tmp_path)
    assert detect_layout(root) == "davis"
    images = load_saliency(root)
    assert [image.name for image in images[:4]] == ["dog/00000", "dog/00001", "dog/00002", "cat/00000"]
    np.testing.assert_array_equal(images[0].read()[1], disc(1))
    assert {image.name.split("/")[0] for image in load_saliency(root, sequences=["cat"])} == {"cat"}
    (root / "Annotations" / "480p" / "cat" / "00002.png").unlink()
    with pytest.raises(DataError, match=r"cat/00002\.jpg: no mask"):
        load_saliency(root)


def test_sequences_belong_to_davis(tmp_path: Path):
    with pytest.raises(DataError, match="no DAVIS tree"):
        load_saliency(write_pairs(tmp_path), sequences=["dog"])


def test_ids_are_read_as_they_are(tmp_path: Path):
    write_pairs(tmp_path, names="a")
    write_mask(tmp_path / "masks" / "a.png", disc(7))
    image = MaskedImage("a", tmp_path / "images" / "a.jpg", tmp_path / "masks" / "a.png", has_ids=True)
    assert sorted(np.unique(image.read()[1])) == [0, 7]


def test_frames_of_a_davis_tree_name_their_video():
    frames = load_saliency(sample_data().davis, year=2017)
    assert {frame.video for frame in frames} == {frame.name.split("/")[0] for frame in frames}
    assert len({frame.video for frame in frames}) < len(frames)
