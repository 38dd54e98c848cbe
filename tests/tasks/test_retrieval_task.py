"""Retrieval: average precision against loops written out, and whole runs on small folders of either layout."""

import dataclasses
import itertools
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
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
from data.revisited import load_revisited
from dino_dense import Report, load_backbone
from tasks import RunOptions, Session, get, run_one
from tasks.images.descriptors import Thumbnails, describe_all, multi_scale_cls
from tasks.retrieval import RetrievalConfig, class_search, published_dataset
from tasks.scores import retrieval as scores
from tasks.scores.retrieval import average_precision, positive_ranks, precision_at, query_scores, rankings
from tests.device import chosen_name

THREE_SCALES = (1.0, 2**-0.5, 0.5)  # utils.multi_scale
RANDOM = "random:vit_micro_patch8_64"
PROJECT = Path(__file__).parents[2]
DEADLINE = settings(deadline=None, max_examples=60)


# --- Average precision ---


def naive_precision_recall(order: Sequence[int], positive: set[int], junk: set[int]) -> list[tuple[float, float]]:
    """(recall, precision) after each image of the list, junk skipped, positives counted; before any it is (0, 1)."""
    curve, seen, found = [(0.0, 1.0)], 0, 0
    for index in order:
        if index in junk:
            continue
        seen += 1
        found += index in positive
        curve.append((found / len(positive), found / seen))
    return curve


def naive_ap(order: Sequence[int], positive: set[int], junk: set[int]) -> float:
    """Trapezoids under that curve."""
    curve = naive_precision_recall(order, positive, junk)
    return sum((r1 - r0) * (p0 + p1) / 2 for (r0, p0), (r1, p1) in itertools.pairwise(curve))


@st.composite
def lists(draw: st.DrawFn) -> tuple[np.ndarray, list[int], list[int]]:
    """An order of a database, positives (one or more) and junk, apart."""
    count = draw(st.integers(1, 25))
    order = np.array(draw(st.permutations(range(count))))
    kinds = draw(st.lists(st.sampled_from("pjn"), min_size=count, max_size=count).filter(lambda kinds: "p" in kinds))
    positive, junk = ([index for index, kind in enumerate(kinds) if kind == letter] for letter in "pj")
    return order, positive, junk


def ranks_of(order: np.ndarray, positive: Sequence[int], junk: Sequence[int]) -> np.ndarray:
    return positive_ranks(order, np.array(positive, np.int64), np.array(junk, np.int64), len(order))


@DEADLINE
@given(lists())
def test_average_precision_is_the_area_under_the_curve(case: tuple[np.ndarray, list[int], list[int]]):
    order, positive, junk = case
    ours = average_precision(ranks_of(order, positive, junk), len(positive))
    assert ours == pytest.approx(naive_ap(order.tolist(), set(positive), set(junk)), abs=1e-12)
    assert 0 <= ours <= 1


@DEADLINE
@given(lists())
def test_scores_do_not_depend_on_junk_or_on_the_numbering(case: tuple[np.ndarray, list[int], list[int]]):
    order, positive, junk = case
    expected = query_scores(ranks_of(order, positive, junk), len(positive))
    without = np.array([index for index in order if index not in junk])
    numbers = {index: place for place, index in enumerate(without)}
    renumbered = ranks_of(np.arange(len(without)), [numbers[index] for index in positive], [])
    assert query_scores(renumbered, len(positive)) == expected
    assert all(0 <= value <= 100 for value in expected.values())


@given(st.integers(1, 10), st.integers(0, 10))
def test_all_positives_first_is_perfect(positives: int, others: int):
    found = query_scores(ranks_of(np.arange(positives + others), range(positives), []), positives)
    assert set(found.values()) == {100.0}


