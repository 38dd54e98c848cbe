"""First masks as people make them: the same two regions come out, and what could be read in two ways is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from data import DataError
from data.masks import PALETTE, write_mask
from data.own_masks import OwnMasks

SIZE = (64, 96)
A, B = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
A[8:41, 9:42] = True  # off the blocks of JPEG
B[29:60, 61:91] = True
BOTH = np.uint8(1) * A + np.uint8(2) * B


def levels(a: int, b: int | None = None, ground: int = 0, kind: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.where(A, a, np.where(B, ground if b is None else b, ground)).astype(kind))


def colors(a: tuple, b: tuple | None = None, ground: tuple = (0, 0, 0)) -> Image.Image:
    pixels = np.full((*SIZE, len(a)), ground if len(a) == 3 else (*ground, 0), np.uint8)
    pixels[A] = a
    if b is not None:
        pixels[B] = b
    return Image.fromarray(pixels)


def palette(indices: np.ndarray, *entries: tuple[int, int, int]) -> Image.Image:
    image = Image.fromarray(indices.astype(np.uint8), mode="P")
    image.putpalette([value for entry in entries for value in entry])
    return image


def softened(image: Image.Image) -> Image.Image:
    small = image.resize((SIZE[1] * 2, SIZE[0] * 2), Image.Resampling.BICUBIC)
    return small.resize(SIZE[::-1], Image.Resampling.BILINEAR)


def ids_of(path: Path) -> np.ndarray:
    return OwnMasks({"00000": path}, SIZE)["00000"]


def agree(ids: np.ndarray, expected: np.ndarray) -> bool:
    """Equal but for the edges' outermost pixels."""
    return (ids == expected).mean() > 0.985 and set(np.unique(ids)) == set(np.unique(expected))


EXACT: dict[str, tuple[Callable[[], Image.Image], np.ndarray]] = {
    "white.png": (lambda: levels(255), A),
    "bits.png": (lambda: Image.fromarray(A), A),
    "bits.tif": (lambda: Image.fromarray(A), A),
    "white.bmp": (lambda: levels(255), A),
    "white.gif": (lambda: levels(255), A),
    "white.webp": (lambda: levels(255), A),
    "white_rgb.png": (lambda: levels(255).convert("RGB"), A),
    "white_la.png": (lambda: levels(255).convert("LA"), A),
    "white_cmyk.tif": (lambda: levels(255).convert("RGB").convert("CMYK"), A),
    "float.tif": (lambda: levels(1, kind=np.float32), A),
    "shares.tif": (lambda: Image.fromarray(0.7 * A.astype(np.float32)), 178 * A),
    "ids.png": (lambda: levels(1, 2), BOTH),
    "ids_gap.png": (lambda: levels(5, 17), 5 * A + 17 * B),
    "id_254.png": (lambda: levels(254, 1), 254 * A + B),
    "ids_16.png": (lambda: levels(1, 2, kind=np.uint16), BOTH),
    "ids_1000.png": (lambda: levels(1000, 2000, kind=np.uint16), BOTH),
    "ids_32.tif": (lambda: levels(70_000, 80_000, kind=np.int32), BOTH),
    "white_16.png": (lambda: levels(65535, kind=np.uint16), A),
    "levels.png": (lambda: levels(128, 255), BOTH),
    "ground_64.png": (lambda: levels(255, ground=64), A),
    "davis.png": (lambda: palette(BOTH, *PALETTE[:3].tolist()), BOTH),
    "davis_rgb.png": (lambda: Image.fromarray(PALETTE[BOTH]), BOTH),
    "davis_only_2.png": (lambda: colors((0, 128, 0)), 2 * A),
    "red_green.png": (lambda: colors((255, 0, 0), (0, 255, 0)), BOTH),
    "on_white.png": (lambda: colors((255, 0, 0), (0, 0, 255), ground=(255, 255, 255)), BOTH),
    "on_gray.png": (lambda: colors((255, 0, 0), (0, 0, 255), ground=(90, 90, 90)), BOTH),
    "white_first.png": (lambda: palette(~A, (255, 255, 255), (0, 0, 0)), A),
    "colors_first.png": (lambda: palette(2 - BOTH, (0, 255, 0), (255, 0, 0), (0, 0, 0)), BOTH),
    "white_ground_first.png": (lambda: palette(BOTH, (255, 255, 255), (255, 0, 0), (0, 0, 255)), BOTH),
    "white_in_alpha.png": (lambda: colors((255, 255, 255, 255), ground=(255, 255, 255)), A),
    "black_in_alpha.png": (lambda: colors((0, 0, 0, 255)), A),
    "colors_in_alpha.png": (lambda: colors((9, 90, 200, 255), (200, 9, 90, 255)), BOTH),
    "gray_in_alpha.png": (lambda: colors((9, 90, 200, 255)).convert("LA"), A),
}


@pytest.mark.parametrize("name", EXACT)
def test_lossless_masks(tmp_path: Path, name: str):
    image, expected = EXACT[name]
    options = {"lossless": True} if name.endswith("webp") else {}
    image().save(tmp_path / name, **options)
    np.testing.assert_array_equal(ids_of(tmp_path / name), expected)


