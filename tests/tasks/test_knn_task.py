"""k-NN: against a loop written out, on folders of any size, with features kept on disk."""

import os
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data import DataError
from dino_dense import Report, load_backbone
from tasks import RunOptions, Session, get, run_one
from tasks.images.features import CLS, Preprocessing, image_features
from tasks.knn import KnnConfig, knn_votes
from tasks.linear import LinearConfig
from tasks.scores.classification import hits
from tests.device import chosen_name

RANDOM = "random:vit_micro_patch8_64"


def naive_top1(train: torch.Tensor, labels: torch.Tensor, query: torch.Tensor, k: int, temperature: float) -> int:
    """The vote, written out."""
    cosines = [float(F.cosine_similarity(query, other, dim=0)) for other in train]
    votes: Counter[int] = Counter()
    for index in sorted(range(len(train)), key=lambda i: -cosines[i])[:k]:
        votes[int(labels[index])] += np.exp(cosines[index] / temperature)
    return votes.most_common(1)[0][0]


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 30), st.integers(1, 30), st.integers(2, 5), st.integers(0, 1000))
def test_vote_is_the_naive_vote(n: int, k: int, classes: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    train, test = torch.randn(n, 8, generator=generator), torch.randn(5, 8, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    k = min(k, n)
    ((_, ranking),) = knn_votes(train, labels, test, k=[k], temperature=0.07, classes=classes)
    assert ranking[:, 0].tolist() == [naive_top1(train, labels, query, k, 0.07) for query in test]


def test_small_temperature_does_not_overflow():
    train = torch.eye(4)
    ((_, ranking),) = knn_votes(train, torch.arange(4), train, k=[4], temperature=1e-4, classes=4)
    assert ranking[:, 0].tolist() == [0, 1, 2, 3]


def test_more_neighbors_than_images_is_refused():
    with pytest.raises(ValueError, match="only 4 training images"):
        next(knn_votes(torch.eye(4), torch.arange(4), torch.eye(4), k=[5], temperature=0.07, classes=4))


def test_hits_count_the_first_places():
    ranking = torch.tensor([[0, 1, 2], [2, 1, 0], [2, 1, 0]])
    found = hits(ranking, torch.tensor([0, 1, 0]), ["a", "b", "c"])
    assert found["top-1"].tolist() == [100, 0, 0]
    assert found["top-5"].tolist() == [100, 100, 100]
    assert hits(ranking, torch.tensor([0, 1, 0]), ["a", "b", "c"], places=2)["top-5"].tolist() == [100, 100, 0]


def make_folder(root: Path, per_class: dict[str, int]) -> Path:
    """Classes told apart by brightness; train, and the same number of images in val."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number, (name, count) in enumerate(per_class.items()):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(rng.normal(60 + 120 * number, 5, (20, 30, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def run(root: Path, out: Path, **changes: object) -> Report:
    config = KnnConfig(data=str(root), resize=32, crop=32, **changes)  # type: ignore[arg-type]
    return run_one(get("knn"), RunOptions(ckpt=RANDOM, out=str(out), device=chosen_name()), config)


def test_five_images_are_enough(tmp_path: Path):
    report = run(make_folder(tmp_path / "set", {"dark": 2, "light": 3}), tmp_path / "out")
    assert report.scores[0].value == 100
    assert report.scores[0].n == 5
    assert "k = 10, 20, 100, 200 is left out" in report.note
    assert pd.read_csv(tmp_path / "out" / "knn.csv")["k"].tolist() == [5]
    assert report.pictures
    assert all((tmp_path / "out" / picture.file).is_file() for picture in report.pictures)
    assert all(picture.caption.endswith("vote right") for picture in report.pictures)


def test_test_folder_is_as_good_as_val(tmp_path: Path):
    root = make_folder(tmp_path / "set", {"dark": 3, "light": 3})
    (root / "val").rename(root / "test")
    assert run(root, tmp_path / "out", k=(1,)).scores[0].value == 100


def test_features_are_reused_while_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DINO_DENSE_CACHE", str(tmp_path / "cache"))
    root = make_folder(tmp_path / "set", {"dark": 3, "light": 3})
    extracted = []
    original = type(load_backbone(RANDOM)).extract

    def counting(self, images, *args, **kwargs):
        extracted.append(len(images))
        return original(self, images, *args, **kwargs)

    monkeypatch.setattr("dino_dense.backbone.Backbone.extract", counting)
    first = run(root, tmp_path / "a", k=(1,))
    assert sum(extracted) == 12
    again = run(root, tmp_path / "b", k=(1, 3))
    assert sum(extracted) == 12, "the features were in the cache"
    assert again.scores[0].value == first.scores[0].value
    run(root, tmp_path / "c", k=(1,), temperature=0.1)
    assert sum(extracted) == 12, "the vote does not change the features"
    changed = root / "val" / "dark" / "0.png"
    Image.new("RGB", (30, 20), "white").save(changed)
    os.utime(changed, ns=(1, 1))
    assert run(root, tmp_path / "d", k=(1,)).scores[0].value < 100
    assert sum(extracted) == 18, "only the changed folder is extracted again"
    for file in (tmp_path / "cache" / "features").iterdir():
        file.write_bytes(b"damaged")
    run(root, tmp_path / "e", k=(1,))
    assert sum(extracted) == 30


def test_a_cache_that_cannot_be_written_costs_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    root = make_folder(tmp_path / "set", {"dark": 6, "light": 6})
    monkeypatch.setenv("DINO_DENSE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "features").write_text("no folder")
    assert run(root, tmp_path / "out", k=(1,)).scores[0].value == 100
    assert "name another folder in the variable DINO_DENSE_CACHE" in capsys.readouterr().err


def test_folders_of_something_else_are_refused_plainly(tmp_path: Path):
    root = make_folder(tmp_path / "set", {"dark": 6, "light": 6})
    out = tmp_path / "out"
    run(root, out, k=(1,))
    (out / ".report.json.abc.partial").mkdir()  # what a killed run leaves
    run(root, out, k=(1,))
    assert not (out / ".report.json.abc.partial").exists()
    with pytest.raises(ValueError, match=r"another run \(of the task knn, not linear\)"):
        run_one(
            get("linear"), RunOptions(ckpt=RANDOM, out=str(out), device=chosen_name()), LinearConfig(data=str(root))
        )
    (out / "run.json").write_text("")
    with pytest.raises(ValueError, match=r"run\.json: damaged.*Delete .*out, or choose another --out"):
        run(root, out, k=(1,))
    (out / "run.json").unlink()
    (out / "pairs.csv").write_text("")
    with pytest.raises(ValueError, match=r"holds the report of a batch \(pairs\.csv\)"):
        run(root, out, k=(1,))


def test_bad_folders(tmp_path: Path):
    root = make_folder(tmp_path / "set", {"dark": 2})
    with pytest.raises(DataError, match=r"train: only one class"):
        run(root, tmp_path / "out")
    (root / "train" / "light").mkdir()
    with pytest.raises(DataError, match=r"light: no images"):
        run(root, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="expected train/ and val or"):
        run(root / "train", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_truncated_image_is_named(tmp_path: Path):
    root = make_folder(tmp_path / "set", {"dark": 2, "light": 2})
    path = root / "val" / "light" / "1.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"light/1\.jpg"):
        run(root, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_settings_are_refused():
    for changes in ({"k": ()}, {"k": (0,)}, {"temperature": 0.0}, {"crop": 300}):
        with pytest.raises(ValueError, match=r"expected|positive"):
            KnnConfig(**changes)


def test_student_features_are_not_the_teachers(tmp_path: Path):
    """One file, two networks: the cache tells them apart."""
    root = make_folder(tmp_path / "set", {"dark": 3, "light": 3})
    networks = {name: load_backbone(RANDOM, seed=seed).module for name, seed in (("teacher", 0), ("student", 1))}
    torch.save({name: module.state_dict() for name, module in networks.items()}, tmp_path / "full.pth")
    paths = sorted((root / "train").rglob("*.png"))
    found = {}
    for name in networks:
        backbone = load_backbone(str(tmp_path / "full.pth"), network=name)
        found[name] = image_features(backbone, paths, Preprocessing(32, 32), session=Session(Path()))[CLS]
    assert not torch.equal(found["teacher"], found["student"])


@pytest.mark.parametrize(("benchmark", "dataset"), [("auto", "ImageNet-1k"), ("none", None)])
def test_a_user_says_that_a_set_only_looks_like_the_published_one(
    benchmark: Literal["auto", "none"], dataset: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As ImageNet-C does: its names, counts and, resized to them, sizes are ImageNet's."""
    root = make_folder(tmp_path / "set", {"dark": 3, "light": 3})
    monkeypatch.setattr("tasks.images.labeled.classification_set", lambda *data: "ImageNet-1k")
    options = RunOptions(ckpt=RANDOM, out=str(tmp_path / "out"), device=chosen_name(), benchmark=benchmark)
    report = run_one(get("knn"), options, KnnConfig(data=str(root), resize=32, crop=32))
    assert report.data["dataset"] == dataset
