"""What holds for every task, built in or from another package."""

import dataclasses
import functools
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tasks
from data.sample import cache_folder, sample_data
from dino_dense import Backbone, Report, load_backbone
from dino_dense.backbone import bytes as pixels
from dino_dense.backbone.backbone import Features
from dino_dense.config import schema
from dino_dense.distributed import World
from dino_dense.report.samples import clusters_of, metric_terms, score_samples
from tasks import DataFacts, Outcome, RunOptions, Session, Task, mean_scores, measured, run_one
from tasks.harness.task import no_pictures
from tests.device import chosen, chosen_name
from tests.oracles import noise_backbone, oracle_backbone

RANDOM = "random:vit_micro_patch8_64"
NAMES = tasks.names()
NEAR_THE_TOP = 70.0  # percent of the headline's range; patches of 8 pixels cannot trace a contour exactly
LIGHTER: dict[str, dict[str, Any]] = {
    "copydetect": {"max_queries": 10},
    "correspondence": {"image_size": 96},
    "davis": {"short_side": 96},
    "depth": {"steps": 4},
    "discovery": {"max_images": 3},
    "finetune": {"max_steps": 3},
    "jhmdb": {"image_size": 160},
    "linear": {"epochs": 2},
    "saliency": {"max_images": 3},
    "segprobe": {"steps": 6},
    "tracking": {"grid": 16},
    "vip": {"image_size": 120},
    "vos": {"short_side": 96},
}
"""Task -> settings for runs whose numbers need not be good; a task that is not named is light enough."""
FEW_IMAGES = ("finetune", "knn", "linear")
SEVERAL_READINGS = ("copydetect", "retrieval", "segprobe")
"""Tasks that send an image once and read it at several sizes, or window by window."""
WELL_BELOW = 25.0  # percentage points between truth and noise


@pytest.fixture(params=NAMES)
def task(request: pytest.FixtureRequest) -> Task:
    return tasks.get(request.param)


@pytest.fixture(scope="module")
def oracle() -> Backbone:
    return oracle_backbone()


def run_smoke(task: Task, backbone: Backbone, out: Path, *, draw: bool = False) -> Outcome:
    """Without pictures, which take as long as the numbers, where none are looked at."""
    session = Session(out=out, device=chosen())
    task = task if draw else dataclasses.replace(task, draw=no_pictures)
    return measured(task, backbone.to(chosen()), task.open(task.smoke), task.smoke, session)


def lighter(task: Task) -> Task:
    changes = LIGHTER.get(task.name, {})
    if task.name in FEW_IMAGES:
        changes = {**changes, "data": str(few_images())}
    return dataclasses.replace(task, smoke=dataclasses.replace(task.smoke, **changes))


@functools.cache
def few_images() -> Path:
    """A tenth of the embedded classes' images."""
    whole = sample_data().images
    few = cache_folder() / "few images"
    for split in ("train", "val"):
        for folder in sorted((whole / split).iterdir()):
            (few / split / folder.name).mkdir(parents=True, exist_ok=True)
            for path in sorted(folder.iterdir())[::10]:
                shutil.copy(path, few / split / folder.name)
    return few


@pytest.fixture(scope="module")
def truth(oracle: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Task], Outcome]:
    """The outcome of a task on the oracle, drawn; each task is run once."""

    @functools.cache
    def run(name: str) -> Outcome:
        return run_smoke(tasks.get(name), oracle, tmp_path_factory.mktemp(name), draw=True)

    return lambda task: run(task.name)


def test_there_are_tasks():
    assert {"davis", "knn"} <= set(NAMES)


def test_name_is_the_modules(task: Task):
    assert task.name in NAMES
    assert task.metrics
    assert task.summary.endswith(".")
    assert task.source


def test_config_defaults_are_documented_and_survive_a_round_trip(task: Task):
    config = task.config()
    assert schema.from_plain(task.config, schema.to_plain(config)) == config
    assert schema.from_plain(task.config, schema.to_plain(task.smoke)) == task.smoke
    assert set(schema.field_docs(task.config)) >= {field.name for field in dataclasses.fields(task.config)}
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.data = "elsewhere"  # type: ignore[misc]


def test_without_data_it_takes_the_embedded_set(task: Task):
    assert task.config().data is None
    assert task.smoke.data is None


