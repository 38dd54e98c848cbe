"""The benchmarks themselves: each can be opened; both loops of the training step agree on a tiny network."""

import importlib
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import ablation, bench, crops, dinov2_step, packing, pictures, published, results, sweeps, training_step
from benchmarks.__main__ import main, names
from benchmarks.bench import Row
from data.sample import sample_data
from dino_dense import load_backbone
from dino_dense.backbone.dino_vit import build_module
from tests.pretrain.tiny_run import TINY, write_pictures


@pytest.mark.parametrize("name", names())
def test_every_benchmark_can_be_opened(name: str):
    assert callable(importlib.import_module(f"benchmarks.{name}").main)


@pytest.mark.parametrize("word", ["tpu", "cuda:x"])
def test_a_device_that_is_none_is_refused_before_the_work(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv(bench.DEVICE_VARIABLE, "cpu")
    assert main(["--device", word, "search"]) == 2
    assert f"device is {word!r}, expected auto, cpu, cuda or cuda:N" in capsys.readouterr().err


def test_a_benchmark_computes_on_the_device_of_the_option(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(bench.DEVICE_VARIABLE, "cpu")
    seen: list[str] = []
    monkeypatch.setattr("benchmarks.search.main", lambda: seen.append(str(bench.device())) or [])
    assert main(["search", "--device", "cpu"]) == 0
    assert seen == ["cpu"]


def test_the_plain_loop_and_the_trainer_take_the_same_steps():
    # One temperature, as the plain loop has it; past the frozen last layer.
    config = replace(TINY, warmup_teacher_temp=TINY.teacher_temp, drop_path_rate=0.0, epochs=30, batch_size=4)
    assert training_step.curves("fp32", config, steps=5) <= training_step.SAME_LOSS["fp32"]
    dense = replace(config, **dinov2_step.DINOV2, ibot_center_momentum=0.5)
    dense = replace(dense, ibot_out_dim=48)
    assert training_step.curves("fp32", dense, 5, dinov2_step.DenseLoop) <= training_step.SAME_LOSS["fp32"]


def of_each_crop(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, same: Tensor, longest: int, _: int) -> Tensor:
    """PyTorch's attention of variable lengths, written out for a CPU, which it is not for."""
    lengths = ends.diff()
    assert (ends.dtype, longest) == (torch.int32, lengths.max())
    assert torch.equal(ends, same)
    parts = zip(*(part.transpose(0, 1).split(lengths.tolist(), dim=1) for part in (query, key, value)), strict=True)
    return torch.cat([torch.nn.functional.scaled_dot_product_attention(*part) for part in parts], 1).transpose(0, 1)


@pytest.mark.parametrize("way", ["by_flex", "by_nesting", "by_varlen"])
def test_all_ways_of_packed_attention_are_that_of_the_trainer(way: str, monkeypatch: pytest.MonkeyPatch):
    if way == "by_varlen":
        monkeypatch.setattr(pytest.importorskip("torch.nn.attention.varlen"), "varlen_attn", of_each_crop)
    compiled = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compiled(function, **{"backend": "eager", **options})
    )
    monkeypatch.setattr(packing, "DEVICE", torch.device("cpu"))
    sizes = [torch.Size((2, 5)), torch.Size((3, 2))]
    blocks = build_module("vit_tiny_patch16_224").blocks[:1]  # type: ignore[index, union-attr]
    tokens, attention = torch.randn(1, 16, 192), getattr(packing, way)(sizes)
    backward = way != "by_flex"
    passes = [
        packing.passing(blocks, tokens, mode, backward=backward)
        for mode in (packing.PackedAttention(sizes), packing.Instead(attention))
    ]
    assert packing.difference(*passes) < 1e-5
    assert (passes[1].slope is not None) == backward
    mixed = packing.Instead(torch.nn.functional.scaled_dot_product_attention)
    assert packing.difference(passes[0], packing.passing(blocks, tokens, mixed, backward=backward)) > 1e-3


def test_attention_of_variable_lengths_is_called_as_pytorch_asks(monkeypatch: pytest.MonkeyPatch):
    """Shapes and types alone: no device computes."""
    pytest.importorskip("torch.nn.attention.varlen")
    monkeypatch.setattr(packing, "DEVICE", torch.device("cuda"))
    with FakeTensorMode(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        qkv = [torch.empty(1, 3, 16, 64, dtype=torch.bfloat16, device="cuda") for _ in range(3)]
        out = packing.by_varlen([torch.Size((2, 5)), torch.Size((3, 2))])(*qkv)
    assert (out.shape, out.dtype, out.device.type) == (qkv[0].shape, torch.bfloat16, "cuda")


def test_a_way_that_the_machine_lacks_is_a_row_without_figures(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(packing, "ON_GPU", False)
    row = packing.of_varlen("work", torch.nn.Identity(), [torch.Size((2, 5))], 1)
    assert (row.check, row.met) == ("not run here: needs CUDA", "")
    assert math.isnan(row.ours)


def test_the_crops_benchmark_reads_pictures_as_pretraining_does(tmp_path: Path):
    write_pictures(tmp_path, 3, "jpg")
    batches = crops.our_batches(crops.Files(sorted(tmp_path.iterdir())), TINY)
    assert sum(len(batch.slots) for batch in batches) == 3


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({"target": 2.0}, "yes"),
        ({"target": 2.1}, "no"),
        ({"target": 2.0, "agrees": False}, "no"),
        ({"limit": 3.0}, "yes"),
        ({"limit": 2.9}, "no"),
        ({"target": 0.5, "better": "higher"}, "yes"),
        ({}, ""),
    ],
)
def test_a_target_is_met_only_with_results_that_agree(changes: dict[str, object], met: str):
    assert Row("name", "work", 6.0, 3.0, "s", **changes).met == met  # type: ignore[arg-type]


def test_rows_are_added_to_the_table_of_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results.csv")
    for _ in range(2):
        bench.publish([Row("name", "work, with a comma", 6.0, 3.0, "s", target=1.5)])
    header, *lines = (tmp_path / "results.csv").read_text().splitlines()
    assert header.startswith("date,commit,machine,threads,benchmark,work,plain,ours,unit")
    assert len(lines) == 2


def test_a_table_of_a_document_is_replaced_between_its_marks(tmp_path: Path):
    document = tmp_path / "a.md"
    document.write_text("before\n<!-- x -->\nold\n<!-- end of x -->\nafter\n")
    bench.write_between(document, "x", "new")
    assert document.read_text() == "before\n<!-- x -->\nnew\n<!-- end of x -->\nafter\n"
    with pytest.raises(ValueError, match="no marks <!-- y -->"):
        bench.write_between(document, "y", "new")


def pairs_file(folder: Path, random_value: float, status: str = "ok") -> Path:
    folder.mkdir(parents=True)
    scores = [("davis16", "davis", "mine", 61.0), ("davis16", "davis", "random", random_value)]
    pd.DataFrame(
        [
            {
                "entry": entry,
                "task": task,
                "checkpoint": name,
                "metric": metric,
                "value": value,
                "status": status,
                "stderr": 2.0,
                "error": "x",
            }
            for entry, task, name, value in scores
            for metric in ("J&F-Mean", "J-Mean")
        ]
    ).to_csv(folder / "pairs.csv", index=False)
    return folder


def test_the_results_table_has_means_and_ranges_over_seeds(tmp_path: Path):
    folders = [pairs_file(tmp_path / "a", 20.0), pairs_file(tmp_path / "b", 30.0)]
    (row,) = results.results_table(results.read(folders)).to_dict("records")
    assert (row["task"], row["metric"]) == ("davis", "J&F-Mean"), "the headline alone"
    assert row["mine"] == "61.0"
    assert row["random"] == "25.0 (20.0 to 30.0)"
    assert "--short-side 224" in row["settings"]


def test_the_results_table_of_one_seed_has_standard_errors(tmp_path: Path):
    (row,) = results.results_table(results.read([pairs_file(tmp_path / "a", 20.0)])).to_dict("records")
    assert row["random"] == "20.0 ± 2.0"


def test_a_results_table_with_a_failed_pair_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="davis16 of mine failed: x"):
        results.read([pairs_file(tmp_path / "a", 20.0, "failed")])


