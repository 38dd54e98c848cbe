"""VOC segmentation trees: read as they ship, refused when they cannot be meant."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import DataError
from data.masks import write_mask
from data.segmentation import (
    VOC_CLASSES,
    VOID,
    class_names,
    count_classes,
    embedded_segmentation,
    load_voc_class_masks,
)


def make_tree(root: Path, masks: dict[str, dict[str, np.ndarray]]) -> Path:
    """split -> name -> ids; pictures are the ids in gray, so that they can be learned."""
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    for split, pairs in masks.items():
        (lists / f"{split}.txt").write_text("\n".join(pairs) + "\n")
        for name, ids in pairs.items():
            write_mask(root / "SegmentationClass" / f"{name}.png", ids)
            gray = np.where(ids == 255, 128, ids * 60).astype(np.uint8)
            Image.fromarray(gray).convert("RGB").save(root / "JPEGImages" / f"{name}.jpg", quality=95)
    return root


def halves(left: int, right: int, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    ids = np.full(size, left, np.uint8)
    ids[:, size[1] // 2 :] = right
    return ids


def test_pairs_come_in_the_order_of_the_list(tmp_path: Path):
    root = make_tree(tmp_path / "voc", {"val": {"b": halves(0, 1), "a": halves(2, 255)}})
    pairs = load_voc_class_masks(root, "val")
    assert [pair.name for pair in pairs] == ["b", "a"]
    picture, ids = pairs[1].read()
    assert picture.size == (60, 40)
    assert set(np.unique(ids)) == {2, 255}


def test_what_is_missing_is_named(tmp_path: Path):
    root = make_tree(tmp_path / "voc", {"val": {"a": halves(0, 1)}})
    with pytest.raises(DataError, match=r"train\.txt: no such list; there are val"):
        load_voc_class_masks(root, "train")
    with pytest.raises(DataError, match="no such folder"):
        load_voc_class_masks(tmp_path / "other", "val")
    (root / "SegmentationClass" / "a.png").unlink()
    with pytest.raises(DataError, match=r"a\.png: no such file"):
        load_voc_class_masks(root, "val")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("\n")
    with pytest.raises(DataError, match="the list is empty"):
        load_voc_class_masks(root, "val")


@pytest.mark.parametrize("name", ["../../outside", "..", "/etc/passwd", "a\\b"])
def test_a_list_may_not_name_paths(tmp_path: Path, name: str):
    root = make_tree(tmp_path / "voc", {"val": {"a": halves(0, 1)}})
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text(f"a\n{name}\n")
    with pytest.raises(DataError, match="is a path"):
        load_voc_class_masks(root, "val")


def test_mask_of_another_size_is_refused(tmp_path: Path):
    root = make_tree(tmp_path / "voc", {"val": {"a": halves(0, 1)}})
    write_mask(root / "SegmentationClass" / "a.png", halves(0, 1, (20, 20)))
    with pytest.raises(DataError, match="20x20 pixels"):
        load_voc_class_masks(root, "val")[0].read()


def thing(ground: int, value: int, size: tuple[int, int] = (40, 60)) -> np.ndarray:
    ids = np.full(size, ground, np.uint8)
    ids[10:30, 20:50] = value
    return ids


def test_classes_are_counted_by_the_highest_id(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    root = make_tree(tmp_path / "voc", {"train": {"a": thing(0, 1), "b": thing(2, 255)}, "val": {"c": thing(0, 1)}})
    train, val = (load_voc_class_masks(root, split) for split in ("train", "val"))
    assert count_classes(train, val) == 3
    assert caplog.messages == []
    with pytest.raises(DataError, match=r"b\.png: class id 2, but the training masks have none above 1"):
        count_classes(val, train)
    with pytest.raises(DataError, match="one class only"):
        count_classes(load(root, thing(0, 0)), val)


def load(root: Path, ids: np.ndarray) -> list:
    """The pairs of a tree whose only training mask has these ids."""
    write_mask(root / "SegmentationClass" / "a.png", ids)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    return load_voc_class_masks(root, "train")


@pytest.mark.parametrize("speck", [0, 1, 5], ids="{} pixels of class 1".format)
def test_masks_of_0_and_255_are_refused_with_what_to_do(speck: int, tmp_path: Path):
    ids = thing(0, 255)
    ids[0, :speck] = 1
    train = load(make_tree(tmp_path / "voc", {"train": {"a": ids}}), ids)
    with pytest.raises(DataError, match=r"0 or 255 .*255 is void here.*If 255 is the object, save it as 1"):
        count_classes(train, train)


def test_void_borders_and_scribbles_are_no_such_masks(tmp_path: Path):
    scribbles = np.full((40, 60), VOID, np.uint8)
    scribbles[3, 3:20], scribbles[30, 5:20] = 0, 1
    for ids in (scribbles, np.where(thing(0, 1) > 0, 1, thing(0, 255, (40, 60)))):
        train = load(make_tree(tmp_path / str(ids.sum()), {"train": {"a": ids}}), ids)
        assert count_classes(train, train) == 2


def test_ids_of_no_pixel_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    ids = thing(1, 20)
    train = load(make_tree(tmp_path / "voc", {"train": {"a": ids}}), ids)
    assert count_classes(train, train) == 21
    assert "of the ids 0 to 20 the training masks have 2; 19 are of no pixel" in caplog.text
    assert class_names(train, 21)[1] == "class 1", "as many classes as VOC, and other images"


def test_images_named_as_vocs_have_its_names(tmp_path: Path):
    root = make_tree(tmp_path / "voc", {"train": {"2007_000032": thing(0, 20)}})
    assert class_names(load_voc_class_masks(root, "train"), 21) == VOC_CLASSES


@pytest.mark.parametrize("convert", [np.uint16, "gray RGB"])
def test_ids_in_16_bits_or_three_equal_channels(convert: object, tmp_path: Path):
    ids = thing(0, 3)
    train = load(make_tree(tmp_path / "voc", {"train": {"a": ids}}), ids)
    stored = np.repeat(ids[..., None], 3, axis=2) if convert == "gray RGB" else ids.astype(np.uint16)
    Image.fromarray(stored).save(train[0].mask)
    np.testing.assert_array_equal(train[0].read()[1], ids)


def test_masks_of_colors_get_advice_for_this_task(tmp_path: Path):
    ids = thing(0, 3)
    train = load(make_tree(tmp_path / "voc", {"train": {"a": ids}}), ids)
    Image.open(train[0].mask).convert("RGB").save(train[0].mask)
    with pytest.raises(DataError, match=r"Colors are not ids: .* the id of its class \(0, 1, 2, \.\.\.") as error:
        train[0].read()
    assert "year" not in str(error.value)


@pytest.mark.parametrize("ending", [".JPG", ".jpeg", ".png"])
@pytest.mark.parametrize("listed", ["a", "a.jpg", "a.png"])
def test_pictures_of_any_ending_and_names_with_one(ending: str, listed: str, tmp_path: Path):
    root = make_tree(tmp_path / "voc", {"train": {"a": thing(0, 1)}})
    (root / "JPEGImages" / "a.jpg").rename(root / "JPEGImages" / f"a{ending}")
    (root / "SegmentationClass" / "a.png").rename(root / "SegmentationClass" / "a.PNG")
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text(listed, encoding="utf-8-sig")
    (pair,) = load_voc_class_masks(root, "train")
    assert (pair.name, pair.image.name, pair.mask.name) == ("a", f"a{ending}", "a.PNG")


def test_jpeg_masks_are_named_and_not_read(tmp_path: Path):
    root = make_tree(tmp_path / "voc", {"train": {"a": thing(0, 1)}})
    (root / "SegmentationClass" / "a.png").rename(root / "SegmentationClass" / "a.jpg")
    with pytest.raises(DataError, match=r"a\.png: no such file, .* found JPEGImages/a\.jpg, SegmentationClass/a\.jpg"):
        load_voc_class_masks(root, "train")


def test_embedded_pairs_are_split_and_binary():
    from data.sample import sample_data

    train, val = embedded_segmentation(sample_data())
    assert (len(train), len(val)) == (40, 20)
    assert set(np.unique(train[0].read_ids())) == {0, 1}
    assert not {pair.name for pair in train} & {pair.name for pair in val}
