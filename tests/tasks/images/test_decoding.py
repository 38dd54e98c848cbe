"""JPEGs decoded on the backbone's device: beside Pillow's squares, and files that the device does not decode."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data import DataError
from data.jpeg import is_marked_rgb
from dino_dense import load_backbone
from tasks import RunOptions, Session, get, run_one
from tasks.copydetect import CopydetectConfig
from tasks.harness.task import no_pictures
from tasks.images import decoding
from tasks.images.features import CLS, Preprocessing, image_features, square_batches
from tasks.knn import KnnConfig
from tests.tasks.images.test_features import photo

CPU = torch.device("cpu")
SQUARE = Preprocessing(64, 56)
Save = Callable[[Path], object]


def squares(paths: Sequence[Path], preprocessing: Preprocessing, workers: int = 0) -> Tensor:
    """[N, 3, S, S], in batches of three."""
    return torch.cat(list(square_batches(paths, preprocessing, CPU, batch_size=3, workers=workers)))


def by_both(paths: Sequence[Path], preprocessing: Preprocessing = SQUARE) -> tuple[Tensor, Tensor]:
    return tuple(squares(paths, replace(preprocessing, decode=way)).int() for way in ("pillow", "device"))  # type: ignore[return-value, arg-type]


def noise(mode: str = "RGB", size: tuple[int, int] = (90, 70)) -> Image.Image:
    """A picture of colored tiles of 10 pixels."""
    rng = np.random.default_rng(1)
    tiles = rng.integers(0, 256, (size[1] // 10, size[0] // 10, 3)).astype(np.uint8)
    return Image.fromarray(tiles).resize(size, Image.Resampling.NEAREST).convert(mode)


def turned(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    noise().save(path, exif=exif)


@pytest.mark.parametrize(
    "preprocessing", [SQUARE, Preprocessing(40, 40, squash=True), Preprocessing(130, 128)], ids=["crop", "squash", "up"]
)
def test_squares_are_close_to_pillows(preprocessing: Preprocessing, tmp_path: Path):
    paths = [photo(tmp_path / f"{side}.jpg", (side, 300 - side)) for side in (60, 110, 131, 200)]
    noise("L").save(tmp_path / "gray.jpg")
    noise().save(tmp_path / "progressive.jpg", progressive=True)
    turned(tmp_path / "turned.jpg")
    paths += [tmp_path / f"{name}.jpg" for name in ("gray", "progressive", "turned")]
    plain, ours = by_both(paths, preprocessing)
    assert (plain - ours).abs().max() <= 4
    assert (plain - ours).abs().float().mean() < 0.1


OTHERS: dict[str, Save] = {
    "a.png": lambda path: noise().save(path),
    "palette.png": lambda path: noise("P").save(path),
    "cmyk.jpg": lambda path: noise("CMYK").save(path),
    "rgb.jpg": lambda path: noise().save(path, keep_rgb=True),
    "png.jpg": lambda path: noise().save(path, format="png"),
}


def test_other_files_are_read_by_pillow(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    paths = [photo(tmp_path / "0.jpg", (80, 90))]
    for name, save in OTHERS.items():
        save(tmp_path / name)
        paths.append(tmp_path / name)
    assert is_marked_rgb((tmp_path / "rgb.jpg").read_bytes())
    assert not is_marked_rgb(paths[0].read_bytes())
    plain, ours = by_both(paths)
    assert torch.equal(plain[1:], ours[1:])
    assert "5 of 6 files were read by Pillow: cpu does not decode them" in caplog.text


def test_worker_processes_send_the_same(tmp_path: Path):
    paths = [photo(tmp_path / f"{index}.jpg", (70 + index, 90)) for index in range(4)]
    OTHERS["a.png"](tmp_path / "a.png")
    device = replace(SQUARE, decode="device")
    paths.insert(2, tmp_path / "a.png")
    assert torch.equal(squares(paths, device), squares(paths, device, workers=1))


def cut(path: Path) -> None:
    noise().save(path)
    path.write_bytes(path.read_bytes()[:-200])


def scrambled(path: Path) -> None:
    noise().save(path, progressive=True)
    encoded = bytearray(path.read_bytes())
    encoded[len(encoded) // 2 : -2] = bytes(0xC4 if index % 3 else 0xFF for index in range(len(encoded) // 2 - 2))
    path.write_bytes(encoded)


BAD: dict[str, Save] = {
    "cut": cut,
    "scrambled": scrambled,
    "text": lambda path: path.write_text("no picture"),
    "empty": lambda path: path.write_bytes(b""),
    "deep": lambda path: Image.fromarray(np.ones((9, 9), np.uint16)).save(path, format="png"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_file_is_refused_as_by_pillow(bad: str, tmp_path: Path):
    paths = [photo(tmp_path / "0.jpg", (80, 90)), tmp_path / "bad.jpg"]
    BAD[bad](paths[1])
    messages = []
    for decode in ("pillow", "device"):
        with pytest.raises(DataError) as raised:
            squares(paths, replace(SQUARE, decode=decode))
        messages.append(str(raised.value))
    assert messages[0] == messages[1]
    assert str(paths[1]) in messages[0]


def test_a_jpeg_that_the_decoder_refuses_is_read_by_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    paths = [photo(tmp_path / f"{index}.jpg", (70 + index, 90)) for index in range(5)]
    refused, decode = paths[1].read_bytes(), decoding.decode_jpegs
    plain, ours = by_both(paths)

    def choosy(jpegs: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        if any(part.numpy().tobytes() == refused for part in jpegs):
            raise RuntimeError("nvjpegDecode failed")
        return decode(jpegs, device)

    monkeypatch.setattr(decoding, "decode_jpegs", choosy)
    mixed = squares(paths, replace(SQUARE, decode="device")).int()
    expected = ours.clone()
    expected[1] = plain[1]
    assert torch.equal(mixed, expected)


def test_want_of_memory_is_no_refused_file(monkeypatch: pytest.MonkeyPatch):
    def full(jpegs: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(decoding, "decode_jpegs", full)
    with pytest.raises(torch.OutOfMemoryError):
        decoding.decoded([torch.zeros(3, dtype=torch.uint8)], CPU)


def test_a_device_without_a_decoder_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def lacking(jpegs: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        raise RuntimeError("not compiled with nvJPEG\nmore")

    monkeypatch.setattr(decoding, "decode_jpegs", lacking)
    with pytest.raises(ValueError, match=r"decodes no JPEGs on cpu \(not compiled with nvJPEG\): use pillow"):
        squares([tmp_path / "never read.jpg"], replace(SQUARE, decode="device"))


@pytest.mark.parametrize("config", [KnnConfig, CopydetectConfig])
def test_both_ways_to_decode_faster_are_one_too_many(config: Callable[..., object]):
    with pytest.raises(ValueError, match="decode is device, and fast_decode reduces"):
        config(decode="device", fast_decode=True)


def test_the_features_have_a_cache_of_their_own(tmp_path: Path):
    paths = [photo(tmp_path / f"{index}.jpg", (300 + index, 400)) for index in range(3)]
    backbone, alone = load_backbone("random:vit_micro_patch8_64"), Session(Path())
    plain, ours, again = (
        image_features(backbone, paths, Preprocessing(64, 64, decode=way), session=alone)[CLS]  # type: ignore[arg-type]
        for way in ("pillow", "device", "pillow")
    )
    assert torch.equal(plain, again)
    assert not torch.equal(plain, ours)
    torch.testing.assert_close(plain, ours, rtol=1e-2, atol=1e-2)


def test_knn_by_both_is_nearly_the_same_and_never_in_one_folder(tmp_path: Path):
    for split in ("train", "val"):
        for kind in ("0", "1"):
            (tmp_path / split / kind).mkdir(parents=True)
            for index in range(4):
                photo(tmp_path / split / kind / f"{index}.jpg", (80 + 40 * int(kind) + index, 90))
    task, out = replace(get("knn"), draw=no_pictures), tmp_path / "out"
    options, config = RunOptions(ckpt="random:vit_micro_patch8_64", device="cpu", out=str(out)), task.smoke
    config = replace(config, data=str(tmp_path))
    plain = run_one(task, options, config).scores[0].value
    device = replace(config, decode="device")
    with pytest.raises(ValueError, match=r"another run \(decode was pillow, now device\)"):
        run_one(task, options, device)
    assert run_one(task, replace(options, out=str(tmp_path / "device")), device).scores[0].value == plain