def test_opening_touches_no_backbone_and_writes_nothing(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`open` gets neither a backbone nor a folder; it must not make itself any, in a new process no torch either."""
    task.open(task.smoke)  # the embedded set is made when it is first asked for
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dino_dense.backbone.load.load_backbone", no_backbone)
    monkeypatch.setattr(Backbone, "extract", no_backbone)
    facts = task.open(task.smoke).facts
    assert isinstance(facts, DataFacts)
    assert "embedded" in facts.name
    assert facts.n > 0
    assert len(facts.sha256) == 64
    assert facts.dataset is None
    assert list(tmp_path.iterdir()) == []
    assert task.open(task.smoke).facts == facts, "two looks at the same files"


def no_backbone(*arguments: object, **options: object) -> None:
    raise AssertionError("a backbone was used")


def test_drawing_is_left_to_the_main_process(task: Task, tmp_path: Path):
    """A process that is not the main one measures the same numbers, and writes no picture."""
    task, backbone = lighter(task), noise_backbone()
    drawn = run_smoke(task, backbone, tmp_path / "main", draw=True)
    other = Session(out=tmp_path / "other", device=chosen(), world=_NotMain())
    outcome = measured(task, backbone, task.open(task.smoke), task.smoke, other)
    assert outcome.pictures == ()
    assert outcome.scores == drawn.scores
    assert drawn.pictures
    assert not [picture.file for picture in drawn.pictures if (tmp_path / "other" / picture.file).exists()]


class _NotMain(World):
    """One process alone that does not write."""

    @property
    def is_main(self) -> bool:
        return False


def check_scores(task: Task, outcome: Outcome) -> None:
    declared = {metric.name: metric for metric in task.metrics}
    assert [score.metric for score in outcome.scores] == list(declared)
    for score in outcome.scores:
        metric = declared[score.metric]
        assert math.isfinite(score.value)
        assert metric.low <= score.value <= metric.high
        assert score.n > 0
        assert score.stderr is None or score.stderr >= 0
    check_samples(task, outcome)


def check_samples(task: Task, outcome: Outcome) -> None:
    """A metric's value and error are those of its samples, so that comparisons may draw from these."""
    samples = outcome.samples
    assert samples is not None
    assert samples["sample"].is_unique
    assert metric_terms(samples, task.metrics[0].name) is not None
    assert all(clusters_of(samples))
    for score in outcome.scores:
        if metric_terms(samples, score.metric) is not None:
            again = score_samples(samples, score.metric)
            assert score.value == pytest.approx(again.value, abs=1e-6)
            assert score.stderr == pytest.approx(again.stderr)
            assert score.n == again.n


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counter[str]:
    """Counts the images that are sent to the device as bytes, and those that backbones get as floats.

    Features that another test left in the cache are not taken: then no image would be sent.
    """
    monkeypatch.setattr("tasks.images.features.cache_folder", lambda: tmp_path / "cache")
    count: Counter[str] = Counter()
    moved, extract = pixels.moved, Backbone.extract

    def moving(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        count["bytes"] += len(tensor) * (tensor.ndim == 4 and tensor.dtype == torch.uint8)
        return moved(tensor, device)

    def extracting(backbone: Backbone, images: torch.Tensor, *arguments: Any, **options: Any) -> Features:
        count["floats"] += len(images) * images.is_floating_point()
        return extract(backbone, images, *arguments, **options)

    monkeypatch.setattr(pixels, "moved", moving)
    monkeypatch.setattr(Backbone, "extract", extracting)
    return count


def test_smoke_run_gives_the_declared_metrics_twice_the_same_and_leaves_the_weights(
    task: Task, tmp_path: Path, sent: Counter[str]
):
    """Images become floats on the device: a float is four times as long to send."""
    check_smoke_runs(task, tmp_path)
    assert sent["bytes"]
    assert sent["floats"] <= sent["bytes"] or task.name in SEVERAL_READINGS


def check_smoke_runs(task: Task, tmp_path: Path) -> None:
    task, backbone = lighter(task), load_backbone(RANDOM).to(chosen())
    before = {name: value.clone() for name, value in backbone.module.state_dict().items()}
    outcomes = []
    for attempt in ("first", "again"):
        torch.manual_seed(0)
        outcomes.append(run_smoke(task, backbone, tmp_path / attempt, draw=attempt == "first"))
        check_scores(task, outcomes[-1])
    assert outcomes[0].scores == outcomes[1].scores
    for picture in outcomes[0].pictures:
        assert (tmp_path / "first" / picture.file).is_file()
        assert picture.caption
    after = backbone.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())


def test_truth_scores_near_the_top_and_noise_well_below(task: Task, truth: Callable[[Task], Outcome], tmp_path: Path):
    """At the full settings of the smoke run; its scores are those that the task declares."""
    check_scores(task, truth(task))
    check_truth_and_noise(task, truth(task), run_smoke(task, noise_backbone(), tmp_path / "noise"))


def check_truth_and_noise(task: Task, on_truth: Outcome, on_noise: Outcome) -> None:
    metric = task.metrics[0]
    best, worst = on_truth.scores[0].value, on_noise.scores[0].value
    assert metric.higher_is_better
    assert best >= metric.low + (metric.high - metric.low) * NEAR_THE_TOP / 100
    assert best - worst >= WELL_BELOW


def test_report_survives_json_and_names_everything(task: Task, tmp_path: Path):
    task = lighter(task)
    report = run_one(task, RunOptions(ckpt=RANDOM, out=str(tmp_path / "out"), device=chosen_name()), task.smoke)
    text = (tmp_path / "out" / "report.json").read_text()
    assert Report.from_json(text).to_json() == report.to_json() == text.strip()
    assert report.checkpoint["spec"] == RANDOM
    assert len(report.checkpoint["sha256"]) == len(report.data["sha256"]) == 64
    assert {"commit", "torch", "device", "dtype", "seed"} <= set(report.environment)
    assert report.seconds > 0
    assert report.peak_memory_mib > 0
    for name in ("results.csv", "report.md", "config.yaml", "run.json"):
        assert (tmp_path / "out" / name).is_file()


def broken(task: Task, damage: Callable[[Outcome], Outcome]) -> Task:
    return dataclasses.replace(task, measure=lambda *arguments: damage(with_scores(task.measure(*arguments))))


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda out: dataclasses.replace(out, scores=out.scores[:1]), id="a metric left out"),
        pytest.param(lambda out: rescored(out, lambda value: value + 200), id="out of range"),
        pytest.param(lambda out: rescored(out, lambda value: math.nan), id="not a number"),
        pytest.param(lambda out: rescored(out, lambda value: value / 2), id="not the samples' mean"),
    ],
)
def test_the_contract_catches_wrong_scores(damage: Callable[[Outcome], Outcome], tmp_path: Path):
    task = broken(tasks.get("knn"), damage)
    with pytest.raises(AssertionError):
        check_scores(task, run_smoke(task, load_backbone(RANDOM), tmp_path))