def test_the_picture_of_the_readme_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in (("SIDE", 64), ("LABELED", 4), ("LATER", 2)):
        monkeypatch.setattr(pictures, name, value)
    backbone = load_backbone("random:vit_micro_patch8_64")
    first, cosine, later = pictures.match_and_mask(backbone, sample_data())
    assert first.shape == later.shape
    assert cosine.max() <= 1 + 1e-5
    pictures.draw({"one": backbone, "other": backbone}, tmp_path / "picture.jpg")
    with Image.open(tmp_path / "picture.jpg") as picture:
        assert picture.width > 4 * picture.height, "two rows of many columns"


def test_only_objects_are_painted():
    frame, ids = np.full((2, 2, 3), 100, np.uint8), np.array([[0, 1], [2, 0]])
    picture = pictures.painted(frame, ids)
    assert np.allclose(picture[ids == 0], 100 / 255)
    assert not np.allclose(picture[0, 1], picture[1, 0])


def test_the_ablation_table_has_a_row_for_each_recipe_and_the_range_of_its_seeds():
    scores = pd.DataFrame(
        [("DINO", "knn", "top-1", 20.0), ("DINO", "knn", "top-1", 30.0), ("+ iBOT", "knn", "top-1", 40.0)],
        columns=["recipe", "task", "metric", "value"],
    )
    rows = ablation.ablation_table(scores).to_dict("records")
    assert [row["recipe"] for row in rows] == ["DINO", "+ iBOT"]
    assert [row["knn top-1"] for row in rows] == ["25.0 (20.0 to 30.0)", "40.0"]


