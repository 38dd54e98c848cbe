"""Pairs with keypoints: four layouts read alike, and what cannot be used is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import DataError
from data.keypoints import load_pairs
from data.sample.points import sample_pairs
from data.sample.render import Sprite, body_points, draw_sprite, marks, pose

SIZES = {"one": (40, 30), "two": (24, 36)}  # width, height


def write_image(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def spair_pair() -> dict:
    return {
        "filename": "000001-one-two:cat",
        "src_imname": "one.jpg",
        "trg_imname": "two.jpg",
        "src_imsize": [40, 30, 3],
        "trg_imsize": [24, 36, 3],
        "src_bndbox": [1, 1, 30, 20],
        "trg_bndbox": [2, 3, 12, 33],
        "category": "cat",
        "viewpoint_variation": 1,
        "scale_variation": 2,
        "kps_ids": ["0", "7"],
        "src_kps": [[3, 4], [10, 20]],
        "trg_kps": [[5, 6], [11, 30]],
    }


def spair(root: Path, change: Callable[[dict], object] = lambda pair: None) -> Path:
    """A tree with one pair."""
    pair = spair_pair()
    change(pair)
    for name, size in SIZES.items():
        write_image(root / "JPEGImages" / "cat" / f"{name}.jpg", size)
        write_json(root / "ImageAnnotation" / "cat" / f"{name}.json", {"filename": f"{name}.jpg", "category": "cat"})
    write_json(root / "PairAnnotation" / "test" / f"{pair['filename']}.json", pair)
    return root


def ap10k(root: Path) -> Path:
    """The same pair as GeoAware-SC writes AP-10K; point 1 is seen in one image only."""
    points = {"one": [3, 4, 2, 9, 9, 1, 10, 20, 1], "two": [5, 6, 1, 0, 0, 0, 11, 30, 2]}
    boxes = {"one": [1, 1, 29, 19], "two": [2, 3, 10, 30]}
    for name, (width, height) in SIZES.items():
        write_image(root / "JPEGImages" / "Felidae" / "cat" / f"{name}.jpg", (width, height))
        write_json(
            root / "ImageAnnotation" / "Felidae" / "cat" / f"{name}.json",
            {"keypoints": points[name], "bbox": boxes[name], "width": width, "height": height},
        )
    paths = {
        f"{end}_json_path": f"data/ap-10k/ImageAnnotation/Felidae/cat/{name}.json"
        for end, name in (("src", "one"), ("trg", "two"))
    }
    write_json(root / "PairAnnotation" / "test" / "000001-one-two:cat.json", paths)
    return root


def pfpascal(root: Path) -> Path:
    for name, size in SIZES.items():
        write_image(root / "JPEGImages" / f"{name}.jpg", size)
    names = [f"PF-dataset-PASCAL/JPEGImages/{name}.jpg" for name in SIZES]
    line = ",".join([*names, "8", "3;10;nan", "4;20;nan", "5;11;1", "6;30;1"])
    (root / "test_pairs_pf_pascal.csv").write_text(f"source_image,target_image,class,XA,YA,XB,YB\n{line}\n")
    return root


def pfwillow(root: Path) -> Path:
    for name, size in SIZES.items():
        write_image(root / "duck(S)" / f"{name}.png", size)
    names = [f"PF-dataset/duck(S)/{name}.png" for name in SIZES]
    columns = [3, *[10] * 9, 4, *[20] * 9, 5, *[11] * 9, 6, *[30] * 9]
    (root / "test_pairs.csv").write_text(f"a,b\n{','.join([*names, *map(str, columns)])}\n")
    return root


@pytest.mark.parametrize(
    ("make", "category", "limit"),
    [(spair, "cat", 30), (ap10k, "cat", 30), (pfpascal, "cat", 36), (pfwillow, "duck(S)", 24)],
)
def test_four_layouts_are_read_alike(make: Callable[[Path], Path], category: str, limit: float, tmp_path: Path):
    (pair,) = load_pairs(make(tmp_path))
    assert (pair.category, pair.limit) == (category, limit)
    assert pair.source_points[:2] == ((3, 4), (10, 20))
    assert pair.target_points[:2] == ((5, 6), (11, 30))
    assert (pair.source_size, pair.target_size) == ((30, 40), (36, 24))
    assert pair.source.is_file()
    assert len(pair.point_ids) == len(pair.source_points) == len(pair.target_points)


def test_levels_and_names_of_points(tmp_path: Path):
    (pair,) = load_pairs(spair(tmp_path / "spair"))
    assert (pair.viewpoint, pair.scale, pair.point_ids) == (1, 2, ("0", "7"))
    (pair,) = load_pairs(ap10k(tmp_path / "ap10k"))
    assert pair.point_ids == ("0", "2"), "only the points that both images have"
    assert pair.viewpoint is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda pair: pair["trg_kps"].__setitem__(0, [5, 37]), r"two\.jpg: keypoint 0 .* outside the image of 24x36"),
        (lambda pair: pair["src_kps"].__setitem__(1, [-1, 2]), r"one\.jpg: keypoint 7 .* outside"),
        (lambda pair: pair.update(category="dog"), "the category is 'dog', but its name says 'cat'"),
        (lambda pair: pair.update(trg_imname="three.jpg"), r"three\.jpg is no image of 'cat'"),
        (lambda pair: pair["src_kps"].pop(), "1 and 2 points"),
        (lambda pair: pair.update(src_kps="none"), "expected list under 'src_kps'"),
        (lambda pair: pair.update(trg_kps=[[5, 6], ["a", 1]]), "expected 2 numbers"),
        (lambda pair: pair.update(trg_bndbox=[5, 5, 5, 9]), "expected left < right"),
        (lambda pair: pair.update(viewpoint_variation=7), "expected 0, 1 or 2"),
        (lambda pair: pair.update(trg_imsize=[25, 36, 3]), "the annotation of pair .* says"),
        (lambda pair: pair.update(src_kps=[], trg_kps=[], kps_ids=[]), "no pair with a common point"),
    ],
)
def test_what_cannot_be_used_is_refused(change: Callable[[dict], object], message: str, tmp_path: Path):
    with pytest.raises(DataError, match=message):
        load_pairs(spair(tmp_path, change))


@pytest.mark.parametrize(
    ("make", "file", "old", "new"),
    [
        (ap10k, "ImageAnnotation/Felidae/cat/two.json", "[5, 6, 1,", "[5, 37, 1,"),
        (pfpascal, "test_pairs_pf_pascal.csv", "5;11;1", "25;11;1"),
        (pfwillow, "test_pairs.csv", ",4,20,", ",31,20,"),
    ],
)
def test_a_point_outside_its_image_is_refused_in_every_layout(
    make: Callable[[Path], Path], file: str, old: str, new: str, tmp_path: Path
):
    root = make(tmp_path)
    text = (root / file).read_text()
    assert text.count(old) == 1
    (root / file).write_text(text.replace(old, new))
    with pytest.raises(DataError, match=r"(one|two)\.(jpg|png): keypoint .* outside the image of \d+x\d+"):
        load_pairs(root)


def test_a_pair_across_categories_is_refused(tmp_path: Path):
    root = spair(tmp_path)
    write_json(root / "ImageAnnotation" / "cat" / "two.json", {"filename": "two.jpg", "category": "dog"})
    with pytest.raises(DataError, match=r"a pair of the category 'cat', but .*two\.json says 'dog'"):
        load_pairs(root)
    root = pfwillow(tmp_path / "willow")
    listed = root / "test_pairs.csv"
    write_image(root / "car(G)" / "two.png", SIZES["two"])
    listed.write_text(listed.read_text().replace("duck(S)/two", "car(G)/two"))
    with pytest.raises(DataError, match=r"images of 'duck\(S\)' and 'car\(G\)'"):
        load_pairs(root)


def test_other_refusals(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        load_pairs(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="none of the layouts"):
        load_pairs(tmp_path / "empty")
    root = spair(tmp_path / "spair")
    with pytest.raises(DataError, match="splits: test"):
        load_pairs(root, split="val")
    with pytest.raises(DataError, match="no category 'cow'"):
        load_pairs(root, categories=["cow"])
    (root / "JPEGImages" / "cat" / "two.jpg").unlink()
    with pytest.raises(DataError, match="no such image"):
        load_pairs(root)
    root = pfpascal(tmp_path / "pascal")
    listed = root / "test_pairs_pf_pascal.csv"
    listed.write_text(listed.read_text().replace(",8,", ",21,"))
    with pytest.raises(DataError, match="class '21'; expected 1 to 20"):
        load_pairs(root)
    listed.write_text(listed.read_text().replace("PASCAL/JPEGImages", "PASCAL/../..").replace(",21,", ",8,"))
    with pytest.raises(DataError, match="leaves the folder"):
        load_pairs(root)


# --- The embedded pairs ---


def test_embedded_pairs_are_whole():
    pairs = load_pairs(sample_pairs())
    assert len(pairs) == 60
    assert len({pair.category for pair in pairs}) == 10
    assert {pair.viewpoint for pair in pairs} == {pair.scale for pair in pairs} == {0, 1, 2}
    counts = [len(pair.source_points) for pair in pairs]
    assert min(counts) >= 3
    assert max(counts) == 9
    assert min(counts) < 9, "some points lie outside their image"


def test_points_of_the_body_are_where_they_are_drawn():
    """A sprite with one white spot on its surface: the spot's middle is where the point is said to be."""
    surface = np.zeros((181, 181, 3), np.float32)
    template = Sprite(surface, "flower", 60.0, (0.05, 0.03), 6.0, 0.7, 1.3)
    for number, (u, v) in enumerate(marks(template)):
        spotted = surface.copy()
        rows, columns = np.mgrid[:181, :181] - 90.0
        spotted[np.hypot(columns - u, rows - v) < 4] = 1
        canvas = np.zeros((200, 220, 3), np.float32)
        placed = pose(105.3, 98.8, 0.4, 1.1)
        sprite = Sprite(spotted, "flower", 60.0, (0.05, 0.03), 6.0, 0.7, 1.3)
        mask = draw_sprite(canvas, sprite, placed, 0.3)
        (x, y) = body_points(sprite, placed, np.array([[u, v]]), 0.3)[0]
        bright = np.argwhere(canvas[..., 0] > 0.4 * canvas.max())
        assert np.abs(bright.mean(axis=0) - [y, x]).max() < 1, number
        assert mask[round(y), round(x)]
