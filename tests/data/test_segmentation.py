"""VOC segmentation trees: read as they ship, refused when they cannot be meant."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import DataError
from data.masks import write_mask
from data.segmentation import embedded_segmentation, load_voc_class_masks


def make_tree(root: Path, masks: dict[str, dict[str, np.ndarray]]) -> Path:
    """split -> name -> ids; pictures are the ids in grey, so that they can be learned."""
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (root / "JPEGImages").mkdir()
    for split, pairs in masks.items():
        (lists / f"{split}.txt").write_text("\n".join(pairs) + "\n")
        for name, ids in pairs.items():
            write_mask(root / "SegmentationClass" / f"{name}.png", ids)
            grey = np.where(ids == 255, 128, ids * 60).astype(np.uint8)
            Image.fromarray(grey).convert("RGB").save(root / "JPEGImages" / f"{name}.jpg", quality=95)
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


def test_embedded_pairs_are_split_and_binary():
    from data.sample import sample_data

    train, val = embedded_segmentation(sample_data())
    assert (len(train), len(val)) == (40, 20)
    assert set(np.unique(train[0].read_ids())) == {0, 1}
    assert not {pair.name for pair in train} & {pair.name for pair in val}
