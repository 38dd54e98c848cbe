"""Boxes from VOC and COCO annotations and from masks, and annotations that cannot be used."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import DataError
from data.boxes import boxes_of_masks, load_coco_boxes, load_voc_boxes
from data.masks import write_mask
from data.saliency import MaskedImage, load_saliency
from tests.data.test_saliency import write_image, write_pairs

OBJECT = """<object><name>dog</name><truncated>{truncated}</truncated><difficult>{difficult}</difficult>
<bndbox><xmin>{xmin}</xmin><ymin>2</ymin><xmax>20</xmax><ymax>11</ymax></bndbox>
<part><name>head</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>6</xmax><ymax>6</ymax></bndbox></part></object>"""


def voc_object(xmin: object = 4, truncated: int = 0, difficult: int = 0) -> str:
    return OBJECT.format(xmin=xmin, truncated=truncated, difficult=difficult)


def write_voc(root: Path, annotations: dict[str, str]) -> Path:
    for name, text in annotations.items():
        write_image(root / "JPEGImages" / f"{name}.jpg")
        path = root / "Annotations" / f"{name}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("\n".join(annotations))
    return root


def annotation(*objects: str, head: str = "") -> str:
    return f"{head}<annotation><filename>a.jpg</filename>{''.join(objects)}</annotation>"


def test_voc_boxes_start_at_zero(tmp_path: Path):
    text = annotation(voc_object(), voc_object(1), head='<?xml version="1.0" encoding="ISO-8859-1"?>')
    (image,) = load_voc_boxes(write_voc(tmp_path, {"a": text}))
    assert image.boxes == ((3, 1, 20, 11), (0, 1, 20, 11)), "and parts are no objects"
    assert image.image.name == "a.jpg"


def test_hard_objects_can_be_left_out(tmp_path: Path):
    text = annotation(voc_object(1, truncated=1), voc_object(2, difficult=1), voc_object(3))
    root = write_voc(tmp_path, {"a": text})
    assert len(load_voc_boxes(root)[0].boxes) == 3
    assert load_voc_boxes(root, hard=False)[0].boxes == ((2, 1, 20, 11),)


BOMB = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]>'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(annotation(head=BOMB), "document type declaration", id="entities"),
        pytest.param("<annotation>", "not a readable XML", id="cut off"),
        pytest.param(annotation(voc_object("four")), "expected four numbers", id="not a number"),
        pytest.param(annotation("<object><name>a</name></object>"), "expected four numbers", id="no box"),
        pytest.param(annotation(voc_object(30)), "smaller ends first", id="ends in the wrong order"),
    ],
)
def test_bad_annotations_are_named(text: str, message: str, tmp_path: Path):
    root = write_voc(tmp_path, {"a": text})
    with pytest.raises(DataError, match=rf"a\.xml: .*{message}"):
        load_voc_boxes(root)


@pytest.mark.parametrize("encoding", ["utf-16", "cp037"])
def test_an_encoding_hides_no_document_type(encoding: str, tmp_path: Path):
    root = write_voc(tmp_path, {"a": ""})
    head = f'<?xml version="1.0" encoding="{encoding}"?>{BOMB}'
    (root / "Annotations" / "a.xml").write_bytes(annotation(head=head).encode(encoding))
    with pytest.raises(DataError, match=r"a\.xml"):
        load_voc_boxes(root)


def test_voc_trees_that_lack_something(tmp_path: Path):
    root = write_voc(tmp_path, {"a": annotation(voc_object())})
    with pytest.raises(DataError, match=r"val\.txt: no such list; there are trainval"):
        load_voc_boxes(root, "val")
    (root / "Annotations" / "a.xml").unlink()
    with pytest.raises(DataError, match=r"a\.xml: no such file, but .* lists it"):
        load_voc_boxes(root)


def write_coco(root: Path, boxes: dict[int, Sequence[tuple[object, int]]]) -> Path:
    """Images by id; each with (bbox, iscrowd)."""
    images, annotations = [], []
    for number, found in boxes.items():
        name = f"COCO_train2014_{number:012d}.jpg"
        write_image(root / "train2014" / name)
        images.append({"id": number, "file_name": name, "height": 20, "width": 30})
        for bbox, crowd in found:
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": bbox, "iscrowd": crowd}
            annotations.append(entry)
    record = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    path = root / "instances.json"
    path.write_text(json.dumps(record))
    return path


def test_coco_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_coco(tmp_path, {9: [([1.4, 2.6, 10.3, 4], 0), ([0, 0, 30, 20], 1)], 12: []})
    images = load_coco_boxes(path, tmp_path / "train2014")
    assert [(image.number, image.boxes) for image in images] == [(9, ((1, 3, 12, 7),)), (12, ())]
    assert capsys.readouterr().out == ""


def test_a_list_chooses_by_name_or_id(tmp_path: Path):
    path = write_coco(tmp_path, {9: [], 12: [], 30: []})
    chosen = tmp_path / "list.txt"
    chosen.write_text("COCO_train2014_000000000030.jpg\n9\n\n9\n")
    images = load_coco_boxes(path, tmp_path / "train2014", chosen)
    assert [image.number for image in images] == [30, 9]
    chosen.write_text("COCO_train2014_000000000031.jpg\n")
    with pytest.raises(DataError, match=r"000000000031\.jpg' is no image"):
        load_coco_boxes(path, tmp_path / "train2014", chosen)
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        load_coco_boxes(path, tmp_path / "train2014", tmp_path / "none.txt")


def test_bad_coco_files(tmp_path: Path):
    path = write_coco(tmp_path, {9: [([1, 2, 3], 0)]})
    with pytest.raises(DataError, match=r"annotation 1 has bbox \[1, 2, 3\]"):
        load_coco_boxes(path, tmp_path / "train2014")
    with pytest.raises(DataError, match=r"no such file, but .* lists it as image 9"):
        load_coco_boxes(path, tmp_path / "elsewhere")
    for text, message in (("{", "not a COCO"), ("[]", "not a COCO"), ('{"images": []}', "no images")):
        path.write_text(text)
        with pytest.raises(DataError, match=message):
            load_coco_boxes(path, tmp_path)
    record = json.loads(write_coco(tmp_path, {9: [([1, 2, math.nan, 4], 0)]}).read_text())
    with pytest.raises(DataError, match=r"annotation 1 has bbox \[1, 2, nan, 4\]"):
        load_coco_boxes(path, tmp_path / "train2014")
    del record["images"][0]["file_name"]
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match="image 9 has file_name None"):
        load_coco_boxes(path, tmp_path / "train2014")
    with pytest.raises(DataError, match=r"missing\.json: no such file"):
        load_coco_boxes(tmp_path / "missing.json", tmp_path)


def test_boxes_around_masks(tmp_path: Path):
    write_pairs(tmp_path, names="a")
    mask = np.zeros((20, 30), np.uint8)
    mask[2:5, 3:9] = mask[10:20, 20:30] = 255
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    pairs = load_saliency(tmp_path)
    assert boxes_of_masks(pairs)[0].boxes == ((3, 2, 9, 5), (20, 10, 30, 20))
    write_mask(tmp_path / "ids.png", (mask > 0) * np.uint8(4))
    ids = MaskedImage("a", pairs[0].image, tmp_path / "ids.png", has_ids=True)
    assert boxes_of_masks([ids])[0].boxes == ((3, 2, 30, 20),), "an id is one object, in however many pieces"


def test_specks_are_no_objects(tmp_path: Path):
    write_pairs(tmp_path, names="a")
    mask = np.zeros((200, 300), np.uint8)
    mask[20:90, 30:90] = mask[150, 150] = 255
    write_image(tmp_path / "images" / "a.jpg", mask.shape)
    Image.fromarray(mask).save(tmp_path / "masks" / "a.png")
    assert boxes_of_masks(load_saliency(tmp_path))[0].boxes == ((30, 20, 90, 90),)
