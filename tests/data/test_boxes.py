"""Boxes from VOC and COCO annotations and from masks, and annotations that cannot be used."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import DataError, coco
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


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1", "cp037"])
def test_an_encoding_hides_no_document_type(encoding: str, tmp_path: Path):
    root = write_voc(tmp_path, {"a": ""})
    head = f'<?xml version="1.0" encoding="{encoding}"?>{BOMB}'
    (root / "Annotations" / "a.xml").write_bytes(annotation(head=head).encode(encoding))
    with pytest.raises(DataError, match=r"a\.xml"):
        load_voc_boxes(root)


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("utf-8", "utf-8"),
        (None, "utf-8"),
        (None, "utf-8-sig"),
        ("utf-16", "utf-16"),
        ("UTF-16", "utf-16-le"),
        (None, "utf-16-be"),
        ("ISO-8859-1", "latin-1"),
        ("windows-1252", "cp1252"),
        ("Shift_JIS", "shift_jis"),
    ],
)
def test_annotations_are_read_in_the_encoding_that_they_declare(declared: str | None, encoding: str, tmp_path: Path):
    head = f"<?xml version='1.0' encoding='{declared}'?>\n" if declared else ""
    word = "車" if encoding in ("shift_jis", "utf-16-be") else "carré"
    text = annotation(voc_object().replace("dog", word), head=head)
    root = write_voc(tmp_path, {"a": ""})
    (root / "Annotations" / "a.xml").write_bytes(text.encode(encoding))
    assert load_voc_boxes(root)[0].boxes == ((3, 1, 20, 11),)


def test_an_encoding_that_is_not_declared_or_not_known_is_named(tmp_path: Path):
    root = write_voc(tmp_path, {"a": ""})
    for head in ("", "<?xml version='1.0' encoding='klingon'?>"):
        (root / "Annotations" / "a.xml").write_bytes(f"{head}{annotation()}".encode() + b"\xe9")
        with pytest.raises(DataError, match=r"a\.xml: not a readable XML.*declare its encoding"):
            load_voc_boxes(root)


def test_a_document_type_without_entities_is_harmless(tmp_path: Path):
    root = write_voc(tmp_path, {"a": annotation(voc_object(), head="<!DOCTYPE annotation>")})
    assert load_voc_boxes(root)[0].boxes == ((3, 1, 20, 11),)


@pytest.mark.parametrize("ending", [".JPG", ".jpeg", ".png", ".webp"])
@pytest.mark.parametrize("listed", ["a", "a.jpg", "a.png", "a  1", "a.JPG -1"])
def test_pictures_of_any_ending_and_names_with_one(ending: str, listed: str, tmp_path: Path):
    root = write_voc(tmp_path, {"a": annotation(voc_object())})
    picture = root / "JPEGImages" / "a.jpg"
    write_image(picture.with_suffix(ending))
    picture.unlink()
    (root / "Annotations" / "a.xml").rename(root / "Annotations" / "a.XML")
    (root / "ImageSets" / "Main" / "trainval.txt").write_text(f"{listed}\r\n", encoding="utf-8-sig")
    (image,) = load_voc_boxes(root)
    assert (image.name, image.image.name, image.boxes) == ("a", f"a{ending}", ((3, 1, 20, 11),))
    assert image.annotation == root / "Annotations" / "a.XML"


def test_names_with_spaces_and_dots(tmp_path: Path):
    names = ["my car 1", "v1.2", "shot 2.jpg"]
    root = write_voc(tmp_path, {name.removesuffix(".jpg"): annotation(voc_object()) for name in names})
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("my car 1 1\nv1.2 -1\nshot 2.jpg")
    assert [image.name for image in load_voc_boxes(root)] == ["my car 1", "v1.2", "shot 2"]


def test_two_pictures_of_one_name_are_refused(tmp_path: Path):
    root = write_voc(tmp_path, {"a": annotation(voc_object())})
    write_image(root / "JPEGImages" / "a.png")
    with pytest.raises(DataError, match=r"a\.jpg and a\.png: two files of one name"):
        load_voc_boxes(root)


def test_a_missing_picture_is_named_once(tmp_path: Path):
    root = write_voc(tmp_path, {"a": annotation(voc_object())})
    (root / "ImageSets" / "Main" / "trainval.txt").write_text("b.jpg")
    with pytest.raises(DataError, match=r"JPEGImages/b\.jpg: no such file, but ImageSets/Main/trainval\.txt lists it"):
        load_voc_boxes(root)


@pytest.mark.parametrize("end", [40, 900])
def test_boxes_far_out_of_their_image_are_refused(end: int, tmp_path: Path):
    """Images are 30 pixels wide; a box that ends at 31 is one of shaky hands."""
    text = annotation(voc_object().replace("<xmax>20", "<xmax>{}"))
    root = write_voc(tmp_path, {"a": text.format(31)})
    assert load_voc_boxes(root)[0].boxes == ((3, 1, 31, 11),)
    (root / "Annotations" / "a.xml").write_text(text.format(end))
    with pytest.raises(DataError, match=rf"a\.xml: a box from \(3, 1\) to \({end}, 11\), but .*a\.jpg has only 30x20"):
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


def edit(path: Path, change: Callable[[dict], object]) -> Path:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    return path


THREE = {9: [([1, 2, 10, 4], 0)], 12: [([5, 5, 8, 8], 0)], 30: []}


@pytest.mark.parametrize(
    ("of_image", "of_annotation"),
    [
        (int, str),
        (str, int),
        (str, str),
        (float, int),
        (int, float),
        (lambda n: f"{n:06d}", int),
        (lambda n: f"im-{n}",) * 2,
    ],
    ids=["text beside number", "number beside text", "texts", "floats", "floats of annotations", "zeros", "no numbers"],
)
def test_ids_of_images_may_be_texts(of_image: Callable, of_annotation: Callable, tmp_path: Path):
    path = write_coco(tmp_path, THREE)

    def change(record: dict) -> None:
        for entry in record["images"]:
            entry["id"] = of_image(entry["id"])
        for entry in record["annotations"]:
            entry["image_id"] = of_annotation(entry["image_id"])

    images = load_coco_boxes(edit(path, change), tmp_path / "train2014")
    assert [image.boxes for image in images] == [((1, 2, 11, 6),), ((5, 5, 13, 13),), ()]
    assert all(isinstance(image.number, int) for image in images)
    assert len({image.number for image in images}) == 3


def test_ids_that_do_not_match_are_an_error_or_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write_coco(tmp_path, THREE)
    edit(path, lambda record: record["annotations"][0].update(image_id="other"))
    assert [len(image.boxes) for image in load_coco_boxes(path, tmp_path / "train2014")] == [0, 1, 0]
    assert "1 annotations are of images that it does not list (image_id 'other'" in caplog.text
    edit(path, lambda record: record["annotations"][1].update(image_id="another"))
    with pytest.raises(DataError, match=r"no annotation is of a listed image: image_id 'other', .* 9, 12, 30"):
        load_coco_boxes(path, tmp_path / "train2014")


def test_two_images_of_one_id_are_refused(tmp_path: Path):
    path = edit(write_coco(tmp_path, THREE), lambda record: record["images"][1].update(id=9))
    with pytest.raises(DataError, match="two images with the id 9"):
        load_coco_boxes(path, tmp_path / "train2014")


def in_folders(root: Path, separator: str = "/") -> Path:
    """A file whose images are frame.jpg of folders, with another frame.jpg beside the folders."""
    path = write_coco(root, THREE)
    for number in THREE:
        (root / "train2014" / f"cam{number}").mkdir()
        (root / "train2014" / f"COCO_train2014_{number:012d}.jpg").rename(root / f"train2014/cam{number}/frame.jpg")
    write_image(root / "train2014" / "frame.jpg")
    return edit(
        path, lambda record: [e.update(file_name=f"cam{e['id']}{separator}frame.jpg") for e in record["images"]]
    )


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_names_with_folders_are_read_where_they_say(separator: str, tmp_path: Path):
    images = load_coco_boxes(in_folders(tmp_path, separator), tmp_path / "train2014")
    assert [image.image for image in images] == [tmp_path / f"train2014/cam{number}/frame.jpg" for number in THREE]
    assert [image.name for image in images] == ["cam9/frame", "cam12/frame", "cam30/frame"]
    (tmp_path / "list.txt").write_text("cam12/frame.jpg\n", encoding="utf-8-sig")
    (image,) = load_coco_boxes(tmp_path / "instances.json", tmp_path / "train2014", tmp_path / "list.txt")
    assert image.number == 12
    (tmp_path / "list.txt").write_text("frame.jpg\n")
    with pytest.raises(DataError, match="the name of 3 images"):
        load_coco_boxes(tmp_path / "instances.json", tmp_path / "train2014", tmp_path / "list.txt")


def test_another_file_of_the_name_is_not_taken(tmp_path: Path):
    path = in_folders(tmp_path)
    (tmp_path / "train2014" / "cam12" / "frame.jpg").unlink()
    with pytest.raises(DataError, match=r"cam12/frame\.jpg: no such file, .* lists it as image 12\. .*another image"):
        load_coco_boxes(path, tmp_path / "train2014")


def test_paths_of_another_machine_are_read_by_their_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write_coco(tmp_path, THREE)
    edit(path, lambda record: [e.update(file_name=f"D:\\project\\{e['file_name']}") for e in record["images"]])
    images = load_coco_boxes(path, tmp_path / "train2014")
    assert [image.number for image in images] == [9, 12, 30]
    assert "3 paths of another machine" in caplog.text
    in_folders(tmp_path / "other")
    path = tmp_path / "other" / "instances.json"
    edit(path, lambda record: [e.update(file_name=f"/x{e['id']}/frame.jpg") for e in record["images"]])
    with pytest.raises(DataError, match=r"frame\.jpg: no such file"):  # which of three is the one frame.jpg?
        load_coco_boxes(path, tmp_path / "other" / "train2014")


def test_names_from_the_root_and_other_endings(tmp_path: Path):
    path = write_coco(tmp_path, {9: [([1, 2, 10, 4], 0)]})
    edit(path, lambda record: record["images"][0].update(file_name="train2014/COCO_train2014_000000000009.png"))
    (image,) = load_coco_boxes(path, tmp_path / "train2014")
    assert image.image == tmp_path / "train2014" / "COCO_train2014_000000000009.jpg"


def test_a_file_listed_twice_is_one_image(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = write_coco(tmp_path, THREE)
    edit(path, lambda record: record["images"][1].update(file_name=record["images"][0]["file_name"]))
    images = load_coco_boxes(path, tmp_path / "train2014")
    assert [image.boxes for image in images] == [((1, 2, 11, 6), (5, 5, 13, 13)), ()]
    assert "lists 1 images more than once" in caplog.text


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_annotations_may_begin_with_a_byte_order_mark(encoding: str, tmp_path: Path):
    path = write_coco(tmp_path, THREE)
    path.write_text(path.read_text(), encoding=encoding)
    assert len(load_coco_boxes(path, tmp_path / "train2014")) == 3


@pytest.mark.parametrize("crowd", [1, True, "1", 1.0])
def test_crowds_however_written(crowd: object, tmp_path: Path):
    path = write_coco(tmp_path, THREE)
    edit(path, lambda record: [record["annotations"][0].update(iscrowd=crowd), record["annotations"][1].pop("iscrowd")])
    assert [len(image.boxes) for image in load_coco_boxes(path, tmp_path / "train2014")] == [0, 1, 0]
    edit(path, lambda record: record["annotations"][0].update(iscrowd="0"))
    assert [len(image.boxes) for image in load_coco_boxes(path, tmp_path / "train2014")] == [1, 1, 0]


def test_boxes_that_cannot_be_pixels_are_refused(tmp_path: Path):
    """Fractions of the image; corners instead of sizes; a box of another image."""
    path = write_coco(tmp_path, {9: [([0.1, 0.2, 0.3, 0.4], 0)], 12: [([0, 0, 1, 1], 0)]})
    with pytest.raises(DataError, match=r"instances\.json: all boxes lie between 0 and 1: fractions .*Multiply"):
        load_coco_boxes(path, tmp_path / "train2014")
    for bbox in ([12, 3, 28, 18], [200, 3, 4, 4], [-9, 2, 12, 4], [2, 2, 4, 30]):
        path = write_coco(tmp_path, {9: [(bbox, 0)]})
        with pytest.raises(DataError, match=r"has only 30x20 pixels .*COCO: x, y, width, height"):
            load_coco_boxes(path, tmp_path / "train2014")


def test_the_usual_places_of_annotations(tmp_path: Path):
    assert coco.find_annotations(tmp_path) == []
    folder = write_coco(tmp_path, THREE).parent / "train2014"
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "_annotations.coco.json").write_text('{"images": []}')
    export = folder / "_annotations.coco.json"
    (tmp_path / "instances.json").rename(export)
    assert coco.find_annotations(tmp_path) == [export, tmp_path / "valid" / "_annotations.coco.json"]
    assert coco.find_annotations(folder) == [export]
    assert coco.find_images(export, tmp_path / "missing") == folder
    (tmp_path / "annotations").mkdir()
    export.rename(tmp_path / "annotations" / "instances_train2014.json")
    assert coco.find_images(tmp_path / "annotations" / "instances_train2014.json", tmp_path / "no") == folder


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
