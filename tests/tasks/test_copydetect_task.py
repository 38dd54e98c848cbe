"""Copy detection: attacks that repeat, whitening that whitens, and whole runs on small folders."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data import DataError
from data.copydays import Copy, Copydays
from dino_dense import Report, load_backbone
from tasks import RunOptions, get, run_one
from tasks.copydetect import CopydetectConfig, open_copies, published_dataset
from tasks.images.attacks import AttackedImages, apply_attack, check_attacks
from tasks.images.descriptors import EIGENVALUE_FLOOR, fit_whitening
from tasks.images.features import Preprocessing, extract_pieces
from tasks.scores.retrieval import rankings
from tests.device import chosen_name

RANDOM = "random:vit_micro_patch8_64"


def picture(seed: int, size: tuple[int, int] = (60, 48)) -> Image.Image:
    """Blobs, (width, height)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def attacked(image: Image.Image, attack: str, seed: int = 0) -> np.ndarray:
    return np.asarray(apply_attack(image, attack, np.random.default_rng(seed)), float)


# --- Attacks ---


@given(st.integers(1, 99), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_a_crop_cuts_that_much_of_the_surface_away(percent: int, seed: int):
    image = picture(0, (200, 150))
    cut = attacked(image, f"crop{percent}", seed)
    height, width, _ = cut.shape
    assert width / 200 * height / 150 == pytest.approx(1 - percent / 100, abs=0.01)
    whole = np.asarray(image, float)
    places = [
        (top, left)
        for top in range(150 - height + 1)
        for left in range(200 - width + 1)
        if (whole[top, left] == cut[0, 0]).all() and (whole[top + height - 1, left + width - 1] == cut[-1, -1]).all()
    ]
    assert any(np.array_equal(whole[top : top + height, left : left + width], cut) for top, left in places)


def test_crops_fall_in_different_places():
    windows = {attacked(picture(0), "crop50", seed).tobytes() for seed in range(8)}
    assert len(windows) > 4


@pytest.mark.parametrize("attacks", [("jpeg75", "jpeg20", "jpeg8", "jpeg3"), ("blur1", "blur2", "blur5", "blur20")])
def test_harder_levels_change_more(attacks: tuple[str, ...]):
    image = picture(1)
    changes = [np.abs(attacked(image, attack) - np.asarray(image, float)).mean() for attack in attacks]
    assert changes == sorted(changes)
    assert 0 < changes[0] < changes[-1]


def test_a_blur_is_relative_to_the_image():
    """Blurring a picture twice the size is the same picture."""
    large = attacked(picture(1, (240, 192)), "blur5")
    small = attacked(picture(1, (120, 96)), "blur5")
    shrunk = np.asarray(Image.fromarray(large.astype(np.uint8)).resize((120, 96), Image.Resampling.BOX), float)
    assert np.abs(shrunk - small).mean() < 2


def test_a_print_is_paler_and_tilted():
    black = Image.new("RGB", (100, 80))
    seen = attacked(black, "print")
    assert seen.shape == (80, 100, 3)
    assert seen[30:50, 40:60].mean() == pytest.approx(0.3 * 255, abs=5)
    assert seen[0, 0].mean() > 200, "paper around the tilted print"


def test_attacks_depend_on_seed_attack_and_image_only(tmp_path: Path):
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for index, path in enumerate(paths):
        picture(index).save(path)
    attacks = ("crop50", "print")
    every = AttackedImages(paths, range(4), attacks, seed=3)
    some = AttackedImages([paths[1], paths[3]], [1, 3], attacks[::-1], seed=3)
    assert len(every) == 8
    assert len(some) == 4
    for ours, theirs in ((0, 5), (1, 7), (2, 1), (3, 3)):
        assert some[ours].tobytes() == every[theirs].tobytes() == every[theirs].tobytes()
    other = AttackedImages(paths, range(4), attacks, seed=4)
    assert all(other[index].tobytes() != every[index].tobytes() for index in range(8))


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        (("crop",), "unknown attack 'crop': expected cropN"),
        (("rotate5",), "unknown attack 'rotate5'"),
        (("print3",), "unknown attack 'print3'"),
        (("crop100",), "after crop is expected to be 1 to 99"),
        (("jpeg0",), "after jpeg is expected to be 1 to 95"),
        (("jpeg3", "jpeg3"), "expected one or more, each once"),
        ((), "expected one or more"),
    ],
)
def test_words_that_are_no_attack(attacks: tuple[str, ...], message: str):
    with pytest.raises(ValueError, match=message):
        check_attacks(attacks)
    with pytest.raises(ValueError, match=message):
        CopydetectConfig(attacks=attacks)


# --- Whitening ---


def skewed(count: int = 200, channels: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, channels, generator=generator) @ torch.randn(channels, channels, generator=generator) + 3


