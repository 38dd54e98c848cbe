"""One object in masks as people store them: formats, modes, levels, and sets that cannot be told."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from data import DataError
from data.foreground import foreground_rule
from data.known_sets import SALIENCY_SETS
from data.saliency import load_saliency

SIZE = (64, 80)  # height, width
Paint = Callable[[np.ndarray], Image.Image]


def square(index: int) -> np.ndarray:
    """The true object, off the grid of 8 pixels that JPEG works on."""
    mask = np.zeros(SIZE, bool)
    mask[11 + index : 41 + index, 13 + 3 * index : 43 + 3 * index] = True
    return mask


def write(folder: Path, paint: Paint, ending: str = ".png", **options: object) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{index:03d}{ending}" for index in range(4)]
    for index, path in enumerate(paths):
        paint(square(index)).save(path, **options)
    return paths


def overlap(paths: list[Path]) -> float:
    """The lowest IoU of what is read with the true object."""
    rule = foreground_rule(paths)
    values = []
    for index, path in enumerate(paths):
        read, true = rule.read(path) > 0, square(index)
        values.append((read & true).sum() / (read | true).sum())
    return min(values)


def gray(low: int, high: int, kind: type = np.uint8) -> Paint:
    return lambda mask: Image.fromarray(np.where(mask, high, low).astype(kind))


def colors(ground: tuple[int, int, int], thing: tuple[int, int, int]) -> Paint:
    return lambda mask: Image.fromarray(np.where(mask[..., None], thing, ground).astype(np.uint8))


def palette(*entries: int, flip: bool = False, transparent: int | None = None) -> Paint:
    def paint(mask: np.ndarray) -> Image.Image:
        image = Image.fromarray((mask ^ flip).astype(np.uint8), "P")
        image.putpalette(entries)
        if transparent is not None:
            image.info["transparency"] = transparent
        return image

    return paint


def opaque_where(color: Callable[[np.ndarray], np.ndarray], level: int = 255) -> Paint:
    """RGBA that is transparent around the object."""
    return lambda mask: Image.fromarray(np.dstack([color(mask), mask * level]).astype(np.uint8), "RGBA")


def by_way_of_jpeg(mask: np.ndarray) -> Image.Image:
    buffer = io.BytesIO()
    gray(0, 255)(mask).save(buffer, "JPEG", quality=75)
    return Image.open(io.BytesIO(buffer.getvalue())).copy()


def photograph(mask: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*mask.shape, 3))


@pytest.mark.parametrize(
    ("paint", "ending", "options"),
    [
        *[pytest.param(gray(0, 255), ".jpg", {"quality": q}, id=f"JPEG of quality {q}") for q in (30, 50, 75, 90, 100)],
        pytest.param(gray(0, 240), ".JPEG", {"quality": 75, "format": "JPEG"}, id="JPEG below white"),
        pytest.param(gray(20, 120), ".jpg", {"quality": 75}, id="JPEG, gray on dark gray"),
        pytest.param(colors((0, 0, 0), (255, 255, 255)), ".jpg", {"quality": 75}, id="JPEG in color"),
        pytest.param(colors((0, 0, 0), (0, 0, 200)), ".jpg", {"quality": 75}, id="JPEG, blue on black"),
        pytest.param(colors((255, 255, 255), (200, 0, 0)), ".jpg", {"quality": 75}, id="JPEG, red on white"),
        pytest.param(lambda mask: gray(0, 255)(mask).convert("CMYK"), ".jpg", {"quality": 75}, id="JPEG in CMYK"),
        pytest.param(by_way_of_jpeg, ".png", {}, id="PNG made from JPEG"),
        pytest.param(gray(0, 255), ".webp", {"quality": 60}, id="lossy WebP"),
        pytest.param(gray(0, 255), ".webp", {"lossless": True}, id="WebP"),
        pytest.param(gray(0, 255), ".avif", {"quality": 40}, id="AVIF"),
        pytest.param(gray(0, 255), ".gif", {}, id="GIF"),
        pytest.param(lambda mask: gray(0, 255)(mask).filter(ImageFilter.GaussianBlur(1)), ".png", {}, id="soft edges"),
        pytest.param(lambda mask: Image.fromarray(mask), ".png", {}, id="one bit"),
        pytest.param(gray(0, 1), ".png", {}, id="0 and 1"),
        pytest.param(gray(1, 2), ".png", {}, id="1 and 2"),
        pytest.param(gray(100, 200), ".png", {}, id="gray on gray"),
        pytest.param(gray(0, 1000, np.uint16), ".png", {}, id="16 bits"),
        pytest.param(gray(0, 1, np.float32), ".tif", {}, id="fractions"),
        pytest.param(colors((68, 1, 84), (253, 231, 36)), ".png", {}, id="colors of a plot"),
        pytest.param(colors((255, 255, 255), (255, 0, 0)), ".png", {}, id="red on white"),
        pytest.param(palette(0, 0, 0, 128, 0, 0), ".png", {}, id="palette"),
        pytest.param(palette(255, 255, 255, 0, 0, 0, flip=True), ".png", {}, id="palette, white first"),
        pytest.param(palette(0, 0, 0, 0, 0, 0), ".png", {}, id="palette without colors"),
        pytest.param(palette(9, 9, 9, 9, 9, 9, transparent=0), ".png", {"transparency": 0}, id="transparent entry"),
        pytest.param(opaque_where(lambda mask: np.full((*mask.shape, 3), 255)), ".png", {}, id="white, transparent"),
        pytest.param(opaque_where(lambda mask: np.zeros((*mask.shape, 3))), ".png", {}, id="black, transparent"),
        pytest.param(opaque_where(photograph), ".png", {}, id="photograph, cut out"),
        pytest.param(opaque_where(photograph, 128), ".png", {}, id="half transparent"),
        pytest.param(lambda mask: gray(0, 255)(mask).convert("RGBA"), ".png", {}, id="all opaque"),
        pytest.param(lambda mask: gray(0, 255)(mask).convert("LA"), ".png", {}, id="gray, all opaque"),
    ],
)
def test_the_object_is_read_as_it_was_drawn(paint: Paint, ending: str, options: dict, tmp_path: Path):
    assert overlap(write(tmp_path, paint, ending, **options)) > 0.97


def test_opaque_black_is_ground_beside_an_opaque_object(tmp_path: Path):
    def paint(mask: np.ndarray) -> Image.Image:
        opaque = np.ones(SIZE, bool)
        opaque[:, :10] = False
        shown = np.dstack([np.repeat(mask[..., None] * 255, 3, axis=2), opaque * 255])
        return Image.fromarray(shown.astype(np.uint8), "RGBA")

    assert overlap(write(tmp_path, paint)) == 1


def test_numbers_of_objects_are_all_object(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    columns = np.arange(SIZE[1]) // 2 % 20
    assert overlap(write(tmp_path, lambda mask: Image.fromarray(np.where(mask, 1 + columns, 0).astype(np.uint8)))) == 1
    assert overlap(write(tmp_path, lambda mask: gray(0, 128 if mask[11].any() else 255)(mask))) == 1
    assert "masks with the values 0, 128, 255; all above 0 are object" in caplog.text


def test_what_was_decided_is_said_and_the_usual_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    overlap(write(tmp_path / "plain", gray(0, 255)))
    assert caplog.messages == []
    overlap(write(tmp_path / "noisy", gray(0, 240), ".jpg", quality=75))
    overlap(write(tmp_path / "clear", opaque_where(photograph)))
    overlap(write(tmp_path / "one", gray(1, 2)))
    noisy, clear, one = caplog.messages
    assert "noisy: masks of two levels, about 0 and 240, with noise" in noisy
    assert "above 120 is object" in noisy
    assert "transparent pixels, which are background" in clear
    assert "1 is ground, all above (2) object" in one


def test_masks_that_are_all_object_or_empty_or_inverted_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    paths = write(tmp_path / "some", gray(0, 255))
    gray(255, 255)(square(0)).save(paths[2])
    gray(0, 0)(square(0)).save(paths[3])
    foreground_rule(paths)
    assert "1 of 4 masks are all object (002.png)" in caplog.text
    assert "1 of 4 masks are without an object (003.png)" in caplog.text
    foreground_rule(write(tmp_path / "black_on_white", gray(255, 0)))
    assert "cover most of the images' borders. Are these masks inverted?" in caplog.text


@pytest.mark.parametrize(
    "paint",
    [
        pytest.param(lambda mask: Image.fromarray(np.tile(np.arange(80, dtype=np.uint8) * 3, (64, 1))), id="a ramp"),
        pytest.param(lambda mask: Image.fromarray(photograph(mask).astype(np.uint8)), id="photographs"),
        pytest.param(lambda mask: by_way_of_jpeg(mask).filter(ImageFilter.GaussianBlur(15)), id="a blur"),
    ],
)
def test_values_that_are_no_levels_are_refused(paint: Paint, tmp_path: Path):
    with pytest.raises(DataError, match=r"more than two levels .* Save them as 0 \(ground\) and 255 \(object\)"):
        foreground_rule(write(tmp_path, paint))


def test_three_levels_in_jpeg_are_refused(tmp_path: Path):
    parts = np.where(np.arange(SIZE[1]) < 35, 128, 255)
    paths = write(tmp_path, lambda mask: Image.fromarray((mask * parts).astype(np.uint8)), ".jpg")
    with pytest.raises(DataError, match="more than two levels"):
        foreground_rule(paths)


def test_one_rule_holds_for_the_whole_set(tmp_path: Path):
    """A mask of faint noise alone has no object, though its own two levels could be told."""
    paths = write(tmp_path, gray(0, 255), ".jpg", quality=75)
    Image.fromarray((np.random.default_rng(0).integers(0, 2, SIZE) * 9).astype(np.uint8)).save(paths[3], quality=75)
    assert not foreground_rule(paths).read(paths[3]).any()


def test_damaged_masks_are_named(tmp_path: Path):
    paths = write(tmp_path, gray(0, 255))
    paths[1].write_bytes(paths[1].read_bytes()[:60])
    with pytest.raises(DataError, match=r"001\.png: unreadable mask"):
        foreground_rule(paths)


# --- Folders of images and masks ---------------------------------------------------------------------------


def write_set(root: Path, folders: tuple[str, str], image: str, mask: str, paint: Paint) -> Path:
    for index in range(4):
        for folder, name, drawn in zip(folders, (image, mask), (colors((9, 90, 9), (200, 9, 9)), paint), strict=True):
            (root / folder).mkdir(parents=True, exist_ok=True)
            drawn(square(index)).save(root / folder / name.format(index))
    return root


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{:03d}.jpg", "{:03d}_mask.png"),
        ("{:03d}.JPG", "mask_{:03d}.PNG"),
        ("{:03d}_rgb.png", "{:03d}_gt.png"),
        ("frame-{}0.webp", "frame-{}0-label.bmp"),
        ("{}.jpeg", "{}.jpg"),
    ],
)
def test_masks_are_found_by_names_with_a_common_word_more(image: str, mask: str, tmp_path: Path):
    loaded = load_saliency(write_set(tmp_path, ("images", "masks"), image, mask, gray(0, 255)))
    assert [item.name for item in loaded] == [Path(image.format(index)).stem for index in range(4)]
    for index, item in enumerate(loaded):
        np.testing.assert_array_equal(item.read()[1], square(index))


@pytest.mark.parametrize(
    "folders", [("img", "gt"), ("Imgs", "GT"), ("photos", "segments"), ("JPEGImages", "labels"), ("a", "b"), ("b", "a")]
)
def test_folders_of_other_names_and_masks_stored_in_color(folders: tuple[str, str], tmp_path: Path):
    root = write_set(tmp_path, folders, "{}.png", "{}.png", colors((0, 0, 0), (255, 255, 255)))
    for path in (root / folders[0]).iterdir():
        Image.fromarray(photograph(square(0)).astype(np.uint8)).save(path)
    loaded = load_saliency(root)
    assert {item.image.parent.name for item in loaded} == {folders[0]}
    np.testing.assert_array_equal(loaded[2].read()[1], square(2))


def soft(mask: np.ndarray) -> Image.Image:
    return gray(0, 255)(mask).filter(ImageFilter.GaussianBlur(1))


def test_the_published_rule_is_kept_for_a_published_set_that_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Any value above 0, as in its published scores; of a part of it, or of other people's masks, the middle."""
    root = write_set(tmp_path, ("DUTS-TE-Image", "DUTS-TE-Mask"), "{}.jpg", "{}.png", soft)
    stored = np.array(Image.open(root / "DUTS-TE-Mask" / "0.png"))
    np.testing.assert_array_equal(load_saliency(root)[0].read()[1], stored > 127)
    monkeypatch.setitem(SALIENCY_SETS, "DUTS-TE", 4)
    np.testing.assert_array_equal(load_saliency(root)[0].read()[1], stored > 0)
