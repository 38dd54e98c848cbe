"""In-context segmentation: the task against a naive search, its runs, readings and refusals."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from data import DataError
from data.masks import write_mask
from dino_dense import Backbone, Report, load_backbone
from tasks import RunOptions, Session, get, run_one
from tasks.incontext import IncontextConfig, builder_of, open_data
from tasks.semantic.readings import mapping_of, read_matrices
from tasks.semantic.squares import Squares, side_of
from tests.data.test_segmentation import halves, make_tree
from tests.data.test_segmentation_layouts import ade20k
from tests.device import chosen_name

RANDOM = "random:vit_micro_patch8_64"
PLAIN = {"size": 32, "mean": None, "std": None, "augment": False, "epochs": 1, "memory_size": 0, "neighbors": (3,)}


def tree(root: Path) -> Path:
    train = {"t0": halves(0, 1), "t1": halves(1, 2), "t2": halves(2, 255), "t3": halves(0, 2)}
    return make_tree(root, {"train": train, "val": {"v0": halves(1, 0), "v1": halves(2, 1)}})


def run(root: Path, out: Path, **changes: object) -> Report:
    config = IncontextConfig(data=str(root), **{**PLAIN, **changes})  # type: ignore[arg-type]
    return run_one(get("incontext"), RunOptions(ckpt=RANDOM, out=str(out), device=chosen_name()), config)


def scores(report: Report) -> dict[str, float]:
    return {score.metric: score.value for score in report.scores}


def naive(backbone: Backbone, data, k: int, temperature: float) -> np.ndarray:
    """Predictions [N, S, S] by sorting every similarity."""
    size, patch, classes = 32, backbone.patch_size, len(data.splits.class_names)

    def read(pairs):
        squares = Squares(pairs, size, "bilinear")
        images, ids = zip(*(squares[index, 0] for index in range(len(pairs))), strict=True)
        features = backbone.extract(torch.stack(images) / 255).patches.flatten(2).transpose(1, 2).flatten(0, 1)
        return F.normalize(features, dim=1), torch.stack(ids)

    (memory, ids), (queries, _) = read(data.splits.train), read(data.splits.val)
    ids = torch.where(ids == 255, 0, ids.long())
    shares = torch.stack(
        [
            F.one_hot(ids[n, y : y + patch, x : x + patch].flatten(), classes).float().mean(0)
            for n in range(len(ids))
            for y in range(0, size, patch)
            for x in range(0, size, patch)
        ]
    )
    similarity = queries @ memory.T
    order = similarity.argsort(dim=1, descending=True)[:, :k]
    weights = (similarity.gather(1, order) / temperature).softmax(1)
    soft = (weights[..., None] * shares[order]).sum(1)
    maps = soft.view(-1, size // patch, size // patch, classes).permute(0, 3, 1, 2)
    return F.interpolate(maps, (size, size), mode="bilinear").argmax(1).numpy()


def test_the_task_is_the_naive_search(tmp_path: Path):
    root = tree(tmp_path / "voc")
    data = open_data(IncontextConfig(data=str(root), **PLAIN))  # type: ignore[arg-type]
    predicted = naive(load_backbone(RANDOM), data, 3, 0.02)
    truth = np.stack([Squares(data.splits.val, 32, "bilinear")[index, 0][1].numpy() for index in range(2)])
    iou = [100 * ((predicted == c) & (truth == c)).sum() / ((predicted == c) | (truth == c)).sum() for c in range(3)]
    report = run(root, tmp_path / "out", matching="own")
    assert scores(report)["mIoU"] == pytest.approx(np.mean(iou), abs=0.1)
    assert scores(report)["accuracy"] == pytest.approx(100 * (predicted == truth).mean(), abs=0.1)
    assert report.scores[0].n == 2
    assert "64 patches of 128 values" in report.note


def test_readings_are_all_in_the_table(tmp_path: Path):
    report = run(tree(tmp_path / "voc"), tmp_path / "out", draws=(1, 2), memory_size=40)
    table = pd.read_csv(tmp_path / "out" / "readings.csv")
    assert table["run"].tolist() == ["draw 1", "draw 2"]
    assert table["mIoU hungarian, absent zero"].mean() == pytest.approx(scores(report)["mIoU"])
    assert table["mIoU own, absent zero"].mean() == pytest.approx(scores(report)["mIoU-own"])
    assert "standard deviation" in report.note
    assert (table["mIoU hungarian, absent zero"] >= table["mIoU own, absent zero"] - 1e-9).all()


def test_matching_and_absent_classes():
    """Classes 0 and 1 are swapped by the predictions; class 2 is nowhere."""
    matrices = np.array([[[0, 8, 0], [6, 0, 0], [0, 0, 0]]] * 2, np.int32)
    own, matched = (mapping_of(matrices, name) for name in ("own", "hungarian"))
    assert read_matrices(matrices, own, "left out").mean() == 0
    assert read_matrices(matrices, matched, "left out").mean() == 100
    assert read_matrices(matrices, matched, "zero").mean() == pytest.approx(200 / 3)
    assert read_matrices(matrices, matched, "zero", counted=2).mean() == 100


def test_the_memory_is_bounded_and_rare_classes_come_first(tmp_path: Path):
    """Of each image 3 patches in 2 epochs; a class of one patch in 16 is taken more often than by chance."""
    rare = np.zeros((32, 32), np.uint8)
    rare[:8, :8] = 1
    root = make_tree(tmp_path / "voc", {"train": {f"t{i}": rare for i in range(40)}, "val": {"v": rare}})
    config = IncontextConfig(data=str(root), **{**PLAIN, "memory_size": 240, "epochs": 2})  # type: ignore[arg-type]
    data = open_data(config)
    session = Session(out=tmp_path / "out", device=torch.device("cpu"))
    memory = builder_of(load_backbone(RANDOM), data.splits, config, session).read(data.subsets[0], 42)
    assert memory.features.shape == (240, 128)
    assert memory.labels.shape == (240, 2)
    assert (memory.labels.sum(1) == 64).all()
    assert (memory.labels[:, 1] > 0).float().mean() > 0.25, "3 of 16 would be 0.19 at most"
    torch.testing.assert_close(memory.features.norm(dim=1), torch.ones(240))


def test_void_is_background_or_dropped(tmp_path: Path):
    data = {"train": {"a": halves(255, 1, (32, 32)), "b": halves(0, 2, (32, 32))}, "val": {"v": halves(0, 1, (32, 32))}}
    root = make_tree(tmp_path / "voc", data)
    rows = {}
    for void in ("background", "dropped"):
        for readout in ("soft", "vote"):
            config = IncontextConfig(data=str(root), **{**PLAIN, "void": void, "readout": readout})  # type: ignore[arg-type]
            opened = open_data(config)
            session = Session(out=tmp_path / "out", device=torch.device("cpu"))
            memory = builder_of(load_backbone(RANDOM), opened.splits, config, session).read((0, 1), 0)
            rows[void, readout] = len(memory.features)
            assert memory.classes() == {0, 1, 2}
    assert rows == {
        ("background", "soft"): 32,
        ("background", "vote"): 32,
        ("dropped", "soft"): 24,
        ("dropped", "vote"): 24,
    }


def test_votes_choose_neighbors_on_held_out_images(tmp_path: Path):
    train = {f"t{i}": halves(i % 3, (i + 1) % 3) for i in range(20)}
    root = make_tree(tmp_path / "voc", {"train": train, "val": {"v0": halves(1, 0), "v1": halves(2, 1)}})
    votes = {"readout": "vote", "void": "dropped", "standardize": True, "distance": ("cosine", "l2")}
    report = run(root, tmp_path / "out", **votes, neighbors=(1, 3), matching="own", absent="left out")
    assert scores(report)["mIoU"] > 90, "gray levels are the classes"
    table = pd.read_csv(tmp_path / "out" / "readings.csv")
    assert table["neighbors"][0] in (1, 3)
    assert table["memory"][0].startswith("320 patches")
    with pytest.raises(ValueError, match="too few to hold one of 10 out"):
        run(tree(tmp_path / "small"), tmp_path / "other", **votes)


def test_a_part_of_a_published_set_is_a_set_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Numbers of a part stand beside published ones of the part, never beside those of all training images."""
    monkeypatch.setattr("tasks.semantic.splits.pixel_set", lambda val, train: "ADE20K val")
    monkeypatch.setattr("data.known_sets.LISTED_PARTS", {"ADE20K val": {2: 2}})
    root = tree(tmp_path / "voc")
    listed = tmp_path / "part.txt"
    listed.write_text("t3\nt1\n")
    named = {
        "all": IncontextConfig(data=str(root)),
        "half": IncontextConfig(data=str(root), fraction=2, draws=(0, 1)),
        "five": IncontextConfig(data=str(root), lists=(str(listed),) * 5),
        "own": IncontextConfig(data=str(root), lists=(str(listed),)),
    }
    datasets = {name: open_data(config).facts.dataset for name, config in named.items()}
    assert datasets == {"all": "ADE20K val", "half": "ADE20K val, 1/2", "five": "ADE20K val, 1/2", "own": None}


