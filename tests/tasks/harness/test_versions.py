"""What another version of the program made is made anew, and it is said; a report names the commits that computed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file

import tasks
from dino_dense import Report, load_backbone
from dino_dense.backbone.families.vit import VitReader
from dino_dense.report import current_commit
from dino_dense.versions import VERSIONS
from tasks import RunOptions, get, run_one
from tasks.harness.batch import run_batch
from tasks.harness.options import BatchOptions
from tasks.knn import KnnConfig
from tasks.linear import LinearConfig
from tests.tasks.test_davis_task import DAVIS, config_for, make_tree
from tests.tasks.test_knn_task import RANDOM, make_folder

OPTIONS = RunOptions(ckpt=RANDOM, device="cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DINO_DENSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "set", {"dark": 3, "light": 3})


def knn(folder: Path, out: Path) -> Report:
    return run_one(get("knn"), replace(OPTIONS, out=str(out)), KnnConfig(data=str(folder), resize=32, crop=32, k=(1,)))


def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader whose class token is 0, as a fault would have it."""
    read = VitReader.read

    def wrong(self, *arguments):
        return {kind: 0 * value if kind == "cls" else value for kind, value in read(self, *arguments).items()}

    monkeypatch.setattr(VitReader, "read", wrong)


@pytest.mark.parametrize("part", ["image features", "reader"])
def test_features_of_a_reader_with_a_fault_do_not_outlive_it(
    part: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as fault:
        faulty(fault)
        assert knn(folder, tmp_path / "a").scores[0].value == 50
    assert knn(folder, tmp_path / "b").scores[0].value == 50, "kept: nobody said that a number changed"
    if part == "reader":
        monkeypatch.setattr(VitReader, "version", VitReader.version + 1)
    else:
        monkeypatch.setitem(VERSIONS, part, VERSIONS[part] + 1)
    mended = knn(folder, tmp_path / "c")
    assert mended.scores[0].value == 100
    assert "an earlier version kept" in mended.note
    assert "earlier version" not in knn(folder, tmp_path / "d").note


def raised(name: str, part: str) -> tasks.Task:
    task = get(name)
    return replace(task, versions={**task.versions, part: task.versions[part] + 1})


def test_masks_of_an_earlier_protocol_are_made_anew_and_kept_aside(tmp_path: Path):
    tree, out = make_tree(tmp_path / "tree"), tmp_path / "out"
    options = replace(OPTIONS, out=str(out))
    run_one(DAVIS, options, config_for(tree))
    mask = next((out / "masks").rglob("*.png"))
    before = mask.read_bytes()
    mask.write_bytes(b"of an earlier version")
    assert mask.read_bytes() != before
    again = run_one(raised("davis", "propagation"), options, config_for(tree))
    assert mask.read_bytes() == before
    assert "propagation was 1, now 2" in again.note
    assert (out / "stale" / mask.relative_to(out)).read_bytes() == b"of an earlier version"
    assert not (out / "stale" / "report.json").exists(), "tables of reports must not list it"
    once_more = run_one(raised("davis", "propagation"), options, config_for(tree))
    assert "earlier version" not in once_more.note


def test_a_head_of_no_version_is_trained_anew(folder: Path, tmp_path: Path):
    """As versions before this rule left it: nobody knows what made it."""
    options = replace(OPTIONS, out=str(tmp_path / "out"))
    config = LinearConfig(data=str(folder), resize=32, crop=32, features="cached", epochs=3, batch_size=4)
    run_one(get("linear"), options, config)
    identity = tmp_path / "out" / "run.json"
    identity.write_text(json.dumps({k: v for k, v in json.loads(identity.read_text()).items() if k != "versions"}))
    report = run_one(get("linear"), options, config)
    assert "class probe was of no version, now" in report.note
    assert (tmp_path / "out" / "stale" / "head").is_dir()
    assert json.loads(identity.read_text())["versions"]["class probe"] == VERSIONS["class probe"]


def test_a_finished_pair_of_an_earlier_version_is_run_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"- {{task: knn, config: {{data: {folder}, resize: 32, crop: 32, k: [1]}}}}\n")
    options = BatchOptions(suite=str(suite), ckpt=(RANDOM,), out=str(tmp_path / "batch"), device="cpu")
    (first,) = run_batch(options)
    (second,) = run_batch(options)
    assert second.report.note == first.report.note
    monkeypatch.setattr(VitReader, "version", VitReader.version + 1)
    (third,) = run_batch(options)
    assert third.folder == first.folder
    assert "VitReader" in third.report.note
    (fourth,) = run_batch(options)
    assert fourth.report == third.report


def test_a_report_names_the_commit_that_computed_and_the_one_that_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    now = current_commit()
    if now is None:
        pytest.skip("no git checkout, so no commit")
    for place in ("tasks.images.features", "tasks.harness.runner", "dino_dense.report.machine"):
        monkeypatch.setattr(f"{place}.current_commit", lambda: "earlier")
    assert knn(folder, tmp_path / "a").environment["commit"] == "earlier"
    for place in ("tasks.images.features", "tasks.harness.runner", "dino_dense.report.machine"):
        monkeypatch.setattr(f"{place}.current_commit", lambda: now)
    assert knn(folder, tmp_path / "b").environment["commit"] == f"earlier and {now}", "features"
    assert knn(folder, tmp_path / "a").environment["commit"] == f"earlier and {now}", "its own folder"
    assert json.loads((tmp_path / "a" / "run.json").read_text())["commits"] == ["earlier", now]


def test_a_finished_pair_of_other_data_is_run_again(folder: Path, tmp_path: Path):
    suite = tmp_path / "suite.yaml"
    suite.write_text(f"- {{task: knn, config: {{data: {folder}, resize: 32, crop: 32, k: [1]}}}}\n")
    options = BatchOptions(suite=str(suite), ckpt=(RANDOM,), out=str(tmp_path / "batch"), device="cpu")
    (first,) = run_batch(options)
    next((folder / "val").rglob("*.png")).unlink()
    (second,) = run_batch(options)
    assert second.folder == first.folder
    assert second.report.scores[0].n == first.report.scores[0].n - 1
    assert run_batch(options)[0].report == second.report


def test_what_other_pixels_made_is_made_anew(folder: Path, tmp_path: Path):
    """A config.json that someone puts beside the weights states the pixels that they were trained on."""
    weights = tmp_path / "net" / "model.safetensors"
    weights.parent.mkdir()
    save_file(dict(load_backbone(RANDOM).module.state_dict()), weights)
    arch = RANDOM.partition(":")[2]
    options = replace(OPTIONS, ckpt=str(weights.parent), arch=arch, out=str(tmp_path / "out"))
    config = LinearConfig(data=str(folder), resize=32, crop=32, features="cached", epochs=3, batch_size=4)
    run_one(get("linear"), options, config)
    stated = {"architecture": arch, "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (weights.parent / "config.json").write_text(json.dumps(stated))
    report = run_one(get("linear"), options, config)
    assert "now mean 0.5, 0.5, 0.5, std 0.5, 0.5, 0.5" in report.note
    assert (tmp_path / "out" / "stale" / "head").is_dir()
