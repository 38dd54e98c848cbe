"""The quickstart's whole path, on a recipe of two steps."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

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
SUITE = [
    {"task": "knn", "config": {"resize": 32, "crop": 32}},
    {"task": "davis", "config": {"short_side": 64, "max_frames": 3, "sequences": ["starfish"]}},
]


def test_it_ends_with_a_table_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(quickstart, "recipe", {"pretrain/quickstart.yaml": RECIPE}.get)
    suite = tmp_path / "suite.yaml"
    suite.write_text(yaml.safe_dump(SUITE))
    monkeypatch.setattr(quickstart, "SUITE", str(suite))
    out = tmp_path / "out"
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