@pytest.mark.parametrize(("part", "number"), [("", 39.3), (", 1/8", 33.2), (", 1/128", 22.6)])
def test_published_numbers_of_parts(part: str, number: float):
    report = Report(
        task="incontext",
        status="ok",
        checkpoint={"official": True, "name": "vit_small_patch14_reg4_dinov2.lvd142m"},
        data={"dataset": f"ADE20K val{part}"},
        presets=("dip",),
    )
    known = report.published("mIoU")
    assert known is not None
    assert known.value == number
    assert report.differences(known) == (known.differs,)


@pytest.mark.parametrize(("augment", "images"), [(False, 4 + 2), (True, 3 * 4 + 2)])
def test_draws_compute_an_unchanged_image_once(
    augment: bool, images: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen, extract = [], Backbone.extract

    def counted(self: Backbone, batch: torch.Tensor, *others: object, **named: object):
        seen.append(len(batch))
        return extract(self, batch, *others, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Backbone, "extract", counted)
    changes = {"augment": augment, "memory_size": 8}
    together = run(tree(tmp_path / "data"), tmp_path / "together", draws=(0, 1, 2), **changes)
    assert sum(seen) == images + 2, "and the two pictures"
    alone = [run(tmp_path / "data", tmp_path / f"{draw}", draws=(draw,), **changes) for draw in range(3)]
    assert scores(together)["mIoU"] == pytest.approx(np.mean([scores(one)["mIoU"] for one in alone]))


def test_fractions_and_lists(tmp_path: Path):
    root = tree(tmp_path / "voc")
    half = open_data(IncontextConfig(data=str(root), fraction=2, draws=(0, 1, 2)))
    assert [len(subset) for subset in half.subsets] == [2, 2, 2]
    assert len(set(half.subsets)) > 1
    assert half.subsets == open_data(IncontextConfig(data=str(root), fraction=2, draws=(0, 1, 2))).subsets
    listed = tmp_path / "part.txt"
    listed.write_text("t3.jpg\nt1\n")
    assert open_data(IncontextConfig(data=str(root), lists=(str(listed),))).subsets == ((3, 1),)
    listed.write_text("t3\nx7\n")
    with pytest.raises(DataError, match="'x7' is no image of the training split"):
        open_data(IncontextConfig(data=str(root), lists=(str(listed),)))
    with pytest.raises(DataError, match="no part of 1/8"):
        open_data(IncontextConfig(data=str(root), fraction=8))


def test_a_class_that_the_memory_lacks(tmp_path: Path):
    root = tree(tmp_path / "voc")
    write_mask(root / "SegmentationClass" / "t0.png", halves(3, 3))
    for name in ("t1", "t2", "t3"):
        write_mask(root / "SegmentationClass" / f"{name}.png", halves(0, 2))
    with pytest.raises(ValueError, match=r"the memory lacks class 1, which images to score have"):
        run(root, tmp_path / "out")
    assert not (tmp_path / "out" / "report.json").exists()
    report = run(root, tmp_path / "half", fraction=2)
    assert "lacks" in report.note


def test_an_empty_or_a_small_memory_is_refused(tmp_path: Path):
    root = tree(tmp_path / "voc")
    with pytest.raises(ValueError, match=r"the memory is empty: memory_size 3 .* Raise --memory-size to 4"):
        run(root, tmp_path / "a", memory_size=3)
    with pytest.raises(ValueError, match=r"100 neighbors of a memory of 64 patches"):
        run(root, tmp_path / "b", neighbors=(100,))


def test_the_other_of_ade20k_is_in_the_memory_and_not_scored(tmp_path: Path):
    ade20k(tmp_path)
    write_mask(tmp_path / "annotations" / "validation" / "ADE_val_1.png", halves(0, 3))
    report = run(tmp_path, tmp_path / "out", neighbors=(1,), matching="own")
    samples = pd.read_csv(tmp_path / "out" / "samples.csv")
    assert samples["accuracy union pixels"].sum() == 32 * 16, "the half that is other is not counted"
    assert len([name for name in samples if name.startswith("mIoU union")]) == 151
    assert scores(report)["mIoU"] <= 100 / 151 + 1e-6, "150 classes are in neither and count 0"


def test_sides_and_settings():
    assert (side_of(512, 14), side_of(512, 16), side_of(224, 14)) == (504, 512, 224)
    for changes in (
        {"distance": ("l1",)},
        {"distance": ("l2",)},
        {"neighbors": ()},
        {"mean": None},
        {"fraction": 0},
        {"memory_size": -1},
    ):
        with pytest.raises(ValueError, match=r"expected|needs|both"):
            IncontextConfig(**changes)  # type: ignore[arg-type]