def test_precision_counts_up_to_the_last_positive():
    """revisitop: kq = min(max(pos), k), so three positives in the first three places are all that can be had."""
    assert precision_at(np.array([0, 1, 2]), 10) == 1
    assert precision_at(np.array([0, 3]), 10) == 2 / 4
    assert precision_at(np.array([0, 3, 30]), 10) == 2 / 10
    assert precision_at(np.array([0, 3]), 1) == 1
    assert precision_at(np.array([30]), 10) == 0


def test_recall_is_whether_one_was_found():
    found = query_scores(np.array([4, 7, 90]), 3)
    assert [found[f"recall@{k}"] for k in (1, 5, 10)] == [0, 100, 100]


def test_a_list_cut_short_keeps_the_steps_of_recall():
    order = np.array([3, 0])
    ranks = positive_ranks(order, np.array([0, 1]), np.array([], np.int64), 10)
    assert ranks.tolist() == [1]
    assert average_precision(ranks, 2) == pytest.approx((0 / 1 + 1 / 2) / 4)
    assert average_precision(np.array([], np.int64), 2) == 0


def test_impossible_lists_are_refused():
    with pytest.raises(ValueError, match="2 ranks of 1 positives"):
        average_precision(np.array([0, 1]), 1)
    with pytest.raises(ValueError, match="0 ranks of 0 positives"):
        average_precision(np.array([], np.int64), 0)
    assert all(np.isnan(value) for value in query_scores(np.array([], np.int64), 0).values())


# --- Ranking ---


def test_ranking_is_by_cosine_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    queries, database = torch.randn(7, 5, generator=generator), torch.randn(30, 5, generator=generator)
    expected = [
        sorted(range(30), key=lambda index: -float(F.cosine_similarity(query, database[index], dim=0)))
        for query in queries
    ]
    for block in (1, 3 * 16 * 30, 2**28):
        monkeypatch.setattr(scores, "RANKING_BYTES", block)
        assert [order.tolist() for order in rankings(queries, database)] == expected
        assert [order.tolist() for order in rankings(queries, database, top=4)] == [order[:4] for order in expected]
    assert [order.tolist() for order in rankings(3 * queries, database, top=99)] == expected


def test_equals_come_in_the_order_of_the_database():
    database = torch.tensor([[0.0, 1], [1, 0], [0, 2], [1, 0], [2, 0]]).repeat(100, 1)
    expected = [index for index in range(500) if index % 5 in (1, 3, 4)]
    for top in (None, 500, 400):
        (order,) = rankings(torch.tensor([[1.0, 0]]), database, top=top)
        assert order[:300].tolist() == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_numbers_are_refused(value: float):
    broken = torch.eye(3)
    broken[1, 2] = value
    with pytest.raises(ValueError, match="features of the database are not finite"):
        next(rankings(torch.eye(3), broken))
    with pytest.raises(ValueError, match="features of the queries are not finite"):
        next(rankings(broken, torch.eye(3)))


# --- Descriptors ---


