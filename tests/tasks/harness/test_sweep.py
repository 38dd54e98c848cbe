"""Sweeps over layers and sizes: the numbers of single runs, one pass over the images, resumed, or refused."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import torch
from PIL import Image

from dino_dense import Backbone, Metric, load_backbone
from dino_dense.config import command_line
from dino_dense.config.schema import path
from tasks import DataFacts, Outcome, RunOptions, Session, Task, get, run_one
from tasks import main as run_task
from tasks.correspondence import CorrespondenceConfig, open_pairs
from tasks.harness import command
from tasks.harness import sweep as sweeps
from tasks.harness.options import BatchOptions, LayerSweep, Sweep
from tasks.harness.runner import open_backbone
from tasks.harness.sweep import run_sweep
from tasks.harness.task import sized_by
from tasks.track import main as track

RANDOM = "random:vit_micro_patch8_64"
IMAGES = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class CornersConfig:
    """Constants"""

    data: str | None = path()
    """Unused."""
    side: int = 32
    """Side of the images, pixels."""


class Opened(NamedTuple):
    facts: DataFacts


def measure(backbone: Backbone, data: Opened, config: CornersConfig, session: Session) -> Outcome:
    """Cosine of the first and the last patch of each image; every image is looked at twice."""
    rows = []
    for image in IMAGES.repeat(2, 1, 1, 1):
        large = torch.nn.functional.interpolate(image[None], (config.side, config.side))
        patches = backbone.extract(large).patches[0].flatten(1)
        rows.append(100 * float(torch.cosine_similarity(patches[:, 0], patches[:, -1], dim=0)))
    return Outcome(samples=pd.DataFrame({"sample": map(str, range(10)), "cosine": rows}))


TASK: Task = Task(
    name="corners",
    summary="Likeness of two corners.",
    source="This test.",
    config=CornersConfig,
    metrics=(Metric("cosine", low=-100.0),),
    open=lambda config: Opened(DataFacts("noise", "", 5, "images", "a" * 64)),
    measure=measure,
    at_size=sized_by("side"),
    smoke=CornersConfig(),
)
CONFIG, HEADLINE = CornersConfig(), "cosine"


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of layers of each pass of the network."""
    counted: list[int] = []
    original = Backbone.extract

    def counting(self, images, want=frozenset({"patches"}), layers=None, *, norm=None):
        counted.extend([len(layers or self.layers)] * len(images))
        return original(self, images, want, layers, norm=norm)

    monkeypatch.setattr(Backbone, "extract", counting)
    return counted


def options(out: Path, **changes) -> RunOptions:
    return RunOptions(ckpt=RANDOM, out=str(out), device="cpu", **changes)


def test_rows_are_single_runs_and_each_image_is_seen_once_a_size(tmp_path: Path, passes: list[int]):
    single = run_one(TASK, options(tmp_path / "single", layers=(1,)), replace(CONFIG, side=48))
    passes.clear()
    table = run_sweep(TASK, options(tmp_path / "sweep", layers="all"), Sweep(sizes=(32, 48)), CONFIG)
    assert table[["layer", "size"]].values.tolist() == [[layer, size] for size in (32, 48) for layer in range(4)]
    assert passes == 2 * ([4] * 5 + [1] * 5), "the first layer is looked at twice, later layers are known"
    scores = {score.metric: score.value for score in single.scores}
    (row,) = table[(table["layer"] == 1) & (table["size"] == 48)].to_dict("records")
    assert {name: row[name] for name in scores} == scores
    assert table[HEADLINE].nunique() > 1, "layers differ"
    written = pd.read_csv(tmp_path / "sweep" / "sweep.csv")
    assert written[HEADLINE].tolist() == pytest.approx(table[HEADLINE].tolist())
    with Image.open(tmp_path / "sweep" / "sweep.png") as plot:
        assert plot.width > 400
    page = (tmp_path / "sweep" / "index.html").read_text()
    assert "layer 3 at 48 px" in page
    assert 'id="curves-sweep-of-corners"' in page
    assert page.count('class="chart item"') == len(scores)


@pytest.mark.parametrize(("mebibytes", "again"), [(0, 40), (1, 20)])
def test_features_that_do_not_fit_are_extracted_again(tmp_path: Path, passes: list[int], mebibytes: int, again: int):
    """At 128 pixels a layer's features of an image are 128 KiB: a megabyte holds eight of the fifteen."""
    config = replace(CONFIG, side=128)
    ample = run_sweep(TASK, options(tmp_path / "a", layers="all"), LayerSweep(), config)
    assert len(passes) == 10
    passes.clear()
    tight = run_sweep(TASK, options(tmp_path / "b", layers="all"), LayerSweep(sweep_memory=mebibytes), config)
    assert len(passes) == again
    assert tight[HEADLINE].tolist() == ample[HEADLINE].tolist()


