"""Batches: what is finished stays, what fails is a row, images are looked at once."""

import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import tasks
from data.images import read_rgb
from dino_dense import Metric, Report, Score, load_backbone
from dino_dense.backbone.checkpoints import save_backbone
from tasks import Outcome, Task
from tasks.harness import jobs, pairs, suites
from tasks.harness.batch import main, run_batch
from tasks.harness.options import BatchOptions
from tasks.harness.pairs import checkpoint_labels, folder_name
from tasks.harness.suites import load_suite
from tasks.knn import KnnConfig
from tests.tasks.test_knn_task import RANDOM, make_folder

SMALL = "resize: 32, crop: 32"
LBFGS = "solver: lbfgs, select: val, mean_patch: true"


def write_suite(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a labeled set."""
    make_folder(tmp_path / "set", {"dark": 4, "light": 4})
    return tmp_path


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """(task, checkpoint) of every run that began."""
    begun: list[tuple[str, str]] = []
    original = pairs.run_one

    def counting(task: Task, options, config, **more):
        begun.append((task.name, options.ckpt))
        return original(task, options, config, **more)

    monkeypatch.setattr(pairs, "run_one", counting)
    return begun


def test_what_fails_is_a_row_and_only_that_runs_again(
    place: Path, runs: list, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """One missing data set and one bad checkpoint; then both are mended."""
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    good, bad = place / "good.safetensors", place / "bad.safetensors"
    save_backbone(good, load_backbone(RANDOM).module)
    bad.write_bytes(good.read_bytes()[:1000])
    here = write_suite(place / "here.yaml", f"- {{task: knn, config: {{data: set, {SMALL}, k: [1]}}}}")
    both = write_suite(
        place / "both.yaml",
        Path(here).read_text(),
        f"- {{task: knn, label: elsewhere, config: {{data: later, {SMALL}, k: [1]}}}}",
    )
    # The bad checkpoint meets the present data only, so that just two pairs fail.
    first = ["--suite", both, "--ckpt", str(good), "--out", str(place / "a"), "--data-root", str(place)]
    second = ["--suite", here, "--ckpt", str(good), "--ckpt", str(bad), "--out", str(place / "b")]
    second += ["--data-root", str(place)]
    assert main([*first, "--device", "cpu"]) == main([*second, "--device", "cpu"]) == 1
    assert runs == [("knn", str(good))] * 2, "what cannot be opened does not begin"
    assert "later: no such folder" in capsys.readouterr().out
    rows = pd.read_csv(place / "a" / "pairs.csv").set_index("entry")
    assert rows.loc["knn", "status"].tolist() == ["ok", "ok"]
    assert "later: no such folder" in rows.loc["elsewhere", "error"]
    rows = pd.read_csv(place / "b" / "pairs.csv").set_index("checkpoint")
    assert rows.loc["good", "status"].tolist() == ["ok", "ok"]
    assert "bad.safetensors: not a whole safetensors file" in rows.loc["bad", "error"]
    assert "bad.safetensors" in (place / "b" / "index.html").read_text()

    shutil.copytree(place / "set", place / "later")
    save_backbone(bad, load_backbone(RANDOM, seed=1).module)
    runs.clear()
    assert main([*first, "--device", "cpu", "--open"]) == main([*second, "--device", "cpu"]) == 0
    opened = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Open ")]
    assert len(opened) == 1
    assert f"{place / 'a' / 'index.html'} in a browser" in opened[0], "there is no display here"
    assert runs == [("knn", str(good)), ("knn", str(bad))]
    assert not list(place.rglob("*.failed.*"))
    for name in ("a", "b"):
        assert (pd.read_csv(place / name / "pairs.csv")["status"] == "ok").all()


def test_a_changed_config_or_checkpoint_runs_again_and_the_rest_does_not(place: Path, runs: list):
    checkpoint = place / "net.safetensors"
    save_backbone(checkpoint, load_backbone(RANDOM).module)

    def run(k: str) -> None:
        suite = write_suite(
            place / "suite.yaml",
            f"- {{task: knn, config: {{data: {place}/set, {SMALL}, k: [1]}}}}",
            f"- {{task: knn, label: other, config: {{data: {place}/set, {SMALL}, k: [{k}]}}}}",
        )
        run_batch(BatchOptions(suite=suite, ckpt=(str(checkpoint),), out=str(place / "out"), device="cpu"))

    run("2")
    assert len(runs) == 2
    run("2")
    assert len(runs) == 2
    run("3")
    assert len(runs) == 3
    save_backbone(checkpoint, load_backbone(RANDOM, seed=1).module)
    run("3")
    assert len(runs) == 5


def test_images_are_looked_at_once_for_all_tasks(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DINO_DENSE_CACHE", str(place / "cache"))
    seen: list[Path] = []

    def reading(path: Path):
        seen.append(path)
        return read_rgb(path)

    monkeypatch.setattr("tasks.images.features.read_rgb", reading)
    suite = write_suite(
        place / "suite.yaml",
        f"- {{task: knn, config: {{data: {place}/set, {SMALL}}}}}",
        f"- {{task: linear, config: {{data: {place}/set, {SMALL}, features: cached, epochs: 2}}}}",
        f"- {{task: linear, label: logreg, config: {{data: {place}/set, {SMALL}, {LBFGS}}}}}",
        f"- {{task: retrieval, config: {{data: {place}/set, {SMALL}}}}}",
    )
    entries = run_batch(BatchOptions(suite=suite, ckpt=(RANDOM,), out=str(place / "out"), device="cpu"))
    assert [entry.report.status for entry in entries] == ["ok"] * 4
    assert len(seen) == len(set(seen)) == 16


@pytest.mark.parametrize("where", ["train", "val"])
def test_a_pair_that_stopped_at_a_bad_image_runs_once_that_is_mended(place: Path, where: str):
    """Its folder holds what was made from other data: the probe's state, or nothing yet."""
    bad = sorted((place / "set" / where).rglob("*.png"))[-1]
    whole = bad.read_bytes()
    bad.write_bytes(whole[:40])
    suite = write_suite(
        place / "suite.yaml",
        f"- {{task: linear, config: {{data: {place}/set, {SMALL}, epochs: 2, batch_size: 4}}}}",
        f"- {{task: finetune, config: {{data: {place}/set, {SMALL}, epochs: 1, warmup_epochs: 0, batch_size: 4}}}}",
    )
    options = BatchOptions(suite=suite, ckpt=(RANDOM,), out=str(place / "out"), device="cpu")
    assert all(bad.name in entry.report.error for entry in run_batch(options))
    Image.new("RGB", (30, 20)).save(bad)
    assert [entry.report.status for entry in run_batch(options)] == ["ok", "ok"]


def test_a_checkpoint_keeps_its_folder_whatever_others_there_are(place: Path, runs: list):
    first, second = place / "a" / "net.safetensors", place / "b" / "net.safetensors"
    for seed, path in enumerate((first, second)):
        save_backbone(path, load_backbone(RANDOM, seed=seed).module)
    suite = write_suite(place / "suite.yaml", f"- {{task: knn, config: {{data: {place}/set, {SMALL}, k: [1]}}}}")

    def run(*checkpoints: Path) -> None:
        options = BatchOptions(suite=suite, ckpt=tuple(map(str, checkpoints)), out=str(place / "out"), device="cpu")
        run_batch(options)

    run(first)
    run(first, second)
    assert runs == [("knn", str(first)), ("knn", str(second))]
    names = pd.read_csv(place / "out" / "pairs.csv")["checkpoint"].unique().tolist()
    assert names == [str(first), str(second)]


def test_an_architecture_may_be_named(place: Path):
    torch.save(load_backbone(RANDOM).module.state_dict(), place / "net.pth")
    suite = write_suite(place / "suite.yaml", f"- {{task: knn, config: {{data: {place}/set, {SMALL}, k: [1]}}}}")
    options = BatchOptions(suite=suite, ckpt=(str(place / "net.pth"),), out=str(place / "out"), device="cpu")
    statuses = [run_batch(replace(options, arch=arch))[0].report for arch in ("vit_micro_patch8_64", "resnet18")]
    assert [report.status for report in statuses] == ["ok", "failed"]


def test_all_data_are_opened_before_the_first_task_and_all_that_is_wrong_is_said(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    knn, events = tasks.get("knn"), []

    def opening(config: KnnConfig) -> object:
        events.append(("open", config.data))
        return knn.open(config)

    def measuring(*arguments: object) -> Outcome:
        events.append(("measure", arguments[2].data))  # type: ignore[attr-defined]
        return knn.measure(*arguments)

    monkeypatch.setattr(suites, "get", {"knn": replace(knn, open=opening, measure=measuring)}.get)
    folders = ["set", "gone", "away"]
    lines = [f"- {{task: knn, label: {name}, config: {{data: {place}/{name}, {SMALL}, k: [1]}}}}" for name in folders]
    suite = write_suite(place / "suite.yaml", *lines)
    entries = run_batch(BatchOptions(suite=suite, ckpt=(RANDOM,), out=str(place / "out"), device="cpu"))
    assert [entry.report.status for entry in entries] == ["ok", "failed", "failed"]
    assert events == [("open", f"{place}/{name}") for name in folders] + [("measure", f"{place}/set")]
    said = capsys.readouterr().err
    assert "2 of 3 entries cannot be measured; the others are" in said
    assert f"gone: {place}/gone" in said
    assert f"away: {place}/away" in said


def test_an_error_nobody_foresaw_is_a_row_too(place: Path, monkeypatch: pytest.MonkeyPatch):
    def breaking(backbone, images, config, session):
        raise ZeroDivisionError("in the science")

    knn = tasks.get("knn")
    broken = Task("broken", "Breaks.", "none", KnnConfig, knn.metrics, knn.open, breaking, KnnConfig())
    monkeypatch.setattr(suites, "get", {"broken": broken, "knn": knn}.get)
    suite = write_suite(
        place / "s.yaml", "- task: broken", f"- {{task: knn, config: {{data: {place}/set, {SMALL}, k: [1]}}}}"
    )
    options = BatchOptions(suite=suite, ckpt=(RANDOM,), out=str(place / "out"), device="cpu")
    first, second = run_batch(options)
    assert (first.report.status, second.report.status) == ("failed", "ok")
    assert first.report.error == "ZeroDivisionError: in the science"
    (trace,) = place.rglob("*.failed.0.txt")
    assert "breaking" in trace.read_text()


def test_ctrl_c_ends_the_batch_with_a_report_of_what_there_is(place: Path, monkeypatch: pytest.MonkeyPatch):
    original = pairs.run_one

    def interrupted(task, options, config, **more):
        if config.k == (2,):
            raise KeyboardInterrupt
        return original(task, options, config, **more)

    monkeypatch.setattr(pairs, "run_one", interrupted)
    suite = write_suite(
        place / "suite.yaml",
        f"- {{task: knn, config: {{data: {place}/set, {SMALL}, k: [1]}}}}",
        f"- {{task: knn, label: second, config: {{data: {place}/set, {SMALL}, k: [2]}}}}",
    )
    with pytest.raises(KeyboardInterrupt):
        run_batch(BatchOptions(suite=suite, ckpt=(RANDOM,), out=str(place / "out"), device="cpu"))
    assert pd.read_csv(place / "out" / "pairs.csv")["entry"].unique().tolist() == ["knn"]


# --- Suites ---


SUITES = Path(__file__).parents[3] / "configs" / "suites"


@pytest.mark.parametrize("name", sorted(path.stem for path in SUITES.glob("*.yaml")))
def test_our_suites_are_read(name: str):
    assert len(load_suite(name)) >= 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- task: kn", "unknown task 'kn'"),
        ("- {task: knn, config: {resizes: 3}}", "entry knn: KnnConfig has no field 'resizes'. Did you mean resize"),
        ("- {task: knn, config: {resize: large}}", "entry knn.*resize"),
        ("- {task: knn, config: {k: [0]}}", "must be positive"),
        ("- {task: knn}\n- {task: knn}", "two entries are called 'knn'"),
        ("- {task: knn, label: ../up}", "label"),
        ("- {tusk: knn}", "expected task"),
        ("- {task: davis, preset: dinosaur}", "unknown preset 'dinosaur'"),
        ("- {task: knn, config: 5}", "config is 5; expected fields"),
        ("- {task: knn, config: [resize]}", "expected fields"),
        ("- {task: knn, config: {1: 2}}", "expected fields"),
        ("- 1: 2", "an entry has 1; expected task"),
        ("task: knn", "expected a list"),
        ("", "expected a list"),
        ("- [", "not YAML"),
    ],
)
def test_bad_suites_are_refused_before_anything_runs(tmp_path: Path, text: str, message: str):
    path = tmp_path / "suite.yaml"
    path.write_text(textwrap.dedent(text))
    with pytest.raises(ValueError, match=message):
        run_batch(BatchOptions(suite=str(path), ckpt=(RANDOM,), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_unknown_suites_and_missing_options_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="classification, dense, dense-small, dense2026, paper, quickstart"):
        load_suite("dinner")
    with pytest.raises(FileNotFoundError, match="no such suite file"):
        load_suite(str(tmp_path / "x.yaml"))
    with pytest.raises(ValueError, match="--ckpt"):
        main(["--suite", "dense"])


def test_presets_and_data_roots(tmp_path: Path):
    suite = write_suite(
        tmp_path / "s.yaml",
        "- {task: davis, preset: crw, config: {data: DAVIS}}",
        "- {task: knn, config: {data: /abs}}",
    )
    davis, knn = load_suite(suite, data_root="/sets")
    assert davis.config.top_k == 10
    assert davis.config.data == "/sets/DAVIS"
    assert knn.config.data == "/abs"


def test_checkpoint_labels_are_short_and_never_shared(tmp_path: Path):
    specs = ["random:vit_micro_patch8_64", "a/teacher.safetensors", "b/net.pth", "c/net.pth", "d/run.safetensors"]
    assert len({folder_name(spec) for spec in specs}) == len(specs)
    assert checkpoint_labels(specs) == ["random:vit_micro_patch8_64", "a", "b/net.pth", "c/net.pth", "run"]
    with pytest.raises(ValueError, match="named twice"):
        checkpoint_labels(["x", "x"])


# --- Tasks of other packages, and jobs ---


def test_a_failed_report_survives_json():
    entry = load_suite("quickstart")[0]
    report = pairs.failed_report(entry, "x", ValueError("why"), torch.device("cpu"), tasks.RunOptions())
    assert Report.from_json(report.to_json()) == Report.from_json(Report.from_json(report.to_json()).to_json())
    assert report.error == "why"


def test_a_job_that_dies_is_a_failed_row_for_each_entry(place: Path):
    class Dead:
        class paths:  # noqa: N801, as submitit names it
            stderr = "jobs/7_log.err"

        def result(self):
            raise RuntimeError("Job 7 was killed")

    suite = load_suite("quickstart")
    entries = jobs.collect_entries(Dead(), RANDOM, "net", suite, BatchOptions(out=str(place)))
    assert [entry.label for entry in entries] == [entry.label for entry in suite]
    assert all("was killed" in entry.report.error and "7_log.err" in entry.report.error for entry in entries)


@pytest.mark.slow
def test_the_local_launcher_gives_what_no_launcher_gives(place: Path):
    pytest.importorskip("submitit")
    suite = write_suite(place / "suite.yaml", f"- {{task: knn, config: {{data: {place}/set, {SMALL}, k: [1]}}}}")
    tables = []
    for launcher in ("none", "local"):
        out = place / launcher
        words = ["--suite", suite, "--ckpt", RANDOM, "--ckpt", str(place / "missing"), "--out", str(out)]
        assert main([*words, "--launcher", launcher, "--device", "cpu"]) == 1
        table = pd.read_csv(out / "pairs.csv")
        tables.append(table[["entry", "checkpoint", "metric", "value", "status"]])
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.slow
def test_two_processes_make_the_batch_of_one(place: Path):
    suite = write_suite(
        place / "suite.yaml",
        f"- {{task: knn, config: {{data: {place}/set, {SMALL}, k: [1]}}}}",
        f"- {{task: copydetect, config: {{data: {place}/set, image_size: 32, attacks: [jpeg8]}}}}",
        "- {task: segprobe, config: {crop: 48, steps: 3, batch_size: 3}}",
        "- {task: knn, label: missing, config: {data: nowhere}}",
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    tables = []
    for name, launcher in (("one", []), ("two", torchrun)):
        words = ["-m", "tasks", "--suite", suite, "--ckpt", RANDOM, "--out", str(place / name), "--device", "cpu"]
        command = [sys.executable, *launcher, *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 1, done.stderr
        tables.append(pd.read_csv(place / name / "pairs.csv")[["entry", "metric", "value", "n", "status"]])
    assert tables[0]["status"].tolist().count("failed") == 1
    assert done.stdout.count("knn · ") == 1, "one process speaks"
    pd.testing.assert_frame_equal(*tables, rtol=1e-5)


@pytest.mark.slow
def test_a_process_that_fails_alone_ends_the_batch_instead_of_hanging(place: Path):
    """Of four images the second process reads the last two, one of which is damaged."""
    pictures = place / "saliency"
    for name in "abcd":
        make_pair(pictures, name)
    (pictures / "images" / "d.png").write_bytes((pictures / "images" / "d.png").read_bytes()[:60])
    suite = write_suite(place / "suite.yaml", f"- {{task: saliency, config: {{data: {pictures}, squash: 32}}}}")
    program = place / "program.py"
    program.write_text(
        "import sys\nfrom dino_dense.config import command_line\n"
        "from tasks.harness import batch, pairs\npairs.RANK_SECONDS = 2.0\n"
        "command_line.run(lambda: batch.main(sys.argv[1:]))\n"
    )
    words = ["--suite", suite, "--ckpt", RANDOM, "--out", str(place / "out"), "--device", "cpu"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    done = subprocess.run([*command, *words], env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode != 0
    assert "failed in process 1 alone" in done.stderr
    assert "d.png" in done.stderr


def make_pair(root: Path, name: str) -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8)
    Image.fromarray(pixels).save(root / "images" / f"{name}.png")
    Image.fromarray((pixels[..., 0] > 128).astype(np.uint8) * 255).save(root / "masks" / f"{name}.png")


def test_scores_without_samples_still_make_a_page(place: Path, monkeypatch: pytest.MonkeyPatch):
    """A task of another package may be older than samples and pictures."""

    def measure(backbone, images, config, session):
        return Outcome((Score("depth", 3.0, 2),))

    plain = Task("plain", "Plain.", "none", KnnConfig, (Metric("depth"),), tasks.get("knn").open, measure, KnnConfig())
    monkeypatch.setattr(suites, "get", {"plain": plain}.get)
    suite = write_suite(place / "s.yaml", "- task: plain")
    run_batch(BatchOptions(suite=suite, ckpt=(RANDOM,), out=str(place / "out"), device="cpu"))
    assert "depth" in (place / "out" / "index.html").read_text()
