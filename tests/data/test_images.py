"""Finding and reading image files, and class folders."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from data import DataError
from data.files import IMAGE_SUFFIXES, natural_key
from data.images import (
    UnlabeledImages,
    class_folders,
    labeled_splits,
    list_images,
    open_picture,
    read_rgb,
    read_upright,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray = PIXELS, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def test_images_are_found_nested_and_flat_in_natural_order(tmp_path: Path):
    for name in ("b10.jpg", "b9.jpg", "a/2.PNG", "a/c/1.jpeg", ".hidden/x.jpg", "a/._2.png"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    found = [path.relative_to(tmp_path).as_posix() for path in list_images(tmp_path)]
    assert found == ["a/2.PNG", "a/c/1.jpeg", "b9.jpg", "b10.jpg"]


def test_natural_order_survives_numbers_beside_words():
    names = ["x", "10", "9", "a9", "a10b", "a", "009"]
    ordered = [path.name for path in sorted(map(Path, names), key=natural_key)]
    assert ordered == ["009", "9", "10", "a", "a9", "a10b", "x"]


def test_folders_without_images(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no images in it\. Expected files ending in .*\.jpg"):
        list_images(tmp_path)
    with pytest.raises(DataError, match="expected a folder, found a file"):
        list_images(save(tmp_path / "a.png"))


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "CMYK"])
def test_every_8_bit_mode_comes_out_as_rgb(mode: str, tmp_path: Path):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    Image.fromarray(PIXELS).convert(mode).save(path)
    assert read_rgb(path).mode == "RGB"
    assert read_rgb(path).size == (40, 30)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp"])
@pytest.mark.parametrize("keep", [0, 10, 0.6])
def test_a_truncated_file_is_an_error_that_names_it_never_a_gray_picture(suffix: str, keep: float, tmp_path: Path):
    path = save(tmp_path / f"broken.{suffix}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep > 1 else keep * len(whole))])
    with pytest.raises(DataError, match=rf"broken\.{suffix}: .*Replace or remove it"):
        read_rgb(path)


def test_files_that_are_no_pictures(tmp_path: Path):
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    with pytest.raises(DataError, match=r"a\.jpg: not an image"):
        read_rgb(tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError):
        read_rgb(tmp_path / "none.jpg")


def test_16_bit_pictures_are_refused_not_clipped(tmp_path: Path):
    path = save(tmp_path / "deep.png", (PIXELS[..., 0].astype(np.uint16) * 200))
    with pytest.raises(DataError, match=r"deep\.png: I;16 pixels, expected 8 bits"):
        read_rgb(path)


def test_unlabeled_images_read_what_was_written(tmp_path: Path):
    path = save(tmp_path / "sub" / "a.png")
    images = UnlabeledImages([path])
    assert len(images) == 1
    np.testing.assert_array_equal(np.asarray(images[0]), PIXELS)


@pytest.mark.parametrize(
    ("name", "mode", "options"),
    [
        ("a.jpg", "RGB", {}),
        ("a.jpg", "RGB", {"progressive": True, "quality": 95, "subsampling": 0}),
        ("a.jpg", "L", {}),
        ("a.jpg", "CMYK", {}),
        ("a.png", "P", {}),
        ("a.png", "RGBA", {}),
        ("a.webp", "RGB", {}),
    ],
)
def test_an_opened_picture_has_the_pixels_of_read_rgb(name: str, mode: str, options: dict, tmp_path: Path):
    path = tmp_path / name
    Image.fromarray(PIXELS).convert(mode).save(path, **options)
    picture = open_picture(path)
    assert picture.size == (30, 40)
    assert len(picture.reductions) == (4 if name == "a.jpg" and mode != "CMYK" else 1)
    np.testing.assert_array_equal(picture.decode(), np.asarray(read_rgb(path)))


def test_orientation_tags_are_ignored_as_in_read_rgb(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    path = save(tmp_path / "a.jpg", exif=exif)
    assert open_picture(path).decode().shape == (30, 40, 3)
    np.testing.assert_array_equal(open_picture(path).decode(), np.asarray(read_rgb(path)))


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_jpeg_is_decoded_at_reduced_size(reduction: int, tmp_path: Path):
    smooth = cv2.resize(PIXELS[:4, :4], (401, 299), interpolation=cv2.INTER_CUBIC)
    picture = open_picture(save(tmp_path / "a.jpg", smooth, quality=95))
    reduced = picture.decode(reduction)
    assert reduced.shape == (-(-299 // reduction), -(-401 // reduction), 3)
    h, w = 299 // reduction, 401 // reduction  # without what is left over at the border
    whole = picture.decode()[: h * reduction, : w * reduction]
    expected = cv2.resize(whole, (w, h), interpolation=cv2.INTER_AREA)
    assert np.abs(reduced[:h, :w].astype(int) - expected).mean() < 2
    with pytest.raises(ValueError, match="reduction is 3, expected one of"):
        picture.decode(3)


def test_only_jpegs_are_decoded_at_reduced_size(tmp_path: Path):
    with pytest.raises(ValueError, match="reduction is 2, expected one of"):
        open_picture(save(tmp_path / "a.png")).decode(2)


@pytest.mark.parametrize(
    ("suffix", "keep"), [*((suffix, keep) for suffix in ("jpg", "png") for keep in (0, 1, 10, 0.3, 0.6)), ("jpg", -1)]
)
def test_opening_a_truncated_file_is_an_error_that_names_it(suffix: str, keep: float, tmp_path: Path):
    path = save(tmp_path / f"broken.{suffix}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if abs(keep) >= 1 else keep * len(whole))])
    with pytest.raises(DataError, match=rf"broken\.{suffix}: .*Replace or remove it"):
        open_picture(path).decode()


def test_opening_16_bits_and_what_is_no_picture(tmp_path: Path):
    with pytest.raises(DataError, match=r"deep\.png: I;16 pixels, expected 8 bits"):
        open_picture(save(tmp_path / "deep.png", PIXELS[..., 0].astype(np.uint16) * 200))
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    with pytest.raises(DataError, match=r"a\.jpg: not an image"):
        open_picture(tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError):
        open_picture(tmp_path / "none.jpg")


def test_a_jpeg_whose_size_is_a_lie_is_an_error(tmp_path: Path):
    """More pixels than anyone decodes: OpenCV refuses, and the file is named."""
    path = save(tmp_path / "huge.jpg")
    encoded = path.read_bytes()
    frame = encoded.index(b"\xff\xc0")
    path.write_bytes(encoded[: frame + 5] + b"\xff\xdc\xff\xdc" + encoded[frame + 9 :])
    with pytest.raises(DataError, match=r"huge\.jpg: cannot be read whole"):
        open_picture(path).decode()


@pytest.fixture
def split(tmp_path: Path) -> Path:
    for name in ("train/cat/1.png", "train/cat/2.png", "train/dog/1.png", "val/dog/1.png"):
        save(tmp_path / name)
    return tmp_path


def test_class_folders_become_labels(split: Path):
    train = class_folders(split / "train")
    assert train.class_names == ["cat", "dog"]
    assert train.labels == [0, 0, 1]
    assert [path.parent.name for path in train.paths] == ["cat", "cat", "dog"]


def test_an_evaluation_split_takes_the_training_classes(split: Path):
    train, val = labeled_splits(split)
    assert val.class_names == train.class_names
    assert val.labels == [1]
    (split / "val").rename(split / "test")
    assert labeled_splits(split)[1].labels == [1]


@pytest.mark.parametrize(("train", "val"), [("train", "valid"), ("training", "validation"), ("Train", "Test")])
def test_splits_have_other_names_too(split: Path, train: str, val: str):
    (split / "train").rename(split / train)
    (split / "val").rename(split / val)
    assert [len(part.paths) for part in labeled_splits(split)] == [3, 1]


LEFTOVERS = [
    "train/__MACOSX/._1.jpg",
    "train/__MACOSX/cat/1.jpg",
    "train/cat/._1.png",
    "train/cat/Thumbs.db",
    "train/cat/@eaDir/1.png/SYNOPHOTO_THUMB_S.jpg",
    "train/cat/.ipynb_checkpoints/1-checkpoint.png",
    "train/$RECYCLE.BIN/1.jpg",
    "train/cat/#recycle/1.jpg",
    "train/.thumbnails/1.jpg",
]


def test_leftovers_of_systems_are_no_classes_and_no_pictures(split: Path, caplog: pytest.LogCaptureFixture):
    for name in LEFTOVERS:
        save(split / "train" / "seed.jpg")
        (split / name).parent.mkdir(parents=True, exist_ok=True)
        (split / "train" / "seed.jpg").rename(split / name)
    train, _ = labeled_splits(split)
    assert train.class_names == ["cat", "dog"]
    assert len(train.paths) == 3
    assert len(list_images(split / "train")) == 3
    assert caplog.messages == [], "nobody put them there"


def test_every_picture_that_pillow_reads_counts(split: Path):
    """By its ending, or, where that says little, by its first bytes."""
    for ending in ("gif", "jfif", "jpe", "webp", "tga", "jp2", "avif", "JPEG", "pbm"):
        save(split / "train" / "cat" / f"of_{ending}.{ending}") if ending not in ("jfif", "jpe") else save(
            split / "train" / "cat" / f"of_{ending}.{ending}", format="JPEG"
        )
    for name in ("phone.heic", "no_ending"):
        save(split / "train" / "cat" / name, format="JPEG")
    paths = class_folders(split / "train").paths
    assert len(paths) == 3 + 9 + 2
    assert all(read_rgb(path).size == (40, 30) for path in paths)


def test_endings_are_those_of_pillow():
    """A new Pillow may read more: then the ending is added, or named here with the reason."""
    stubs = {".bufr", ".grib", ".h5", ".hdf", ".emf", ".wmf", ".iim"}  # known to Pillow, but not decoded by it
    programs, videos = {".eps", ".ps"}, {".mpg", ".mpeg"}  # Ghostscript would run
    known = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    assert known - IMAGE_SUFFIXES == stubs | programs | videos


def test_a_line_counts_what_is_left_out(split: Path, caplog: pytest.LogCaptureFixture):
    for name in ("cat/a.txt", "cat/b.TXT", "dog/clip.mp4", "dog/real.heic", "labels.csv", "dog/LICENSE"):
        (split / "train" / name).write_bytes(b"no picture")
    save(split / "train" / "beside.png")
    class_folders(split / "train")
    first, second = caplog.messages
    assert first.startswith(f"{split / 'train'}: 5 files are skipped")
    assert all(part in first for part in ("2 .txt", "1 .mp4", "1 .heic", "1 no ending"))
    assert "1 images are skipped, since they are not in a class folder (beside.png" in second
    caplog.clear()
    list_images(split)
    assert "6 files are skipped" in caplog.messages[0]
    assert "1 .csv" in caplog.messages[0]


def test_small_copies_in_folders_are_named(split: Path, caplog: pytest.LogCaptureFixture):
    save(split / "train" / "cat" / "Thumbnails" / "1.png")
    assert len(class_folders(split / "train").paths) == 4
    assert "1 of the pictures are in folders of this name" in caplog.text


def test_linked_folders_are_read_once(split: Path, tmp_path_factory: pytest.TempPathFactory, caplog):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    save(elsewhere / "sub" / "9.png")
    (split / "train" / "dog" / "more").symlink_to(elsewhere)
    (split / "train" / "fish").symlink_to(elsewhere / "sub")
    train = class_folders(split / "train")
    assert train.class_names == ["cat", "dog", "fish"]
    assert [train.labels.count(label) for label in range(3)] == [2, 2, 1]
    (split / "train" / "dog" / "again").symlink_to(elsewhere / "sub")
    assert class_folders(split / "train").labels.count(1) == 2
    assert "read already" in caplog.text
    (split / "train" / "bird").symlink_to(split / "train" / "cat")
    with pytest.raises(DataError, match=r"cat: the same folder as .*bird, by a link"):
        class_folders(split / "train")


@pytest.mark.parametrize("target", ["train", "train/cat", "."])
def test_a_link_without_end_is_refused(split: Path, target: str):
    (split / "train" / "cat" / "loop").symlink_to(split / target)
    with pytest.raises(DataError, match=r"loop: a link to a folder above itself"):
        list_images(split / "train")


def test_a_class_only_in_the_evaluation_split_is_named_with_the_nearest(split: Path):
    save(split / "val" / "dogs" / "1.png")
    with pytest.raises(DataError, match=r"dogs: a class that the training split does not have\. Did you mean dog\?"):
        labeled_splits(split)


def test_one_class_an_empty_class_and_no_classes(split: Path):
    (split / "train" / "fish").mkdir()
    with pytest.raises(DataError, match="fish: no images in it"):
        class_folders(split / "train")
    with pytest.raises(DataError, match=r"only one class \(dog\)"):
        class_folders(split / "val")
    with pytest.raises(DataError, match="no class folders in it"):
        class_folders(split / "val" / "dog")


def test_a_missing_split_says_what_was_found(split: Path):
    (split / "val").rename(split / "evaluation")
    with pytest.raises(FileNotFoundError, match=r"expected train/ and val or .*test.*/ in it, found evaluation, train"):
        labeled_splits(split)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        labeled_splits(split / "nowhere")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path):
    path = save(tmp_path / "secret.png")
    path.chmod(0)
    with pytest.raises(DataError, match=r"secret\.png"):
        read_rgb(path)


GRAY = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (16, 1))


MODES_OF = {
    "png": ["L", "RGB", "P", "I;16", "1", "RGBA", "LA"],
    "tif": ["L", "RGB", "P", "CMYK", "I;16", "1", "RGBA", "LA"],
    "jpg": ["L", "RGB", "CMYK"],
}


@pytest.mark.parametrize(("ending", "mode"), [(ending, mode) for ending in MODES_OF for mode in MODES_OF[ending]])
def test_own_pictures_of_any_mode_are_rgb(tmp_path: Path, mode: str, ending: str):
    path = tmp_path / f"a.{ending}"
    wide = Image.fromarray(GRAY.astype(np.uint16) * 257)
    (wide if mode == "I;16" else Image.fromarray(GRAY).convert(mode)).save(path)
    rgb = read_upright(path)
    assert rgb.shape == (16, 64, 3)
    assert rgb.dtype == np.uint8
    expected = np.asarray(Image.fromarray(GRAY).convert("1").convert("L")) if mode == "1" else GRAY
    assert np.abs(rgb.astype(int) - expected[..., None]).max() <= (3 if ending == "jpg" else 1)


def test_transparent_pixels_are_white(tmp_path: Path):
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2] = (200, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert read_upright(tmp_path / "a.png")[:, 0].tolist() == [[200, 0, 0]] * 2 + [[255, 255, 255]] * 2


def test_a_rotated_photograph_stands_upright_only_where_a_person_looks(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise
    Image.fromarray(GRAY).save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert np.abs(read_upright(tmp_path / "a.jpg")[..., 0].astype(int) - np.rot90(GRAY, k=-1)).max() <= 3
    assert read_rgb(tmp_path / "a.jpg").size == (64, 16)


def test_own_pictures_that_cannot_be_read(tmp_path: Path):
    Image.fromarray(GRAY.astype(np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"a\.tif: F pixels, expected 8 or 16 bits"):
        read_upright(tmp_path / "a.tif")
    (tmp_path / "b.png").write_bytes(b"text")
    with pytest.raises(DataError, match=r"b\.png: not an image"):
        read_upright(tmp_path / "b.png")
    Image.fromarray(GRAY).resize((640, 640)).save(tmp_path / "c.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "c.png").read_bytes()[:300])
    with pytest.raises(DataError, match=r"c\.png: cannot be read whole"):
        read_upright(tmp_path / "c.png")
