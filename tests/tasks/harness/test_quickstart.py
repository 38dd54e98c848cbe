"""The quickstart's whole path, on a recipe of two steps."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from data.sample import sample_data
from dino_dense import load_backbone, report
from tasks.harness import quickstart

RECIPE = {
    "arch": "vit_micro_patch8_64",
    "out_dim": 32,
    "head_hidden_dim": 32,
    "head_bottleneck_dim": 16,
    "global_crop_size": 32,
    "local_crop_size": 16,
    "local_crops_number": 1,
    "batch_size": 4,
    "epochs": 1,
    "max_steps": 2,
    "warmup_epochs": 0,
    "num_workers": 0,
    "device": "cpu",
}
SUITE: list[dict[str, Any]] = [
    {"task": "knn", "config": {"resize": 32, "crop": 32}},
    {"task": "davis", "config": {"short_side": 64, "max_frames": 3, "sequences": ["starfish"]}},
]


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two steps, few frames; returns the results folder."""
    monkeypatch.setattr(quickstart, "recipe", {"pretrain/quickstart.yaml": RECIPE}.get)
    few = tmp_path / "few"
    for folder in (sample_data().images / "train").iterdir():
        for split, file in zip(("train", "val"), sorted(folder.iterdir())[:2], strict=True):
            (few / split / folder.name).mkdir(parents=True)
            shutil.copy(file, few / split / folder.name)
    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump([{**SUITE[0], "config": {**SUITE[0]["config"], "data": str(few)}}, *SUITE[1:]]))
    monkeypatch.setattr(quickstart, "SUITE", str(suite))
    monkeypatch.setattr(quickstart, "REAL_SUITE", str(suite))
    return tmp_path / "out"


def test_it_ends_with_a_table_and_goes_on_where_it_stopped(short: Path, capsys: pytest.CaptureFixture[str]):
    out = short
    assert quickstart.main(["--out", str(out), "--seeds", "0,1"]) == 0
    text = capsys.readouterr().out
    assert "davis J&F-Mean" in text
    table = pd.read_csv(out / "results.csv")
    assert set(table["task"]) == {"knn", "davis"}
    assert table["checkpoint"].nunique() == 3  # random, and a run for each seed
    assert all((out / f"results-seed{seed}" / "index.html").is_file() for seed in (0, 1))
    first = (out / "pretrain-seed0" / "log.csv").read_text()
    assert quickstart.main(["--out", str(out), "--seeds", "0,1"]) == 0
    assert (out / "pretrain-seed0" / "log.csv").read_text() == first
    pd.testing.assert_frame_equal(pd.read_csv(out / "results.csv"), table)  # seconds too: nothing was run again


def test_a_real_network_is_measured_beside_it(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    file = tmp_path / "mine.pth"
    torch.save(load_backbone("random:vit_micro_patch8_64", seed=3).module.state_dict(), file)
    opened: list[Path] = []
    monkeypatch.setattr(report, "open_page", opened.append)
    assert quickstart.main(["--out", str(short), "--real", str(file)]) == 0
    assert "mine" in capsys.readouterr().out
    table = pd.read_csv(short / "results-real" / "pairs.csv")
    assert set(table["checkpoint"]) == {"pretrain-seed0", "mine"}
    assert opened == [short / "results-real" / "index.html"]


def test_without_the_hub_it_says_so_and_goes_on(
    short: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(short / "no cache"))
    assert quickstart.main(["--out", str(short), "--real"]) == 0
    captured = capsys.readouterr()
    assert "timm:vit_small_patch16_224.dino is left out: HF_HUB_OFFLINE is set" in captured.err
    assert "davis J&F-Mean" in captured.out
    assert not (short / "results-real").exists()


def test_a_missing_file_is_an_error_before_the_work(short: Path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        quickstart.main(["--out", str(short), "--real", "missing.pth"])
    assert not short.exists()
