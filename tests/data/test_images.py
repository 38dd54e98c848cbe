"""Finding and reading image files, and class folders."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import DataError
from data.images import (
    UnlabelledImages,
    class_folders,
    labelled_splits,
    list_images,
    natural_key,
    read_rgb,
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
def test_a_truncated_file_is_an_error_that_names_it_never_a_grey_picture(suffix: str, keep: float, tmp_path: Path):
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


def test_unlabelled_images_read_what_was_written(tmp_path: Path):
    path = save(tmp_path / "sub" / "a.png")
    images = UnlabelledImages([path])
    assert len(images) == 1
    np.testing.assert_array_equal(np.asarray(images[0]), PIXELS)
    assert images.names(tmp_path) == ["sub/a.png"]


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
    train, val = labelled_splits(split)
    assert val.class_names == train.class_names
    assert val.labels == [1]
    (split / "val").rename(split / "test")
    assert labelled_splits(split)[1].labels == [1]


def test_a_class_only_in_the_evaluation_split_is_named_with_the_nearest(split: Path):
    save(split / "val" / "dogs" / "1.png")
    with pytest.raises(DataError, match=r"dogs: a class that the training split does not have\. Did you mean dog\?"):
        labelled_splits(split)


def test_one_class_an_empty_class_and_no_classes(split: Path):
    (split / "train" / "fish").mkdir()
    with pytest.raises(DataError, match="fish: no images in it"):
        class_folders(split / "train")
    with pytest.raises(DataError, match=r"only one class \(dog\)"):
        class_folders(split / "val")
    with pytest.raises(DataError, match="no class folders in it"):
        class_folders(split / "val" / "dog")


def test_a_missing_split_says_what_was_found(split: Path):
    (split / "val").rename(split / "valid")
    with pytest.raises(FileNotFoundError, match=r"expected train/ and val or test/ in it, found train, valid"):
        labelled_splits(split)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        labelled_splits(split / "nowhere")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path):
    path = save(tmp_path / "secret.png")
    path.chmod(0)
    with pytest.raises(DataError, match=r"secret\.png"):
        read_rgb(path)
