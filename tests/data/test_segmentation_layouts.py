"""Every layout of images with a class for every pixel: read as it ships, refused when it cannot be meant."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import DataError
from data.masks import write_mask
from data.segmentation import VOID, count_classes
from data.segmentation_layouts import (
    COCO_COARSE,
    COCO_STUFF,
    COCO_THINGS,
    LabeledList,
    layout_of,
    open_labeled,
)
from tests.data.test_segmentation import halves, make_tree


def add(root: Path, image: str, mask: str, ids: np.ndarray, size: tuple[int, int] = (60, 40)) -> None:
    (root / image).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 90, 90)).save(root / image)
    write_mask(root / mask, ids)


def ade20k(root: Path) -> None:
    add(root, "images/training/ADE_train_1.jpg", "annotations/training/ADE_train_1.png", halves(0, 3))
    add(root, "images/validation/ADE_val_1.jpg", "annotations/validation/ADE_val_1.png", halves(150, 1))


def cityscapes(root: Path) -> None:
    for split, ids in (("train", halves(7, 1)), ("val", halves(33, 26))):
        name = f"{split}/aachen/aachen_000000_000019"
        add(root, f"leftImg8bit/{name}_leftImg8bit.png", f"gtFine/{name}_gtFine_labelIds.png", ids)


def coco(root: Path) -> None:
    for split, ids in (("train2017", halves(0, 105)), ("val2017", halves(181, VOID))):
        add(root, f"{split}/000000000009.jpg", f"stuffthingmaps/{split}/000000000009.png", ids)


def camvid(root: Path) -> None:
    for split, ids in (("train", halves(0, 10)), ("val", halves(3, 11))):
        add(root, f"{split}/0001TP_006690.png", f"{split}annot/0001TP_006690.png", ids)


def folder(root: Path) -> None:
    for split in ("train", "val"):
        add(root, f"images/{split}/a/b.c.jpg", f"masks/{split}/a/b.c.png", halves(0, 2))


def folder_of_splits(root: Path) -> None:
    for split in ("train", "val"):
        add(root, f"{split}/images/a.jpg", f"{split}/labels/a.png", halves(0, 2))


def values(listed: LabeledList) -> list[set[int]]:
    return [set(np.unique(pair.read()[1]).tolist()) for pair in listed.pairs]


@pytest.mark.parametrize(
    ("make", "layout", "train", "val", "classes"),
    [
        (ade20k, "ade20k", {0, 3}, {150, 1}, 151),
        (cityscapes, "cityscapes", {0, VOID}, {18, 13}, 19),
        (coco, "coco", {0, 105}, {181, VOID}, 182),
        (camvid, "camvid", {0, 10}, {3, VOID}, 11),
        (folder, "folder", {0, 2}, {0, 2}, None),
        (folder_of_splits, "folder", {0, 2}, {0, 2}, None),
    ],
)
def test_layouts(tmp_path: Path, make: Callable, layout: str, train: set[int], val: set[int], classes: int | None):
    make(tmp_path)
    assert layout_of(tmp_path) == layout
    for split, expected in (("train", train), ("val", val)):
        listed = open_labeled(tmp_path, split)
        assert values(listed) == [expected]
        assert (listed.class_names is None) if classes is None else (len(listed.class_names or ()) == classes)
    with pytest.raises(DataError, match="test"):
        open_labeled(tmp_path, "test")


def test_the_zero_of_ade20k_is_a_class_or_void(tmp_path: Path):
    ade20k(tmp_path)
    kept, reduced = (open_labeled(tmp_path, "train", zero_is_void=flag) for flag in (False, True))
    assert (kept.has_other, reduced.has_other) == (True, False)
    assert values(reduced) == [{VOID, 2}]
    assert len(reduced.class_names or ()) == 150
    assert (kept.class_names or ())[3] == (reduced.class_names or ())[2]


def test_supercategories_of_coco(tmp_path: Path):
    """182 ids; one of each kind by its name in COCO's label list."""
    assert len(COCO_COARSE) == 182
    names = COCO_THINGS + COCO_STUFF
    known = {0: "person", 2: "vehicle", 17: "animal", 43: "kitchen", 61: "furniture", 71: "electronic", 89: "indoor"}
    stuff = {94: "building", 101: "ceiling", 105: "sky", 120: "food-stuff", 154: "water", 168: "plant", 179: "window"}
    assert {index: names[COCO_COARSE[index]] for index in known | stuff} == known | stuff
    assert sorted(set(COCO_COARSE[:91])) == list(range(12))
    assert sorted(set(COCO_COARSE[91:])) == list(range(12, 27))
    coco(tmp_path)
    assert values(open_labeled(tmp_path, "train", classes="things")) == [{9, VOID}]
    assert values(open_labeled(tmp_path, "train", classes="stuff")) == [{11, VOID}]
    assert values(open_labeled(tmp_path, "train", classes="coarse")) == [{9, 23}]


def test_training_ids_of_cityscapes_are_taken_where_they_are(tmp_path: Path):
    cityscapes(tmp_path)
    name = "train/aachen/aachen_000000_000019_gtFine_labelTrainIds.png"
    write_mask(tmp_path / "gtFine" / name, halves(5, VOID))
    assert values(open_labeled(tmp_path, "train")) == [{5, VOID}]


def test_augmented_lists_of_voc_have_their_own_masks(tmp_path: Path):
    root = make_tree(tmp_path, {"trainaug": {"a": halves(0, 1)}})
    write_mask(root / "SegmentationClassAug" / "a.png", halves(0, 4))
    assert values(open_labeled(root, "trainaug")) == [{0, 4}]


def test_refusals(tmp_path: Path):
    with pytest.raises(DataError, match="in no layout that is known"):
        open_labeled(tmp_path, "train")
    folder(tmp_path)
    (tmp_path / "masks" / "val" / "a" / "b.c.png").unlink()
    with pytest.raises(DataError, match=r"b\.c\.png: no such file, but there is .*every image needs its mask"):
        open_labeled(tmp_path, "val")
    add(tmp_path, "images/train/b.c.jpg", "masks/train/b.c.png", halves(0, 1))
    with pytest.raises(DataError, match="two images of one name"):
        open_labeled(tmp_path, "train")


def test_a_mask_of_another_size_or_with_other_ids_is_refused(tmp_path: Path):
    camvid(tmp_path)
    write_mask(tmp_path / "trainannot" / "0001TP_006690.png", halves(0, 31))
    with pytest.raises(DataError, match=r"id 31, expected 0 to 11"):
        open_labeled(tmp_path, "train").pairs[0].read()
    write_mask(tmp_path / "trainannot" / "0001TP_006690.png", halves(0, 1, (20, 30)))
    with pytest.raises(DataError, match="a mask must have the size of its image"):
        open_labeled(tmp_path, "train").pairs[0].read()


def counting(objects: int) -> np.ndarray:
    ids = np.zeros((40, 60), np.uint8)
    for index in range(objects):
        ids[:, 8 * index : 8 * index + 4] = index + 1
    return ids


def test_masks_of_objects_are_refused(tmp_path: Path):
    objects = {f"a{count}": counting(count) for count in (1, 2, 3, 5, 2, 1)}
    pairs = open_labeled(make_tree(tmp_path / "a", {"train": objects}), "train").pairs
    with pytest.raises(DataError, match="these are masks of objects"):
        count_classes(pairs, [])
    classes = {**objects, "b": halves(0, 3)}
    pairs = open_labeled(make_tree(tmp_path / "b", {"train": classes}), "train").pairs
    assert count_classes(pairs, []) == 6
