"""Small whole data sets of every layout, and ways to break one file of them."""

import functools
import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (64, 64)  # height, width; pixels
Break = Callable[[Path], object]

VOC_ENTRY = (
    "<annotation><object><bndbox><xmin>8</xmin><ymin>8</ymin><xmax>40</xmax><ymax>40</ymax></bndbox></object>"
    "</annotation>"
)


def picture(path: Path, seed: int = 0) -> None:
    """Noise with a bright square, as the file's ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 90, (*SIZE, 3), np.uint8)
    pixels[8:40, 8:40] += 140
    Image.fromarray(pixels).save(path)


def mask(path: Path, ids: int = 1, scale: int = 1, size: tuple[int, int] = SIZE) -> None:
    """Squares of ids 1..ids, times `scale`, as an 8-bit grayscale PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(size, np.uint8)
    for number in range(ids):
        values[8 : 40 - 4 * number, 8 + 4 * number : 40] = (number + 1) * scale
    Image.fromarray(values).save(path)


def text(content: str | bytes) -> Break:
    """Put this content into a file."""
    return lambda path: path.write_bytes(content if isinstance(content, bytes) else content.encode())


# --- Whole sets ---


def davis(root: Path) -> None:
    for name in ("one", "two"):
        for index in range(4):
            picture(root / "JPEGImages" / "480p" / name / f"{index:05d}.jpg", index)
            mask(root / "Annotations" / "480p" / name / f"{index:05d}.png", ids=2)
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("one\ntwo\n")
    shutil.copytree(root / "Annotations" / "480p", root / "found")


def classes(root: Path) -> None:
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            for index in range(4):
                picture(root / split / label / f"{index}.jpg", index)


def pairs(root: Path) -> None:
    for index in range(2):
        picture(root / "images" / f"{index}.jpg", index)
        mask(root / "masks" / f"{index}.png", scale=255)


def voc(root: Path) -> None:
    for index in range(4):
        picture(root / "JPEGImages" / f"{index}.jpg", index)
        mask(root / "SegmentationClass" / f"{index}.png", ids=2)
        (root / "Annotations").mkdir(exist_ok=True)
        (root / "Annotations" / f"{index}.xml").write_text(VOC_ENTRY)
    for kind, lists in (("Segmentation", ("train", "val")), ("Main", ("trainval",))):
        (root / "ImageSets" / kind).mkdir(parents=True)
        for split in lists:
            (root / "ImageSets" / kind / f"{split}.txt").write_text("0\n1\n2\n3\n")


def copydays(root: Path) -> None:
    for index in range(3):
        picture(root / "original" / f"200{index}00.jpg", index)
        picture(root / "strong" / f"200{index}01.jpg", index)


def photographs(root: Path) -> None:
    for index in range(4):
        picture(root / f"{index}.jpg", index)


def ground_truth(**changes: object) -> bytes:
    """A gnd_*.pkl of two queries on three images, with fields of its first answer or of its top changed."""
    answer = {"easy": [0], "hard": [1], "junk": [2], "bbx": [1.0, 1.0, 40.0, 40.0]}
    record: dict[str, object] = {"imlist": ["a", "b", "c"], "qimlist": ["q0", "q1"]}
    record["gnd"] = [answer | {key: value for key, value in changes.items() if key in answer}, answer]
    return pickle.dumps(record | {key: value for key, value in changes.items() if key not in answer})


def revisited(root: Path) -> None:
    for index, name in enumerate(("a", "b", "c", "q0", "q1")):
        picture(root / "jpg" / f"{name}.jpg", index)
    (root / "gnd_roxford5k.pkl").write_bytes(ground_truth())


SETS: dict[str, Callable[[Path], None]] = {
    item.__name__: item for item in (davis, classes, pairs, voc, copydays, photographs, revisited)
}


# --- Ways to break a file ---


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@functools.cache
def _bomb() -> bytes:
    encoded = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(encoded, format="PNG")
    return encoded.getvalue()


def bomb(path: Path) -> None:
    path.write_bytes(_bomb())


def wide(path: Path) -> None:
    Image.fromarray(np.full(SIZE, 40_000, np.uint16)).save(path, format="PNG")


def rgb_mask(path: Path) -> None:
    Image.new("RGB", SIZE[::-1], (0, 128, 0)).save(path)


def float_mask(path: Path) -> None:
    Image.fromarray(np.full(SIZE, 0.5, np.float32)).save(path, format="TIFF")


def values(*found: int) -> Break:
    """A grayscale mask of these values, in turn."""
    stripes = np.resize(np.repeat(np.array(found, np.uint8), 4), SIZE)
    return lambda path: Image.fromarray(stripes).save(path)


def small(path: Path) -> None:
    mask(path, size=(48, 56))


def small_picture(path: Path) -> None:
    Image.new("RGB", (56, 48)).save(path)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def rename(name: str | bytes) -> Break:
    """Give it another name, of bytes where it is no text."""
    return lambda path: os.rename(os.fsencode(path), os.path.join(os.fsencode(path.parent), os.fsencode(name)))  # noqa: PTH104, PTH118


IMAGE_FAULTS: dict[str, Break] = {
    "truncated": cut,
    "zero bytes": text(b""),
    "a text file": text("this is no image\n"),
    "a dangling link": dangling,
    "a bomb": bomb,
}
