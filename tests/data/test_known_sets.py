"""A published data set is known by counts, by names and by the sizes of its images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.known_sets import CLASSIFICATION_SETS, DISCOVERY_SETS, classification_set, discovery_set
from data.notices import captured

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NUMBERS = [str(number) for number in range(10)]


def picture(path: Path, width: int, height: int) -> Path:
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
    return path


def known(tmp_path: Path, names: list[str], sides: list[int], counts: tuple[int, int] | None = None) -> str | None:
    """Of a folder with as many images as a published set, which are copies of a few files."""
    files = [picture(tmp_path / f"{index}.png", side, 32) for index, side in enumerate(sides)]
    train, test = counts or next(rest for classes, *rest in CLASSIFICATION_SETS if classes == len(names))
    return classification_set(tmp_path, names, (files * train)[:train], (files * test)[:test])


def test_cifar_by_its_names_and_its_side(tmp_path: Path):
    with captured() as lines:
        assert known(tmp_path, CIFAR10, [32]) == "CIFAR-10"
        assert known(tmp_path, CIFAR10, [32], (50_000, 9_999)) is None
    assert not lines, "nothing is said of a set that is known, or has other counts"


@pytest.mark.parametrize(
    ("names", "sides", "differs"),
    [
        ([*NUMBERS[:9], "cat"], [32], "other class names"),
        (["my " + name for name in CIFAR10], [32], "other class names"),
        (CIFAR10, [96], "images of other sizes"),
        (CIFAR10, [32, 33, 33], "images of other sizes"),
    ],
)
def test_counts_alone_are_no_published_set(tmp_path: Path, names: list[str], sides: list[int], differs: str):
    with captured() as lines:
        assert known(tmp_path, names, sides) is None
    assert any(differs in line and "CIFAR-10" in line for line in lines)


def test_a_thousand_other_things_and_imagenet_of_one_size_are_not_imagenet(tmp_path: Path):
    things = [f"thing {index}" for index in range(1000)]
    assert known(tmp_path, things, [40, 50, 50]) is None
    imagenet = next(entry for entry in CLASSIFICATION_SETS.values() if entry.name == "ImageNet-1k")
    synsets = (Path(pytest.importorskip("timm").__file__).parent / "data/_info/imagenet_synsets.txt").read_text()
    assert imagenet.has_classes(synsets.split())
    assert not imagenet.has_classes(["n00000000", *synsets.split()[1:]])
    assert known(tmp_path, synsets.split(), [40, 50, 50]) == "ImageNet-1k"
    assert known(tmp_path, synsets.split(), [64]) is None, "ImageNet 64, or ImageNet-C"


@pytest.mark.parametrize(("names", "same"), [(range(102), True), (range(1, 103), True), (range(2, 104), False)])
def test_classes_of_numbers_are_all_numbers_of_their_range(names: range, same: bool):
    flowers = next(entry for entry in CLASSIFICATION_SETS.values() if entry.name == "Flowers-102")
    assert flowers.has_classes([f"{number:03d}" for number in names]) == same


def test_boxes_are_a_published_set_by_the_names_of_their_images():
    images = DISCOVERY_SETS["VOC07 trainval"].images
    assert discovery_set("voc", False, [Path(f"{number:06d}.jpg") for number in range(images)]) == "VOC07 trainval"
    assert discovery_set("voc", False, [Path(f"mine_{number}.jpg") for number in range(images)]) is None
    assert discovery_set("coco", False, [Path(f"{number:06d}.jpg") for number in range(images)]) is None