def test_a_transparent_palette_entry_is_ground(tmp_path: Path):
    image = palette(BOTH, *PALETTE[:3].tolist())
    image.save(tmp_path / "m.png", transparency=0)
    np.testing.assert_array_equal(ids_of(tmp_path / "m.png"), BOTH)


@pytest.mark.parametrize("quality", [50, 75, 90, 95])
@pytest.mark.parametrize("kind", ["gray", "rgb"])
@pytest.mark.parametrize("value", [255, 250, 240, 200, 128, 80])
def test_one_level_in_jpeg(tmp_path: Path, value: int, kind: str, quality: int):
    image = levels(value)
    (image.convert("RGB") if kind == "rgb" else image).save(tmp_path / "m.jpg", quality=quality)
    masks = OwnMasks({"00000": tmp_path / "m.jpg"}, SIZE)
    assert agree(masks["00000"], A)
    assert masks.objects == [1]
    assert f"around the levels 0 and {value}" in masks.said or quality < 75


def test_id_1_in_jpeg(tmp_path: Path):
    levels(1).save(tmp_path / "m.jpg", quality=95)
    assert agree(ids_of(tmp_path / "m.jpg"), A)
    levels(1, 2).save(tmp_path / "m.jpg", quality=100)
    with pytest.raises(DataError, match=r"m\.jpg: JPEG, with the values .*Save the mask as PNG"):
        ids_of(tmp_path / "m.jpg")


@pytest.mark.parametrize("quality", [75, 95])
def test_several_levels_and_colors_in_jpeg(tmp_path: Path, quality: int):
    """At an edge between black and white, JPEG has the gray of the other object: it is none there."""
    path = tmp_path / "m.jpg"
    levels(128, 255).save(path, quality=quality)
    assert agree(ids_of(path), BOTH)
    colors((255, 0, 0), (0, 255, 0)).save(path, quality=quality, subsampling=0)
    assert agree(ids_of(path), BOTH)
    Image.fromarray(PALETTE[2 * BOTH]).save(path, quality=quality, subsampling=0)
    assert agree(ids_of(path), 2 * BOTH)


def test_noise_that_was_saved_as_png(tmp_path: Path):
    levels(255).save(tmp_path / "m.jpg", quality=75)
    Image.open(tmp_path / "m.jpg").save(tmp_path / "m.png")
    assert agree(ids_of(tmp_path / "m.png"), A)


def test_soft_edges(tmp_path: Path):
    for name, image in (("gray", levels(255)), ("two", levels(128, 255)), ("rgb", colors((255, 0, 0), (0, 255, 0)))):
        softened(image).save(tmp_path / f"{name}.png")
        expected = A if name == "gray" else BOTH
        assert agree(ids_of(tmp_path / f"{name}.png"), expected), name


def test_a_cut_out_picture_is_one_object(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 4), np.uint8)
    pixels[..., 3] = 255 * A
    Image.fromarray(pixels).save(tmp_path / "m.png")
    np.testing.assert_array_equal(ids_of(tmp_path / "m.png"), A)


def test_void_of_the_published_sets_is_ground(tmp_path: Path):
    ids = BOTH.copy()
    ids[7:9, 8:41] = 255
    for path, write in (
        (tmp_path / "p.png", write_mask),
        (tmp_path / "l.png", lambda p, i: Image.fromarray(i).save(p)),
    ):
        write(path, ids)
        masks = OwnMasks({"00000": path}, SIZE)
        np.testing.assert_array_equal(masks["00000"], np.where(ids == 255, 0, ids))
        assert "255 is void" in masks.said


def test_thin_lines_keep_their_ids(tmp_path: Path):
    ids = np.zeros(SIZE, np.uint8)
    ids[20], ids[30:32], ids[:, 50] = 40, 90, 200
    Image.fromarray(ids).save(tmp_path / "m.png")
    np.testing.assert_array_equal(ids_of(tmp_path / "m.png"), ids)


def test_one_object_has_one_id_in_all_masks(tmp_path: Path):
    levels(1000, 2000, kind=np.uint16).save(tmp_path / "0.png")
    levels(2000, 3000, kind=np.uint16).save(tmp_path / "1.png")
    masks = OwnMasks({"00000": tmp_path / "0.png", "00004": tmp_path / "1.png"}, SIZE)
    np.testing.assert_array_equal(masks["00000"], BOTH)
    np.testing.assert_array_equal(masks["00004"], 2 * A + 3 * B)
    assert list(masks) == ["00000", "00004"]


