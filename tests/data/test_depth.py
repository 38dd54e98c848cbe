"""Depth sets: read as they ship, refused when their unit cannot be meant; the embedded rooms."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import DataError, notices
from data.depth import KB_FRAME, DepthPair, check_unit, depth_set, layout_of, open_depth
from data.sample.depth import SIZE, TRAIN, VAL, depth_pair, depth_root


def image(path: Path, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 90, 90)).save(path)


def stored(path: Path, value: float, size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size[::-1], value, np.uint16)).save(path)


def nyu(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    lines = {
        "train": ["/study/b.jpg /study/b.png 518.8", "/study/a.jpg /study/a.png 518.8"],
        "test": ["c.jpg c.png 518.8"],
    }
    for split, names in lines.items():
        (root / f"nyu_{split}.txt").write_text("\n".join(names) + "\n")
        for line in names:
            pictures, depths, _ = line.split()
            image(root / pictures.lstrip("/"))
            stored(root / depths.lstrip("/"), 2500)
    return root


def test_nyu_is_in_millimeters_in_the_order_of_its_sorted_lines(tmp_path: Path):
    nyu(tmp_path)
    assert layout_of(tmp_path) == "nyu"
    with notices.captured() as lines:
        pairs = open_depth(tmp_path, "train")
    assert [pair.name for pair in pairs] == ["study/a.jpg", "study/b.jpg"]
    picture, depth = pairs[0].read()
    assert (picture.size, depth.shape, depth.dtype) == ((40, 30), (30, 40), np.float32)
    assert depth.min() == depth.max() == 2.5
    assert any(
        "2 images, where BTS's train list has 24231" in line and "train split is of another copy" in line
        for line in lines
    )
    with pytest.raises(DataError, match=r"nyu_val\.txt: no such list; .* there are nyu_test\.txt, nyu_train\.txt"):
        open_depth(tmp_path, "val")
    (tmp_path / "c.png").unlink()
    with pytest.raises(DataError, match=r"c\.png: no such file, but the list names it"):
        open_depth(tmp_path, "test")


def test_kitti(tmp_path: Path):
    image(tmp_path / "input" / "drive" / "1.png")
    stored(tmp_path / "gt_depth" / "sync" / "1.png", 5120)
    (tmp_path / "kitti_eigen_test.txt").write_text("drive/1.png sync/1.png 721.5\ndrive/2.png None 721.5\n")
    with notices.captured() as lines:
        (pair,) = open_depth(tmp_path, "test")
    assert pair.read()[1].max() == 20.0
    assert any("1 images without depth are left out" in line for line in lines)
    assert depth_set("kitti", 23_158 * [pair], 652 * [pair]) == "KITTI Eigen"
    assert depth_set("kitti", 23_158 * [pair], 697 * [pair]) is None
    assert depth_set("nyu", 24_231 * [pair], 654 * [pair]) == "NYUv2"
    assert depth_set("folder", 24_231 * [pair], 654 * [pair]) is None


def test_the_frame_of_kitti_is_the_lowest_rows_and_middle_columns(tmp_path: Path):
    size = (1241, 376)
    picture, depth = np.zeros((*size[::-1], 3), np.uint8), np.zeros(size[::-1], np.uint16)
    picture[24:, 12:1228] = 200
    depth[24:, 12:1228] = np.arange(1216) + 256
    Image.fromarray(picture).save(tmp_path / "1.png")
    Image.fromarray(depth).save(tmp_path / "d.png")
    pair = DepthPair("1", tmp_path / "1.png", tmp_path / "d.png", 256.0, KB_FRAME)
    framed, meters = pair.read()
    assert (framed.size, meters.shape) == ((1216, 352), (352, 1216))
    assert np.asarray(framed).min() == 200
    np.testing.assert_array_equal(meters, np.broadcast_to((np.arange(1216) + 256) / np.float32(256), (352, 1216)))
    image(tmp_path / "1.png", (1215, 376))
    stored(tmp_path / "d.png", 512, (1215, 376))
    with pytest.raises(DataError, match=r"376x1215 pixels .*; expected at least 352x1216"):
        pair.read()


@pytest.mark.parametrize("ending", [".png", ".npy", ".tif"])
def test_folders_of_images_and_maps(tmp_path: Path, ending: str):
    image(tmp_path / "images" / "val" / "x" / "a.jpg")
    path = tmp_path / "depth" / "val" / "x" / f"a{ending}"
    path.parent.mkdir(parents=True)
    meters = np.full((30, 40), 3.25, np.float32)
    meters[0, 0] = np.nan
    if ending == ".png":
        stored(path, 3250)
    elif ending == ".npy":
        np.save(path, meters)
    else:
        Image.fromarray(meters).save(path)
    (pair,) = open_depth(tmp_path, "val")
    assert np.median(pair.read()[1]) == pytest.approx(3.25)
    assert np.isfinite(pair.read()[1]).all()
    assert pair.name == "x/a"
    with pytest.raises(DataError, match="no such split; expected images/train with depth/train"):
        open_depth(tmp_path, "train")


def test_a_wrong_unit_is_refused_with_the_median(tmp_path: Path):
    image(tmp_path / "images" / "val" / "a.jpg")
    path = tmp_path / "depth" / "val" / "a.npy"
    path.parent.mkdir(parents=True)
    np.save(path, np.full((30, 40), 2500.0, np.float32))
    with pytest.raises(DataError, match=r"the median depth is 2500 m, above the highest of 10 m.* --unit 1000"):
        check_unit(open_depth(tmp_path, "val"), 10.0)
    check_unit(open_depth(tmp_path, "val", unit=1000.0), 10.0)
    path.unlink()
    stored(path.with_suffix(".png"), 3)
    with pytest.raises(DataError, match=r"the median depth is 0\.003 m.* \(median then 3 m\), give --unit 1"):
        check_unit(open_depth(tmp_path, "val"), 10.0)
    stored(path.with_suffix(".png"), 0)
    with pytest.raises(DataError, match="no value above 0"):
        check_unit(open_depth(tmp_path, "val"), 10.0)


def test_maps_that_are_none_are_refused(tmp_path: Path):
    image(tmp_path / "images" / "val" / "a.jpg")
    path = tmp_path / "depth" / "val" / "a.png"
    stored(path, 2500, (20, 30))
    with pytest.raises(DataError, match=r"30x20 values .* 30x40; a depth map must have the size of its image"):
        open_depth(tmp_path, "val")[0].read()
    Image.new("L", (40, 30), 100).save(path)
    with pytest.raises(DataError, match="expected one channel of 16 bits or of floats"):
        open_depth(tmp_path, "val")[0].read()
    path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="unreadable depth map"):
        open_depth(tmp_path, "val")[0].read()
    path.unlink()
    with pytest.raises(DataError, match="every image needs its depth map"):
        open_depth(tmp_path, "val")


def test_embedded_rooms():
    """The floor comes nearer from row to row as a pinhole camera sees it; objects have one depth each."""
    root = depth_root()
    assert [len(open_depth(root, split)) for split in ("train", "val")] == [TRAIN, VAL]
    _, stored_depth = open_depth(root, "val")[3].read()
    picture, millimeters = depth_pair(np.random.default_rng([0, TRAIN + 3]))
    assert picture.shape == (*SIZE, 3)
    np.testing.assert_array_equal(np.round(1000 * stored_depth).astype(np.uint16), millimeters)
    floor = millimeters[-30:, 0].astype(float) / 1000
    inverse = 1 / floor
    if np.ptp(millimeters[-30:, 0]) > 0 and (np.diff(floor) < 0).all():
        np.testing.assert_allclose(np.diff(inverse), np.diff(inverse).mean(), atol=2e-3)
    values = [depth_pair(np.random.default_rng([9, index]))[1] for index in range(6)]
    assert all(0.85 < depth.min() / 1000 < 1.5 and 5.4 < depth.max() / 1000 < 9.1 for depth in values)
