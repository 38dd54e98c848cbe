"""Image features: reduced decoding, and a cache that is mapped, not read, into memory."""

from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.images import read_rgb
from dino_dense import Backbone, load_backbone
from tasks import Session
from tasks.images import features
from tasks.images.features import CLS, Preprocessing, extract_pieces, image_features

RANDOM = "random:vit_micro_patch8_64"
ALONE = Session(Path())


def photo(path: Path, size: tuple[int, int]) -> Path:
    """A smooth picture [H, W] with some grain, as JPEG."""
    rng = np.random.default_rng(0)
    coarse = cv2.resize(rng.integers(0, 256, (6, 8, 3)).astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC)
    grain = rng.normal(0, 4, (*size, 3))
    cv2.imwrite(str(path), np.clip(coarse + grain, 0, 255).astype(np.uint8))
    return path


@pytest.mark.parametrize(
    ("size", "resize", "reduction"),
    [((600, 800), 256, 2), ((600, 800), 300, 2), ((600, 800), 301, 1), ((600, 800), 64, 8), ((200, 900), 256, 1)],
)
def test_jpegs_are_reduced_only_as_far_as_the_resize_allows(
    tmp_path: Path, size: tuple[int, int], resize: int, reduction: int
):
    path = photo(tmp_path / "photo.jpg", size)
    preprocessing = Preprocessing(resize, 32, fast_decode=True)
    picture = preprocessing.read(path)
    assert picture.size == (-(-size[1] // reduction), -(-size[0] // reduction))
    full = preprocessing.transform()(read_rgb(path)).float()
    assert (preprocessing.transform()(picture) - full).abs().mean() < 1


def test_full_decoding_is_the_default_and_has_a_cache_of_its_own(tmp_path: Path):
    paths = [photo(tmp_path / f"{index}.jpg", (300 + index, 400)) for index in range(3)]
    backbone = load_backbone(RANDOM)
    plain, fast = (
        image_features(backbone, paths, Preprocessing(64, 64, fast_decode=fast), session=ALONE)[CLS]
        for fast in (False, True)
    )
    again = image_features(backbone, paths, Preprocessing(64, 64), session=ALONE)[CLS]
    assert torch.equal(plain, again)
    assert not torch.equal(plain, fast)
    assert (plain - fast).norm() < 0.1 * plain.norm()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc/self/maps")
def test_cached_features_are_mapped_from_their_file(tmp_path: Path):
    paths = [photo(tmp_path / f"{index}.jpg", (64, 64)) for index in range(3)]
    backbone = load_backbone(RANDOM)
    extracted = image_features(backbone, paths, Preprocessing(64, 64), session=ALONE, batch_size=2)[CLS]
    cached = image_features(backbone, paths, Preprocessing(64, 64), session=ALONE)[CLS]
    assert torch.equal(extracted, cached)
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [line[0].split("-") for line in lines if line[-1].endswith("-cls1.safetensors")]
    assert any(int(start, 16) <= cached.data_ptr() < int(end, 16) for start, end in spans)


def test_processes_extract_the_same_pieces_whatever_their_caches_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else each would gather another piece at the same moment, and one's features would be kept as another's."""
    paths = [photo(tmp_path / f"{index}.jpg", (64, 64)) for index in range(3)]
    backbone = load_backbone(RANDOM)
    image_features(backbone, paths, Preprocessing(64, 64), session=ALONE, pieces=["cls2"])
    asked = []

    def spy(backbone: Backbone, images: torch.Tensor, pieces: Collection[str]) -> dict[str, torch.Tensor]:
        asked.append(list(pieces))
        return extract_pieces(backbone, images, pieces)

    monkeypatch.setattr(features, "extract_pieces", spy)
    monkeypatch.setattr("dino_dense.distributed.gather_objects", lambda mine: [*mine, "mean", "cls2", CLS])
    session = Session(Path(), pieces=frozenset({"cls2", CLS}))
    image_features(backbone, paths, Preprocessing(64, 64), session=session, pieces=["mean"])
    assert asked == [sorted(["mean", "cls2", CLS])]