def test_it_says_what_it_decided(tmp_path: Path):
    colors((255, 0, 0), (0, 255, 0)).save(tmp_path / "m.png")
    said = OwnMasks({"00000": tmp_path / "m.png"}, SIZE).said
    assert said.startswith(f"2 objects: 1 with {A.sum()} pixels, 2 with {B.sum()} pixels; (0, 0, 0) is ground")
    assert "(255, 0, 0) is 1, (0, 255, 0) is 2" in said
    Image.fromarray(np.full(SIZE, 255, np.uint8)).save(tmp_path / "all.png")
    assert "no pixel of the first mask is ground" in OwnMasks({"00000": tmp_path / "all.png"}, SIZE).said


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (lambda: levels(0, ground=255), r"covers \d+% of the picture and its border.*Which is the object\?"),
        (lambda: Image.fromarray(~A), "Which is the object"),
        (lambda: colors((0, 0, 0), (255, 0, 0), ground=(255, 255, 255)), "Which is ground"),
        (lambda: levels(2, ground=1), "no pixel is 0, and value 1 covers the border"),
        (lambda: Image.fromarray(np.zeros(SIZE, np.uint8)), "no object"),
        (lambda: Image.fromarray(np.ones((9, 9), np.uint8)), r"9x9 pixels .* frames have 64x96"),
        (lambda: Image.fromarray(np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)), "photograph"),
        (lambda: Image.fromarray(np.tile(np.arange(SIZE[1], dtype=np.uint8) * 2, (SIZE[0], 1))), "photograph|soft map"),
        (lambda: colors((0, 0, 0, 255), (9, 90, 200, 255)), "transparent and others black"),
    ],
)
def test_what_can_be_read_in_two_ways_or_in_none(tmp_path: Path, image: Callable[[], Image.Image], says: str):
    image().save(tmp_path / "m.png")
    with pytest.raises(DataError, match=rf"(?s)m\.png: .*({says})"):
        ids_of(tmp_path / "m.png")


def test_files_that_are_no_masks(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no such mask"):
        ids_of(tmp_path / "none.png")
    for name, content in (("m.png", b"text"), ("m.json", b"text"), ("n.json", b"[]"), ("o.json", b'{"shapes": [{}]}')):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            ids_of(tmp_path / name)


# ---- JSON


def write_json(path: Path, content: dict, encoding: str = "utf-8") -> Path:
    path.write_text(json.dumps(content), encoding=encoding)
    return path


def test_labelme(tmp_path: Path):
    square = [[9, 8], [41, 8], [41, 40], [9, 40]]
    shapes = [
        {"label": "dog", "points": square, "shape_type": "polygon", "group_id": None},
        {"label": "dog", "points": [[90, 59], [61, 29]], "shape_type": "rectangle", "group_id": None},
    ]
    content = {"shapes": shapes, "imagePath": "0.jpg", "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
    path = write_json(tmp_path / "m.json", content, "utf-8-sig")
    masks = OwnMasks({"00000": path}, SIZE)
    np.testing.assert_array_equal(masks["00000"], BOTH)
    assert "1 (dog 1) with" in masks.said
    for shape in shapes:
        shape["group_id"] = 7
    write_json(path, content)
    np.testing.assert_array_equal(ids_of(path), A | B)
    shapes[0] |= {"shape_type": "circle", "points": [[25, 24], [25, 34]]}
    write_json(path, content)
    assert ids_of(path)[24, 34] == ids_of(path)[24, 16] == 1
    shapes[0]["shape_type"] = "linestrip"
    write_json(path, content)
    with pytest.raises(DataError, match=r"m\.json: labelme's JSON, .*is no region"):
        ids_of(path)


def runs(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths: of 0, of 1, of 0, ... down the columns."""
    flat = mask.T.ravel().astype(int)
    changes = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1]))
    return np.diff(changes, prepend=0).tolist()


def test_coco(tmp_path: Path):
    compressed = coco_mask.encode(np.asfortranarray(B.astype(np.uint8)))
    images = [{"id": 7, "file_name": "frames/00000.jpg", "height": SIZE[0], "width": SIZE[1]}]
    annotations = [
        {"image_id": 7, "category_id": 1, "segmentation": {"size": list(SIZE), "counts": runs(A)}},
        {
            "image_id": 7,
            "category_id": 1,
            "segmentation": {"size": list(SIZE), "counts": compressed["counts"].decode()},
        },
    ]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    path = write_json(tmp_path / "m.json", content)
    np.testing.assert_array_equal(ids_of(path), BOTH)
    annotations[0]["segmentation"] = [[9, 8, 42, 8, 42, 41, 9, 41]]
    np.testing.assert_array_equal(ids_of(write_json(path, content)), BOTH)
    images.append({**images[0], "id": 8, "file_name": "00001.jpg"})
    np.testing.assert_array_equal(ids_of(write_json(path, content)), BOTH)
    annotations[1]["category_id"] = 2
    annotations.append({**annotations[1], "image_id": 8})
    write_json(path, content)
    masks = OwnMasks({"00000": path, "00001": path}, SIZE)
    np.testing.assert_array_equal(masks["00000"], BOTH)
    np.testing.assert_array_equal(masks["00001"], 2 * B)  # the object has one id in all frames
    images[0]["file_name"] = "other.jpg"
    with pytest.raises(DataError, match=r"m\.json: 2 images, of which 0 are named as the frame '00000'"):
        ids_of(write_json(path, content))
    annotations[0]["segmentation"] = [[1, 2]]
    images.pop()
    with pytest.raises(DataError, match=r"m\.json: COCO's JSON, .*three points"):
        ids_of(write_json(path, content))
