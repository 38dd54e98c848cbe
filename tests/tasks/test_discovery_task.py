"""Object discovery from annotations to CorLoc: boxes against loops, every layout, export, and leaving images out."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO

from data import DataError
from data.known_sets import DISCOVERY_SETS
from dino_dense import Report
from tasks import RunOptions, get, main, run_one
from tasks.discovery import DiscoveryConfig, find_objects, open_images
from tasks.scores.boxes import box_iou, objects_found, risk_coverage
from tests.tasks.test_saliency_task import RANDOM, SIDE, RedGreenReader, picture, red_green_backbone, save

DISCOVERY = get("discovery")
RED_BOX, GREEN_BOX = (8, 8, 32, 32), (40, 40, 56, 56)


def run(data: Path, out: Path, **changes: object) -> Report:
    config = DiscoveryConfig(data=str(data), **changes)  # type: ignore[arg-type]
    return run_one(DISCOVERY, RunOptions(out=str(out)), config, backbone=red_green_backbone())


def values(report: Report) -> dict[str, float]:
    return {score.metric: score.value for score in report.scores}


def entry(box: tuple[int, ...], difficult: int = 0) -> str:
    x0, y0, x1, y1 = box
    return (
        f"<object><difficult>{difficult}</difficult><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin>"
        f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
    )


def write_voc(root: Path, boxes: dict[str, list[str]]) -> Path:
    """Images of a red and a green square with these annotations."""
    for name, entries in boxes.items():
        for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(green=True)[0]).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{''.join(entries)}</annotation>")
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("\n".join(boxes))
    return root


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    boxes = {"both": [entry(RED_BOX), entry(GREEN_BOX)], "green": [entry(GREEN_BOX)], "red": [entry(RED_BOX)]}
    return write_voc(tmp_path / "VOC", boxes)


# --- Scores ---


def naive_iou(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    pixels = [{(x, y) for x in range(x0, x1) for y in range(y0, y1)} for x0, y0, x1, y1 in (one, other)]
    return len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])


boxes = st.tuples(*[st.integers(0, 5)] * 2, *[st.integers(6, 10)] * 2) | st.tuples(
    *[st.integers(3, 7)] * 2, *[st.integers(8, 12)] * 2
)


@settings(deadline=None)
@given(boxes, st.lists(boxes, min_size=1, max_size=3))
def test_box_iou_is_the_naive_one(box: tuple[int, ...], others: list[tuple[int, ...]]):
    np.testing.assert_allclose(box_iou(box, others), [naive_iou(box, other) for other in others])


def test_no_box_hits_nothing():
    assert box_iou(None, [RED_BOX, GREEN_BOX]).tolist() == [0, 0]
    assert box_iou(RED_BOX, [(3, 3, 3, 3)]).tolist() == [0], "a box without area"
    assert objects_found([], [RED_BOX]) == 0
    assert objects_found([RED_BOX, RED_BOX], [RED_BOX, GREEN_BOX]) == 1
    assert objects_found([GREEN_BOX, RED_BOX], [RED_BOX, GREEN_BOX]) == 2


def test_half_is_a_hit():
    assert objects_found([(0, 0, 10, 5)], [(0, 0, 10, 10)]) == 1
    assert objects_found([(0, 0, 100, 49)], [(0, 0, 100, 100)]) == 0


def test_risk_coverage_answers_the_most_confident_first():
    images = pd.DataFrame({"confidence": np.arange(10) / 10, "CorLoc": [0.0] * 5 + [100.0] * 5})
    table = risk_coverage(images)
    assert table["coverage"].tolist() == list(range(10, 101, 10))
    assert table["images"].tolist() == list(range(1, 11))
    assert table["CorLoc"].iloc[[0, 4, 9]].tolist() == [100, 100, 50]
    assert table["confidence"].iloc[[0, 9]].tolist() == [0.9, 0.0]
    assert risk_coverage(images.head(1))["images"].tolist() == [1] * 10


# --- The task ---


@pytest.mark.parametrize(
    ("method", "found"), [("tokencut", "red"), ("lost", "green"), ("maskcut", "red"), ("attention", "red")]
)
def test_corloc_of_each_method(method: str, found: str, voc: Path, tmp_path: Path):
    """One box an image; it counts if it is around any of the objects."""
    report = run(voc, tmp_path / "out", method=method, head=0, mass=0.999)
    table = pd.read_csv(tmp_path / "out" / "images.csv").set_index("sample")
    hits = table["CorLoc"].to_dict()
    assert hits["both"] == 100
    assert [name for name in ("green", "red") if hits[name]] == [found]
    assert values(report)["CorLoc"] == pytest.approx(sum(hits.values()) / 3)
    assert table["confidence"].between(0, 1).all()
    coverage = pd.read_csv(tmp_path / "out" / "risk_coverage.csv")
    assert coverage["CorLoc"].iloc[-1] == pytest.approx(values(report)["CorLoc"])


@pytest.mark.parametrize("method", ["maskcut", "lost"])
def test_images_of_one_size_go_together_and_change_nothing(method: str, voc: Path, tmp_path: Path):
    tables = []
    for size in (1, 2):
        run(voc, tmp_path / str(size), method=method, batch_size=size)
        tables.append(pd.read_csv(tmp_path / str(size) / "images.csv"))
    pd.testing.assert_frame_equal(tables[1], tables[0], rtol=1e-5)


def test_maskcut_finds_more_than_one_object(voc: Path, tmp_path: Path):
    report = run(voc, tmp_path / "out", method="maskcut")
    table = pd.read_csv(tmp_path / "out" / "images.csv").set_index("sample")
    assert table.loc["both", ["objects", "boxes", "objects_found"]].tolist() == [2, 2, 2]
    assert "find 4 of 4 objects" in report.note
    assert "CRF" in report.note
    single = run(voc, tmp_path / "single", method="maskcut", masks=1)
    assert "find 2 of 4 objects" in single.note


def test_hard_objects(tmp_path: Path):
    root = write_voc(tmp_path / "VOC", {"a": [entry(RED_BOX, difficult=1), entry(GREEN_BOX)], "b": [entry(RED_BOX, 1)]})
    assert values(run(root, tmp_path / "all"))["CorLoc"] == 100
    report = run(root, tmp_path / "easy", no_hard=True)
    assert values(report)["CorLoc"] == 0
    assert report.scores[0].n == 1
    assert "without an object, which are left out: 1." in report.note


def test_images_are_padded_with_what_is_zero_after_normalization():
    reader = RedGreenReader()
    backbone = red_green_backbone(reader)
    backbone.mean = (0.1, 0.2, 0.3)
    rgb = picture(size=(61, 75))[0]
    (found,) = find_objects(backbone, rgb, DiscoveryConfig())
    seen = reader.seen[-1][0] + torch.tensor(backbone.mean).view(3, 1, 1)
    assert seen.shape == (3, 64, 80)
    np.testing.assert_allclose(seen[:, :61, :75], rgb.transpose(2, 0, 1) / 255, atol=1e-6)
    for part in (seen[:, 61:], seen[:, :, 75:]):
        torch.testing.assert_close(part, torch.tensor(backbone.mean).view(3, 1, 1).expand_as(part))
    assert found.mask.shape == (61, 75)
    assert found.box == RED_BOX


@pytest.mark.parametrize("changes", [{"short_side": 128}, {"squash": 128}])
def test_boxes_are_in_pixels_of_the_native_image(changes: dict[str, int]):
    rgb = picture(size=(SIDE, 2 * SIDE))[0]
    (found,) = find_objects(red_green_backbone(), rgb, DiscoveryConfig(**changes))
    assert found.box == pytest.approx(RED_BOX, abs=1)
    rows, columns = np.nonzero(found.mask)
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == pytest.approx(RED_BOX, abs=1)


def write_coco(root: Path) -> Path:
    images, annotations = [], []
    for number in (3, 5, 8):
        name = f"COCO_train2014_{number:012d}.jpg"
        (root / "train2014").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture()[0]).save(root / "train2014" / name, quality=95)
        images.append({"id": number, "file_name": name, "height": SIDE, "width": SIDE})
        if number != 8:
            entry = {"id": number, "image_id": number, "category_id": 7, "bbox": [8, 8, 24, 24], "iscrowd": 0}
            annotations.append(entry)
    record = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "thing"}]}
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2014.json").write_text(json.dumps(record))
    return root


def test_coco_and_its_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = write_coco(tmp_path / "coco")
    report = run(root, tmp_path / "out")
    assert values(report)["CorLoc"] == 100
    assert report.scores[0].n == 2, "an image without objects cannot be hit"
    chosen = tmp_path / "list.txt"
    chosen.write_text("COCO_train2014_000000000005.jpg\n")
    config = DiscoveryConfig(data=str(root), only=str(chosen))
    assert [image.number for image in open_images(config)[0]] == [5]
    known = replace(DISCOVERY_SETS["COCO20k"], images=1)
    monkeypatch.setitem(DISCOVERY_SETS, "COCO20k", known)
    assert open_images(config)[1].dataset is None, "images of one size were resized"
    monkeypatch.setattr("tasks.discovery.sizes_vary", lambda images: True)
    assert open_images(config)[1].dataset == "COCO20k"


def test_export_is_read_by_pycocotools(tmp_path: Path):
    root = write_coco(tmp_path / "coco")
    run(root, tmp_path / "out", export_coco=True)
    file = tmp_path / "out" / "coco.json"
    exported = COCO(str(file))
    assert sorted(exported.imgs) == [3, 5]
    (found,) = exported.loadAnns(exported.getAnnIds(imgIds=5))
    assert found["bbox"] == [8, 8, 24, 24]
    assert found["area"] == 24 * 24
    np.testing.assert_array_equal(exported.annToMask(found), picture()[1])
    truth = COCO(str(root / "annotations" / "instances_train2014.json"))
    results = [{**entry, "category_id": 7} for entry in exported.dataset["annotations"]]
    assert len(truth.loadRes(results).anns) == 2
    run(root, tmp_path / "without")
    assert not (tmp_path / "without" / "coco.json").exists()


def test_unsure_images_can_be_left_out(tmp_path: Path):
    """One with an object, one with two alike, one with nothing but a box in its annotation."""
    root = write_voc(tmp_path / "VOC", {name: [entry(RED_BOX)] for name in ("clear", "empty", "two")})
    for name, colors in {"clear": (True, False), "empty": (False, False)}.items():
        Image.fromarray(picture(*colors)[0]).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
    report = run(root, tmp_path / "all")
    table = pd.read_csv(tmp_path / "all" / "images.csv").set_index("sample")
    assert table["confidence"].idxmax() == "clear"
    assert table.loc["empty", ["confidence", "CorLoc", "Box-IoU", "boxes"]].tolist() == [0, 0, 0, 0]
    assert report.scores[0].n == 3
    sure = run(root, tmp_path / "sure", min_confidence=0.5)
    assert sure.scores[0].n == 1
    assert values(sure)["CorLoc"] == 100
    assert "2 of 3 images are left out" in sure.note
    assert len(pd.read_csv(tmp_path / "sure" / "images.csv")) == 3
    with pytest.raises(ValueError, match=r"min_confidence 1\.0 leaves out every image; their highest"):
        run(root, tmp_path / "none", min_confidence=1.0)
    assert not (tmp_path / "none").exists()


def test_boxes_of_masks(tmp_path: Path):
    image, ids = picture(green=True)
    save(tmp_path / "pairs", "a", image, 255 * (ids > 0).astype(np.uint8))
    (boxed,), facts, left_out = open_images(DiscoveryConfig(data=str(tmp_path / "pairs")))
    assert boxed.boxes == (RED_BOX, GREEN_BOX)
    assert (facts.n, left_out) == (1, 0)
    assert values(run(tmp_path / "pairs", tmp_path / "out"))["CorLoc"] == 100


def test_unusable_input_is_an_error_and_leaves_nothing(voc: Path, tmp_path: Path):
    for changes in ({"max_images": 0}, {"masks": 0}, {"min_confidence": 1.5}):
        name, value = next(iter(changes.items()))
        with pytest.raises(ValueError, match=f"{name} is {value}: expected"):
            DiscoveryConfig(**changes)
    (voc / "Annotations" / "red.xml").write_text("<annotation></annotation>")
    assert open_images(DiscoveryConfig(data=str(voc)))[2] == 1
    for path in (voc / "Annotations").iterdir():
        path.write_text("<annotation></annotation>")
    with pytest.raises(DataError, match="none of its 3 images has an object"):
        run(voc, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_line(voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--ckpt", RANDOM, "--data", str(voc), "--preset", "dinoseg", "--head", "mean", "--device", "cpu"]
    assert main("discovery", [*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "CorLoc" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out" / "overlays").iterdir()) == [
        "both.jpg",
        "green.jpg",
        "red.jpg",
    ]


def write_export(folder: Path) -> None:
    """A split as Roboflow exports it: pictures and _annotations.coco.json in one folder."""
    folder.mkdir(parents=True)
    Image.new("RGB", (30, 20)).save(folder / "a.jpg")
    entry = {"id": 1, "image_id": 0, "category_id": 1, "bbox": [2, 3, 10, 8], "iscrowd": 0}
    record = {"images": [{"id": 0, "file_name": "a.jpg"}], "annotations": [entry], "categories": []}
    (folder / "_annotations.coco.json").write_text(json.dumps(record))


def test_an_export_with_one_annotation_file_is_read_and_of_several_it_is_asked_which(tmp_path: Path):
    write_export(tmp_path / "train")
    for root in (tmp_path, tmp_path / "train"):
        images, facts, _ = open_images(DiscoveryConfig(data=str(root)))
        assert [(image.name, image.boxes) for image in images] == [("a", ((2, 3, 12, 11),))]
        assert facts.dataset is None
    write_export(tmp_path / "valid")
    with pytest.raises(
        DataError, match=r"--layout coco --annotations train/_annotations\.coco\.json or .*valid/_annot"
    ):
        open_images(DiscoveryConfig(data=str(tmp_path)))
    chosen = DiscoveryConfig(data=str(tmp_path), layout="coco", annotations="valid/_annotations.coco.json")
    assert open_images(chosen)[0][0].image == tmp_path / "valid" / "a.jpg"