def test_a_sweep_that_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    done: list[tuple[int, ...]] = []
    asked = options(tmp_path, layers=(0, -1))

    def stops(*arguments, **named):
        if done:
            raise KeyboardInterrupt
        done.append(arguments[1].layers)
        return run_one(*arguments, **named)

    monkeypatch.setattr(sweeps, "run_one", stops)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(TASK, asked, LayerSweep(each_layer=True), CONFIG)
    assert len(pd.read_csv(tmp_path / "sweep.csv")) == 1
    assert "interrupted: 1 of 2 points" in (tmp_path / "index.html").read_text()
    again: list[tuple[int, ...]] = []
    monkeypatch.setattr(
        sweeps, "run_one", lambda *given, **named: again.append(given[1].layers) or run_one(*given, **named)
    )
    table = run_sweep(TASK, asked, LayerSweep(each_layer=True), CONFIG)
    assert again == [(-1,)]
    assert table["layer"].tolist() == [0, 3]
    assert "interrupted" not in (tmp_path / "index.html").read_text()
    with pytest.raises(ValueError, match="results of another run"):
        run_sweep(TASK, replace(asked, seed=1), LayerSweep(each_layer=True), CONFIG)
    with pytest.raises(ValueError, match="holds the report of a batch"):
        run_one(TASK, options(tmp_path), CONFIG)
    capsys.readouterr()


def test_joined_layers_at_several_sizes(tmp_path: Path):
    table = run_sweep(TASK, options(tmp_path, layers=(1, -1)), Sweep(sizes=(32, 48)), CONFIG)
    assert table["layer"].tolist() == ["1+3", "1+3"]
    assert table["size"].tolist() == [32, 48]
    assert (tmp_path / "sweep.png").is_file()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--ckpt", RANDOM, "--device", "cpu", "--out", str(tmp_path), "--max-pairs", "1"]
    words += ["--categories", open_pairs(CorrespondenceConfig()).items[0].category]
    assert run_task("correspondence", [*words, "--layers", "all", "--sizes", "64"]) == 0
    printed = capsys.readouterr().out
    assert "by layer and size" in printed
    assert [line.split()[:2] for line in printed.splitlines() if line.strip()[:1].isdigit()] == [
        [str(layer), "64"] for layer in range(4)
    ]


def test_tokens_keep_their_own_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[Any] = []
    monkeypatch.setattr(command, "run_sweep", lambda *given, **named: asked.extend(given))
    words = ["--ckpt", RANDOM, "--device", "cpu", "--layers", "all", "--sizes", "64,96"]
    assert run_task("tokens", words) == 0
    task, run, sweep, config = asked
    assert (task.name, run.layers, sweep, config.sizes) == ("tokens", "all", LayerSweep(), (64, 96))


REFUSED = [
    ("knn", {}, Sweep(sizes=(64,)), "knn cannot be swept over sizes: it has no single side"),
    ("finetune", {"layers": "all"}, Sweep(), "finetune cannot be swept over layers: fine-tuning trains the whole"),
    ("correspondence", {"layers": (3, -1)}, Sweep(each_layer=True), "a layer is named twice"),
    ("correspondence", {"layers": (9,)}, Sweep(each_layer=True), "has 4, numbered 0 or -4 up"),
    ("tracking", {}, Sweep(sizes=(64, 65)), r"sizes \[64, 65\] are alike"),
]


@pytest.mark.parametrize(("name", "changes", "sweep", "message"), REFUSED)
def test_what_cannot_be_swept_is_refused(name: str, changes: dict, sweep: Sweep, message: str, tmp_path: Path):
    task = get(name)
    with pytest.raises(ValueError, match=message):
        run_sweep(task, options(tmp_path, **changes), sweep, task.smoke)
    assert not list(tmp_path.iterdir())


def test_other_refusals(tmp_path: Path):
    with pytest.raises(ValueError, match="expected different sides"):
        Sweep(sizes=(64, 64))
    with pytest.raises(ValueError, match="sweep_memory is -1"):
        LayerSweep(sweep_memory=-1)
    with pytest.raises(ValueError, match="a suite measures the same layers"):
        BatchOptions(layers="all")
    with pytest.raises(ValueError, match="only a task's command sweeps"):
        open_backbone(options(tmp_path, layers="all"), load_backbone(RANDOM).device)
    with pytest.raises(ValueError, match="track gives no score"):
        track(["--ckpt", RANDOM, "--layers", "all"])
    with pytest.raises(ValueError, match="no network is used"):
        run_task("davis", ["--score", str(tmp_path), "--layers", "all"])
    with pytest.raises(ValueError, match=r"finetune: layers is \(0,\), but fine-tuning trains"):
        run_one(get("finetune"), options(tmp_path / "out", layers=(0,)), get("finetune").smoke)


def test_layers_are_numbers_or_all(capsys: pytest.CaptureFixture[str]):
    def parsed(*argv: str) -> RunOptions:
        return command_line.parse(RunOptions, prog="p", description="", argv=argv)

    assert parsed("--layers", "all").layers == "all"
    assert parsed("--layers=-4,-1").layers == (-4, -1)
    assert parsed("--layers", "3").layers == (3,)
    with pytest.raises(SystemExit):
        parsed("--layers", "every")
    assert "layers" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_make_the_table_of_one(tmp_path: Path):
    """The processes share the images of each point; each keeps the features of later layers of its own images."""
    probe = ["--steps", "3", "--batch-size", "2", "--augment", "false", "--evaluations", "1", "--window", "whole"]
    words = ["-m", "tasks.segprobe", *probe, "--ckpt", RANDOM, "--device", "cpu", "--layers", "all", "--sizes", "32,48"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    tables = []
    for name, launcher in (("one", []), ("two", torchrun)):
        command = [sys.executable, *launcher, *words, "--out", str(tmp_path / name)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        tables.append(pd.read_csv(tmp_path / name / "sweep.csv").drop(columns="seconds"))
    assert len(tables[0]) == 8
    assert done.stdout.count("by layer and size") == 1, "one process speaks"
    pd.testing.assert_frame_equal(*tables, rtol=1e-6)