def test_centered_whitening_gives_the_identity_covariance():
    features = skewed()
    white = fit_whitening(features, centered=True)(features)
    torch.testing.assert_close(torch.cov(white.T, correction=0), torch.eye(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(white.mean(0), torch.zeros(6), atol=1e-4, rtol=0)


def test_the_published_whitening_is_the_formula():
    """Mean off the features, second moments about zero; the floor on eigenvalues."""
    train, other = skewed(), skewed(20) * 2
    values, axes = np.linalg.eigh(train.double().numpy().T @ train.double().numpy() / len(train))
    expected = (other.double().numpy() - train.double().numpy().mean(0)) @ axes / np.sqrt(values)
    found = fit_whitening(train, centered=False)(other).double().numpy()
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, rtol=1e-4, atol=1e-4)  # axes may be mirrored
    moments = fit_whitening(train, centered=False)
    uncentered = (train.double() @ moments.axes).numpy()
    np.testing.assert_allclose(uncentered.T @ uncentered / len(train), np.eye(6), atol=1e-6)


def test_directions_without_spread_are_not_blown_up():
    features = skewed()
    features[:, 0] = 0
    whitening = fit_whitening(features, centered=True)
    largest = torch.linalg.eigvalsh(torch.cov(features.double().T, correction=0)).max()
    assert whitening.axes.norm(dim=0).max() == pytest.approx(float((EIGENVALUE_FLOOR * largest) ** -0.5))


def test_whitening_needs_numbers():
    with pytest.raises(ValueError, match="from 1 features: expected 2 or more"):
        fit_whitening(torch.ones(1, 3), centered=True)
    with pytest.raises(ValueError, match="all finite"):
        fit_whitening(torch.tensor([[1.0, float("nan")], [0, 1]]), centered=True)


# --- Whole runs ---


def folder(root: Path, seeds: range) -> Path:
    root.mkdir(parents=True)
    for seed in seeds:
        picture(seed).save(root / f"{seed}.png")
    return root


def run(root: Path, out: Path, seed: int = 0, **changes: object) -> Report:
    settings = {"data": str(root), "image_size": 32, **changes}
    config = CopydetectConfig(**settings)  # type: ignore[arg-type]
    return run_one(get("copydetect"), RunOptions(ckpt=RANDOM, out=str(out), device=chosen_name(), seed=seed), config)


ATTACKS = ("crop30", "jpeg5", "print")


def test_a_run_is_the_protocol_written_out(tmp_path: Path):
    root = folder(tmp_path / "set", range(8))
    report = run(root, tmp_path / "out", attacks=ATTACKS, top=3)
    config = CopydetectConfig(data=str(root), attacks=ATTACKS)
    backbone, transform = load_backbone(RANDOM), Preprocessing(32, 32, squash=True).transform()

    def describe(image: Image.Image) -> torch.Tensor:
        pieces = extract_pieces(backbone, transform(image)[None], ["cls1", "gem"])
        return torch.cat([pieces["cls1"], pieces["gem"]], dim=1)[0]

    copies = open_copies(config)
    database = [describe(Image.open(path)) for path in copies.originals]
    expected = []
    for image, (right,) in zip(copies.images(0), copies.positives, strict=True):
        query = describe(image)
        order = sorted(range(8), key=lambda index: -float(F.cosine_similarity(query, database[index], dim=0)))
        rank = order.index(right)
        expected.append(100.0 * ((rank == 0) + 1 / (rank + 1)) / 2 if rank < 3 else 0.0)
    samples = pd.read_csv(tmp_path / "out" / "samples.csv")
    np.testing.assert_allclose(samples["mAP"], expected, atol=1e-3)
    assert samples["sample"][0] == "crop30/0.png"
    assert report.scores[0].n == 24
    table = pd.read_csv(tmp_path / "out" / "attacks.csv")
    assert table["attack"].tolist() == list(ATTACKS)
    assert table["mAP"].mean() == pytest.approx(report.scores[0].value)
    assert len(report.pictures) == 6
    assert all((tmp_path / "out" / picture.file).is_file() for picture in report.pictures)


def test_the_seed_draws_the_attacks(tmp_path: Path):
    root = folder(tmp_path / "set", range(12))
    first, again, _ = (
        run(root, tmp_path / f"{place}", seed, attacks=("crop80",)) for place, seed in enumerate((0, 0, 1))
    )
    assert first.scores == again.scores
    tables = [pd.read_csv(tmp_path / f"{place}" / "samples.csv")["mAP"].tolist() for place in range(3)]
    assert tables[0] == tables[1] != tables[2]


def test_fewer_queries_are_the_same_queries(tmp_path: Path):
    root = folder(tmp_path / "set", range(9))
    run(root, tmp_path / "all", attacks=ATTACKS)
    run(root, tmp_path / "some", attacks=ATTACKS, max_queries=3)
    every, some = (pd.read_csv(tmp_path / name / "samples.csv").set_index("sample") for name in ("all", "some"))
    assert some.index.tolist() == [f"{attack}/{index}.png" for attack in ATTACKS for index in (0, 4, 8)]
    pd.testing.assert_frame_equal(some, every.loc[some.index])


def test_distractors_can_only_push_the_original_back(tmp_path: Path):
    root = folder(tmp_path / "set", range(8))
    run(root, tmp_path / "alone", attacks=ATTACKS)
    others = folder(tmp_path / "others", range(100, 140))
    report = run(root, tmp_path / "among", attacks=ATTACKS, distractors=str(others))
    alone, among = (pd.read_csv(tmp_path / name / "samples.csv")["mAP"] for name in ("alone", "among"))
    assert (among <= alone + 1e-9).all()
    assert (among < alone).any()
    assert "48 images searched" in report.note
    with pytest.raises(DataError, match=r"0\.png: an original, and a distractor too"):
        run(root, tmp_path / "out", distractors=str(root))
    assert not (tmp_path / "out").exists()


def test_whitening_is_learned_from_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root, others = folder(tmp_path / "set", range(6)), folder(tmp_path / "others", range(50, 90))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watching(queries, database, *, top=None):
        seen.append((queries, database))
        return rankings(queries, database, top=top)

    monkeypatch.setattr("tasks.copydetect.rankings", watching)
    run(root, tmp_path / "others_searched", attacks=ATTACKS, distractors=str(others))
    for centered in (False, True):
        run(root, tmp_path / f"{centered}", attacks=ATTACKS, whiten=str(others), centered_whitening=centered)
    (queries, database), *whitened = seen
    for centered, (white_queries, white_database) in zip((False, True), whitened, strict=True):
        whiten = fit_whitening(database[6:], centered=centered)
        torch.testing.assert_close(white_queries, whiten(queries))
        torch.testing.assert_close(white_database, whiten(database[:6]))


def test_whitening_is_part_of_the_run(tmp_path: Path):
    root, others = folder(tmp_path / "set", range(6)), folder(tmp_path / "others", range(50, 90))
    report = run(root, tmp_path / "white", attacks=ATTACKS, whiten=str(others))
    assert "Whitened by 40 images, 256 dimensions" in report.note
    plain = run(root, tmp_path / "plain", attacks=ATTACKS)
    assert "Not whitened" in plain.note
    assert plain.data["sha256"] != report.data["sha256"]
    centered = run(root, tmp_path / "centered", attacks=ATTACKS, whiten=str(others), centered_whitening=True)
    assert centered.data["sha256"] == report.data["sha256"]
    picture(200).save(others / "more.png")
    with pytest.raises(ValueError, match=r"holds the results of another run .*data_sha256"):
        run(root, tmp_path / "white", attacks=ATTACKS, whiten=str(others))


@pytest.fixture
def copydays(tmp_path: Path) -> Path:
    """Five photographs; the strong copies are other pictures, but for one."""
    root = tmp_path / "copydays"
    for name in ("original", "strong", "jpegqual/75"):
        (root / name).mkdir(parents=True)
    for index in range(5):
        picture(index).save(root / "original" / f"20{index}000.jpg")
        picture(index).save(root / "jpegqual" / "75" / f"20{index}000.jpg", quality=75)
        picture(index if index == 0 else 30 + index).save(root / "strong" / f"20{index}001.jpg")
    return root


def test_strong_copies_are_the_headline(copydays: Path, tmp_path: Path):
    report = run(copydays, tmp_path / "out")
    table = pd.read_csv(tmp_path / "out" / "attacks.csv").set_index("attack")
    assert table.index.tolist() == ["strong", "jpegqual/75"]
    assert table["mAP"]["jpegqual/75"] == 100
    assert report.scores[0].value == pytest.approx(table["mAP"]["strong"])
    assert report.scores[0].value < 100
    assert report.scores[0].n == report.data["n"] == 5
    samples = pd.read_csv(tmp_path / "out" / "samples.csv")
    assert samples["sample"].tolist() == [f"strong/20{index}001.jpg" for index in range(5)]
    assert samples["mAP"][0] == 100
    assert len(pd.read_csv(tmp_path / "out" / "queries.csv")) == 10


def test_without_strong_copies_all_count(copydays: Path, tmp_path: Path):
    (copydays / "strong").rename(tmp_path / "elsewhere")
    report = run(copydays, tmp_path / "out")
    assert report.scores[0].value == 100
    assert "mAP over all attacks" in report.note


def test_options_about_attacks_say_nothing_about_copydays(copydays: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="read as Copydays, where attacks, max_queries mean nothing"):
        run(copydays, tmp_path / "out", attacks=ATTACKS, max_queries=3)
    report = run(copydays, tmp_path / "folder", layout="folder", attacks=("jpeg75",))
    assert report.data["n"] == 15


def test_the_published_data_are_whole_and_have_further_images():
    paths = [Path(f"{index}") for index in range(20_000)]
    found = Copydays(Path(), paths[:157], [Copy(path, "strong", [0]) for path in paths[:229]])
    further = {"distractors": paths[:10_000], "whiten": paths}
    assert published_dataset(found, further) == "Copydays strong, 10k distractors, whitened"
    assert published_dataset(found, {**further, "whiten": []}) is None
    assert published_dataset(dataclasses.replace(found, originals=paths[:156]), further) is None


def test_bad_settings_are_refused():
    for changes in ({"image_size": 0}, {"top": 0}, {"max_queries": 0}, {"centered_whitening": True}):
        with pytest.raises(ValueError, match="expected"):
            CopydetectConfig(**changes)  # type: ignore[arg-type]