def test_an_interrupted_ablation_makes_each_run_and_suite_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The commands themselves go on; the table has every recipe and seed, and the start once."""
    commands: list[tuple[str, ...]] = []

    def pretend(*words: str) -> None:
        commands.append(words)
        if "tasks" in words:
            pairs_file(Path(words[words.index("--out") + 1]), 20.0)

    monkeypatch.setattr(ablation, "run_python", pretend)
    write_pictures(tmp_path / "data", 40)
    plan = ablation.Ablation("micro8", tmp_path / "data", tmp_path, tmp_path / "out", (0, 1), epochs=3)
    scores = ablation.ablate(plan)
    counts = scores.groupby("recipe", sort=False)["seed"].nunique().to_dict()
    assert counts == {"random weights": 1} | dict.fromkeys(ablation.RECIPES, 2)
    trained = [words for words in commands if "dino_dense.pretrain" in words]
    assert len({words[words.index("--out") + 1] for words in trained}) == len(trained) == 8
    assert all(words[words.index("--gram-begin") + 1] == "2" for words in trained), "two thirds of 3 steps"


def test_layers_that_two_tasks_rank_alike_correlate():
    layers = {"knn": [1.0, 2.0, 3.0], "davis": [10.0, 40.0, 41.0], "incontext": [3.0, 2.0, 1.0]}
    metrics = {"knn": "top-1", "davis": "J&F-Mean", "incontext": "mIoU"}
    tables = {task: pd.DataFrame({"layer": [0, 1, 2], metrics[task]: values}) for task, values in layers.items()}
    scores = sweeps.headlines(tables, "layer")
    assert scores.columns[0] == "knn (CIFAR-10), top-1"
    alike = sweeps.alike(scores).set_index("task")
    assert alike.loc["davis", "knn"] == 1.0
    assert alike.loc["incontext", "knn"] == alike.loc["incontext", "davis"] == -1.0
    assert np.isnan(alike.loc["davis", "davis"])


def test_a_sweep_has_the_settings_of_the_suite(tmp_path: Path):
    words = sweeps.settings("cluster", tmp_path)
    assert words[:2] == ["--preset", "neco"]
    assert {f"--data={tmp_path / 'CamVid'}", "--seeds=0", "--drop-last=false", "--size=224"} <= set(words)


KNN = """
def knn_classifier(train, train_labels, test, test_labels, k, T, num_classes):
    nearest = train_labels[(test @ train.T).topk(k).indices]
    votes = ((test @ train.T).topk(k).values / T).exp()
    ranked = test.new_zeros(len(test), num_classes).scatter_add_(1, nearest, votes).argsort(1, True)
    hits = ranked[:, :5] == test_labels[:, None]
    return {first} * hits[:, 0].double().mean().item(), 100 * hits.any(1).double().mean().item()
"""
"""A stand-in for eval_knn.py of DINO."""


@pytest.fixture
def clones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for stand-ins of published repositories; the modules imported from it are forgotten afterward."""
    monkeypatch.setenv(published.VARIABLE, str(tmp_path))
    monkeypatch.setattr(published, "TRAIN", 2000)
    monkeypatch.setattr(published, "TEST", 200)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_without_the_published_code_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv(published.VARIABLE, raising=False)
    assert published.main() == []
    said = capsys.readouterr().err
    for repository in published.REPOSITORIES:
        assert f"no rows of {repository}: {published.VARIABLE} names no folder of clones" in said


def test_a_repository_that_is_not_there_is_named(clones: Path):
    for name in published.REPOSITORIES[:-1]:
        (clones / name).mkdir()
    (missing,) = published.lacking().items()
    assert missing[0] == published.REPOSITORIES[-1]
    assert f"{published.VARIABLE} is {clones}, which has no folder {missing[0]}" in missing[1]


@pytest.mark.parametrize("first", [100, 99])
def test_the_published_results_are_compared_before_the_time(first: int, clones: Path):
    (clones / "dino").mkdir()
    (clones / "dino" / "eval_knn.py").write_text(KNN.replace("{first}", str(first)))
    if first == 100:
        row = published.nearest_classes()
        assert row.agrees
        assert "CPU seconds" in row.note
        assert "dino (no commit)" in row.note
    else:
        with pytest.raises(AssertionError, match=r"k-NN votes.*the published result and ours differ by"):
            published.nearest_classes()


def test_a_missing_object_is_a_difference_of_scores():
    scores = {"J of dog_1": 0.5, "F of dog_1": 0.6}
    assert published.difference_of(scores, scores) == 0
    with pytest.raises(AssertionError, match="differ by nan"):
        published.require(published.difference_of(scores, {"J of dog_1": 0.5}), 1.0, "J&F")


def test_the_disk_has_the_pixels_within_the_radius():
    assert published.disk(1.0).tolist() == [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    assert published.disk(2).sum() == 13
    assert published.disk(2).dtype == np.uint8
