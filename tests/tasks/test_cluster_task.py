"""k-means segmentation: matching, seeds, the last batch, and refusals."""

import itertools
from pathlib import Path

import pandas as pd
import pytest
import torch

from data import DataError
from dino_dense import Report
from dino_dense.clustering import assign, fit_components, fit_scaling
from tasks import RunOptions, get, run_one
from tasks.cluster import ClusterConfig, open_data
from tests.data.test_segmentation import halves, make_tree
from tests.device import chosen_name

RANDOM = "random:vit_micro_patch8_64"
SMALL = {"size": 32, "mean": None, "std": None, "components": 8, "starts": 2, "seeds": (0, 1), "drop_last": False}


def tree(root: Path, images: int = 6) -> Path:
    pairs = list(itertools.permutations(range(3), 2))
    masks = {f"v{i:02d}": halves(*pairs[i % len(pairs)]) for i in range(images)}
    return make_tree(root, {"train": masks, "val": masks})


def run(root: Path, out: Path, **changes: object) -> Report:
    config = ClusterConfig(data=str(root), **{**SMALL, **changes})  # type: ignore[arg-type]
    return run_one(get("cluster"), RunOptions(ckpt=RANDOM, out=str(out), device=chosen_name()), config)


@pytest.mark.parametrize("clusters", [0, 12])
def test_gray_levels_are_clusters(tmp_path: Path, clusters: int):
    report = run(tree(tmp_path / "voc"), tmp_path / "out", clusters=clusters)
    runs = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert runs["seed"].tolist() == [0, 1]
    assert report.scores[0].value == pytest.approx(runs["mIoU"].mean())
    assert report.scores[0].value > (80 if clusters else 50)
    assert f"{clusters or 3} clusters of 96 patches of 128 values" in report.note
    assert "standard deviation" in report.note


def test_the_last_batch_is_left_out_and_said(tmp_path: Path):
    root = tree(tmp_path / "voc", 7)
    config = ClusterConfig(data=str(root), batch=4)
    data = open_data(config)
    assert (data.facts.n, data.left_out, len(data.splits.val)) == (4, 3, 4)
    report = run(root, tmp_path / "out", batch=4, drop_last=True, clusters=3)
    assert "3 images of the last batch are left out" in report.note
    assert report.scores[0].n == 4
    with pytest.raises(DataError, match=r"7 images are fewer than a batch of 32.*--drop-last false"):
        open_data(ClusterConfig(data=str(root)))


def test_k_means_is_fitted_on_a_part_and_gives_all_a_cluster(tmp_path: Path):
    report = run(tree(tmp_path / "voc"), tmp_path / "out", clusters=3, points_per_cluster=10)
    assert report.scores[0].value > 30, "one cluster for all has 11"
    with pytest.raises(ValueError, match="200 clusters of 96 patches"):
        run(tree(tmp_path / "other"), tmp_path / "none", clusters=200)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    features = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13)
    whole = fit_scaling(features)
    points = fit_components(whole.apply(features), 5)
    centers = points.apply(whole.apply(features))[:7]
    nearest = assign(points.apply(whole.apply(features)), centers)
    monkeypatch.setattr("dino_dense.clustering.CHUNK", 64)
    parts = fit_scaling(features)
    torch.testing.assert_close(parts.scale, whole.scale)
    torch.testing.assert_close(parts.apply(features), whole.apply(features))
    again = fit_components(parts.apply(features), 5)
    torch.testing.assert_close(again.axes, points.axes, atol=1e-4, rtol=1e-4)
    assert torch.equal(assign(points.apply(whole.apply(features)), centers), nearest)
    assert nearest[:7].tolist() == list(range(7))


def test_settings():
    for changes in ({"components": 0}, {"seeds": ()}, {"clusters": -1}, {"std": None}, {"side": 0}):
        with pytest.raises(ValueError, match=r"expected|both"):
            ClusterConfig(**changes)  # type: ignore[arg-type]