def picture(seed: int, size: tuple[int, int]) -> Image.Image:
    """Blobs, (width, height)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def test_one_scale_is_the_class_token_of_whole_patches():
    backbone = load_backbone(RANDOM)
    images = torch.rand(1, 3, 45, 60, generator=torch.Generator().manual_seed(0))
    expected = backbone.extract(images[..., :40, :56], {"cls"}).cls
    torch.testing.assert_close(multi_scale_cls(backbone, images, (1.0,)), expected)


def test_scales_are_summed():
    backbone = load_backbone(RANDOM)
    images = torch.rand(1, 3, 47, 61, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(1, backbone.embed_dim)
    for scale in THREE_SCALES:
        height, width = int(47 * scale), int(61 * scale)
        resized = F.interpolate(images, scale_factor=scale, mode="bilinear") if scale != 1 else images
        assert resized.shape[-2:] == (height, width)
        expected += backbone.extract(resized[..., : height // 8 * 8, : width // 8 * 8], {"cls"}).cls
    torch.testing.assert_close(multi_scale_cls(backbone, images, THREE_SCALES), expected)


def test_images_of_one_size_are_described_together_and_come_in_order():
    images = [torch.full((3, 8, 8 + 8 * (index % 2)), float(index)) for index in range(7)]
    batches = []

    def describe(batch: torch.Tensor) -> torch.Tensor:
        batches.append(len(batch))
        return batch.mean((2, 3))

    found = describe_all(images, 7, describe, session=Session(Path()), batch_size=3)  # type: ignore[arg-type]
    assert found[:, 0].tolist() == list(range(7))
    assert batches == [3, 3, 1]


def test_thumbnails_shrink_and_never_grow(tmp_path: Path):
    picture(0, (100, 50)).save(tmp_path / "wide.png")
    assert Thumbnails([tmp_path / "wide.png"], 40)[0].shape == (3, 20, 40)
    assert Thumbnails([tmp_path / "wide.png"], 400)[0].shape == (3, 50, 100)
    with pytest.raises(DataError, match=r"wide\.png: 40 x 20 pixels when shrunk, expected 24 or more"):
        Thumbnails([tmp_path / "wide.png"], 40, least=24)[0]


def test_a_box_is_cut_and_shrunk_as_the_whole_would_be(tmp_path: Path):
    path = tmp_path / "a.png"
    picture(0, (100, 50)).save(path)
    cut = Thumbnails([path], 50, boxes=[(20.0, 10.0, 60.0, 40.0)])[0].float()
    assert cut.shape == (3, 15, 20)
    whole = Thumbnails([path], 50)[0][:, 5:20, 10:30]
    assert (cut - whole).abs().mean() < 5
    assert Thumbnails([path], 50, boxes=[(-5.0, 10.0, 300.0, 400.0)])[0].shape == (3, 20, 50)
    with pytest.raises(DataError, match=r"a\.png: 100 x 50 pixels, and the query's box .* is outside"):
        Thumbnails([path], 50, boxes=[(200.0, 10.0, 300.0, 400.0)])[0]


# --- The revisited layout ---


@pytest.fixture
def landmarks(tmp_path: Path) -> Path:
    """Twelve images and three queries; the last has only junk."""
    root = tmp_path / "roxford5k"
    (root / "jpg").mkdir(parents=True)
    for index in range(12):
        picture(index, (70 + 3 * index, 90 - 2 * index)).save(root / "jpg" / f"db{index}.jpg")
    for index in range(3):
        picture(index, (80, 60)).save(root / "jpg" / f"q{index}.jpg")
    box = [10.0, 10.0, 60.0, 50.0]
    record = {
        "imlist": [f"db{index}" for index in range(12)],
        "qimlist": [f"q{index}" for index in range(3)],
        "gnd": [
            {"easy": np.array([0, 5]), "hard": np.array([7]), "junk": np.array([1, 2]), "bbx": box},
            {"easy": np.array([], int), "hard": np.array([1, 8]), "junk": np.array([3]), "bbx": box},
            {"easy": [], "hard": [], "junk": [2, 4], "bbx": box},
        ],
    }
    (root / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(record))
    return root


def run(root: Path, out: Path, **changes: object) -> Report:
    config = RetrievalConfig(data=str(root), **changes)  # type: ignore[arg-type]
    return run_one(get("retrieval"), RunOptions(ckpt=RANDOM, out=str(out), device=chosen_name()), config)


def naive_map(root: Path, positive: Sequence[str], junk: Sequence[str], size: int) -> float:
    """The protocol written out, from files to the mean in percent."""
    found, backbone = load_revisited(root), load_backbone(RANDOM)

    def describe(path: Path) -> torch.Tensor:
        image = Image.open(path).convert("RGB")
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
        return backbone.extract(pixels[..., : image.height // 8 * 8, : image.width // 8 * 8], {"cls"}).cls[0]

    database, values = [describe(path) for path in found.database], []
    for path, labels in zip(found.queries, found.labels, strict=True):
        query = describe(path)
        order = sorted(range(len(database)), key=lambda i: -float(F.cosine_similarity(query, database[i], dim=0)))
        right, ignored = ({int(index) for name in names for index in labels[name]} for names in (positive, junk))
        if right:
            values.append(100 * naive_ap(order, right, ignored))
    return float(np.mean(values))


PROTOCOLS = {
    "easy": (["easy"], ["junk", "hard"], 1),
    "medium": (["easy", "hard"], ["junk"], 2),
    "hard": (["hard"], ["junk", "easy"], 2),
}


def test_revisited_is_the_protocol_written_out(landmarks: Path, tmp_path: Path):
    report = run(landmarks, tmp_path / "out", image_size=64)
    table = pd.read_csv(tmp_path / "out" / "retrieval.csv").set_index("protocol")
    for name, (positive, junk, answered) in PROTOCOLS.items():
        assert table["mAP"][name] == pytest.approx(naive_map(landmarks, positive, junk, 64), abs=1e-3)
        assert table["queries"][name] == answered
    assert report.scores[0].value == pytest.approx(table["mAP"]["medium"])
    assert report.scores[0].n == 2
    assert "1 queries have no positive" in report.note
    assert report.data["dataset"] is None
    samples = pd.read_csv(tmp_path / "out" / "samples.csv")
    assert samples["sample"].tolist() == ["q0", "q1", "q2"]
    assert samples["mAP"].isna().tolist() == [False, False, True]
    assert len(report.pictures) == 2
    assert all((tmp_path / "out" / picture.file).is_file() for picture in report.pictures)


def test_difficulty_chooses_the_scores(landmarks: Path, tmp_path: Path):
    easy = run(landmarks, tmp_path / "easy", image_size=64, difficulty="easy")
    assert easy.scores[0].value == pytest.approx(naive_map(landmarks, *PROTOCOLS["easy"][:2], 64), abs=1e-3)
    assert easy.scores[0].n == 1
    with pytest.raises(ValueError, match="holds the results of another run"):
        run(landmarks, tmp_path / "easy", image_size=64, difficulty="hard")


def test_cropping_changes_the_queries_only(landmarks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watching(queries, database, *, top=None):
        seen.append((queries, database))
        return rankings(queries, database, top=top)

    monkeypatch.setattr("tasks.retrieval.rankings", watching)
    for crop in (False, True):
        run(landmarks, tmp_path / f"{crop}", image_size=64, crop_queries=crop)
    (whole, database), (cut, same) = seen
    assert torch.equal(database, same)
    assert all(not torch.allclose(a, b) for a, b in zip(whole, cut, strict=True))


def test_an_image_too_small_for_the_scales_is_named(landmarks: Path, tmp_path: Path):
    picture(0, (90, 9)).save(landmarks / "jpg" / "db4.jpg")
    with pytest.raises(DataError, match=r"db4\.jpg: .* expected 16 or more a side"):
        run(landmarks, tmp_path / "out", image_size=64, scales=(1.0, 0.5))
    assert not (tmp_path / "out").exists()


def test_options_of_the_other_layout_are_refused(landmarks: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="read as revisited, where resize, crop mean nothing"):
        run(landmarks, tmp_path / "out", resize=64, crop=64)
    with pytest.raises(ValueError, match="read as classes, where difficulty, scales mean nothing"):
        run(class_set(tmp_path / "set"), tmp_path / "out", difficulty="hard", scales=THREE_SCALES)
    assert not (tmp_path / "out").exists()


def test_no_answer_at_all_is_an_error(landmarks: Path, tmp_path: Path):
    file = landmarks / "gnd_roxford5k.pkl"
    record = pickle.loads(file.read_bytes())
    for entry in record["gnd"]:
        entry["easy"] = []
    file.write_bytes(pickle.dumps(record))
    with pytest.raises(DataError, match="no query has an answer that counts as easy"):
        run(landmarks, tmp_path / "out", image_size=64, difficulty="easy")


def test_a_published_set_is_complete(landmarks: Path):
    oxford = dataclasses.replace(load_revisited(landmarks), database=[Path()] * 4993, queries=[Path()] * 70)
    paris = dataclasses.replace(oxford, name="rparis6k", database=[Path()] * 6322)
    assert published_dataset(oxford, RetrievalConfig()) == "Revisited Oxford, medium"
    assert published_dataset(paris, RetrievalConfig(difficulty="hard")) == "Revisited Paris, hard"
    assert published_dataset(dataclasses.replace(oxford, queries=[Path()] * 69), RetrievalConfig()) is None


# --- The class layout ---


def class_set(root: Path, per_class: int = 3) -> Path:
    """Two classes of pictures, in val/; the images of a class are the same file."""
    for number, name in enumerate(("cat", "dog")):
        folder = root / "val" / name
        folder.mkdir(parents=True)
        for index in range(per_class):
            picture(number, (40, 30)).save(folder / f"{index}.png")
    return root


def test_duplicates_are_found_and_the_query_itself_is_not(tmp_path: Path):
    report = run(class_set(tmp_path / "set"), tmp_path / "out", resize=32, crop=32)
    assert {score.value for score in report.scores} == {100.0}
    assert report.scores[0].n == 6
    assert pd.read_csv(tmp_path / "out" / "classes.csv")["class"].tolist() == ["cat", "dog"]
    search = class_search(tmp_path / "set", RetrievalConfig(data=str(tmp_path / "set")))
    (relevance,) = search.groups.values()
    for query in range(6):
        positive, junk = relevance(query)
        assert junk.tolist() == [query]
        assert sorted([*positive, query]) == ([0, 1, 2] if query < 3 else [3, 4, 5])


def test_an_image_alone_in_its_class_asks_nothing(tmp_path: Path):
    root = class_set(tmp_path / "set")
    (root / "val" / "bird").mkdir()
    picture(9, (40, 30)).save(root / "val" / "bird" / "0.png")
    report = run(root, tmp_path / "out", resize=32, crop=32)
    assert report.scores[0].n == 6
    assert "1 queries have no positive" in report.note
    lonely = class_set(tmp_path / "lonely", per_class=1)
    with pytest.raises(DataError, match="one image in each class"):
        run(lonely, tmp_path / "out2", resize=32, crop=32)


def test_splits(tmp_path: Path):
    root = class_set(tmp_path / "set")
    (root / "val").rename(root / "query")
    with pytest.raises(DataError, match="only one class"):
        run(root, tmp_path / "out", resize=32, crop=32)
    assert run(root, tmp_path / "a", resize=32, crop=32, split="query").scores[0].n == 6
    assert run(root / "query", tmp_path / "b", resize=32, crop=32).scores[0].n == 6
    with pytest.raises(FileNotFoundError, match="gallery: no such folder"):
        run(root, tmp_path / "c", resize=32, crop=32, split="gallery")


def test_bad_settings_are_refused():
    for changes in ({"scales": ()}, {"scales": (1.0, -0.5)}, {"image_size": 0}, {"crop": 300}, {"crop": 0}):
        with pytest.raises(ValueError, match=r"expected"):
            RetrievalConfig(**changes)


@pytest.mark.slow
def test_two_processes_find_what_one_finds(landmarks: Path, tmp_path: Path):
    run(landmarks, tmp_path / "one", image_size=64)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tasks.retrieval"]
    options = ["--ckpt", RANDOM, "--data", str(landmarks), "--image-size", "64", "--out", str(tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, *launcher, *options, "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    one, two = (pd.read_csv(tmp_path / name / "samples.csv") for name in ("one", "two"))
    pd.testing.assert_frame_equal(one, two)