def test_the_contract_catches_a_task_that_does_not_look_at_the_features(oracle: Backbone, tmp_path: Path):
    """One that scores every backbone alike, or one that trains the weights it was lent."""
    outcome = run_smoke(tasks.get("knn"), oracle, tmp_path / "honest")
    constant = dataclasses.replace(tasks.get("knn"), measure=lambda *arguments: outcome)
    with pytest.raises(AssertionError):
        check_truth_and_noise(
            constant,
            run_smoke(constant, oracle, tmp_path / "truth"),
            run_smoke(constant, noise_backbone(), tmp_path / "noise"),
        )

    def training(backbone, *arguments):
        with torch.no_grad():
            next(backbone.module.parameters()).add_(1)
        return tasks.get("knn").measure(backbone, *arguments)

    careless = dataclasses.replace(tasks.get("knn"), measure=training)
    with pytest.raises(AssertionError):
        check_smoke_runs(careless, tmp_path)


def with_scores(outcome: Outcome) -> Outcome:
    """The outcome with the means that the runner would take."""
    if outcome.scores or outcome.samples is None:
        return outcome
    return dataclasses.replace(outcome, scores=mean_scores(outcome.samples))


def rescored(outcome: Outcome, change: Callable[[float], float]) -> Outcome:
    scores = tuple(dataclasses.replace(score, value=change(score.value)) for score in outcome.scores)
    return dataclasses.replace(outcome, scores=scores)
