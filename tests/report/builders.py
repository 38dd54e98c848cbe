"""Batches made up for tests: folders with report, samples and pictures, as the runner leaves them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from dino_dense.report import Entry, Metric, Picture, Report, Score

VITS16 = "timm:vit_small_patch16_224.dino"
VITS8 = "timm:vit_small_patch8_224.dino"
RANDOM = "random:vit_small_patch16_224"
EVIL = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
METRICS = {
    "knn": (Metric("top-1"), Metric("top-5")),
    "davis": (Metric("J&F-Mean"), Metric("J-Mean"), Metric("J-Decay", higher_is_better=False, low=-100.0)),
    "depth": (Metric("RMSE", unit="m", higher_is_better=False, high=10.0), Metric("δ < 1.25")),
}
CONFIG = {"data": "/data/somewhere", "k": [10, 20], "temperature": 0.07, "crop": 224, "batch_size": 64}
DATASETS = {"knn": "ImageNet-1k", "davis": "DAVIS-2017 val", "depth": None}


def make_samples(metrics: Sequence[Metric], means: Sequence[float], n: int, seed: int) -> pd.DataFrame:
    """Values around the means, exactly them on average; the first n of one list of sample names."""
    noise = np.random.default_rng(seed).normal(0, 0.1, (n, len(metrics)))
    values = (1 + noise - noise.mean(axis=0)) * np.array(means)
    frame = pd.DataFrame(values, columns=[metric.name for metric in metrics])
    frame.insert(0, "sample", [f"val/{index:04d}.jpg" for index in range(n)])
    return frame


def make_pictures(folder: Path, count: int, seed: int, size: tuple[int, int] = (320, 180)) -> tuple[Picture, ...]:
    """Small JPEGs of random colors in blocks, width and height as given."""
    generator = np.random.default_rng(seed)
    folder.joinpath("overlays").mkdir(parents=True, exist_ok=True)
    pictures = []
    for index in range(count):
        blocks = Image.fromarray(generator.integers(40, 220, (4, 7, 3), dtype=np.uint8))
        blocks.resize(size, Image.Resampling.BICUBIC).save(folder / "overlays" / f"{index}.jpg")
        pictures.append(Picture(f"overlays/{index}.jpg", f"val/{index:04d}.jpg: {30 + 60 * (index % 2)}.0"))
    return tuple(pictures)


def make_entry(
    root: Path,
    task: str = "knn",
    checkpoint: str = VITS16,
    means: Sequence[float] = (74.5, 90.0, 12.0),
    *,
    label: str = "",
    n: int = 40,
    seed: int = 0,
    pictures: int = 0,
    samples: pd.DataFrame | None = None,
    **changes: Any,
) -> Entry:
    """One pair, written to a folder of its own below root."""
    metrics = METRICS[task]
    folder = root / f"{label or task}-{checkpoint}".replace("/", "_").replace(":", "-")[:100]
    folder.mkdir(parents=True, exist_ok=True)
    table = make_samples(metrics, means[: len(metrics)], n, seed) if samples is None else samples
    scores = [
        Score(name, float(column.mean()), int(column.count()), float(column.std()) / column.count() ** 0.5)
        for name, column in table[[metric.name for metric in metrics if metric.name in table]].items()
    ]
    facts: dict[str, Any] = {
        "task": task,
        "status": "ok",
        "metrics": metrics,
        "scores": tuple(scores),
        "config": CONFIG,
        "free": ("batch_size",),
        "checkpoint": {
            "spec": checkpoint,
            "official": checkpoint.startswith("timm:"),
            "name": checkpoint.partition(":")[2],
            "sha256": "a" * 64,
            "weights_sha256": "b" * 64,
        },
        "data": {"name": f"{task} data", "n": n, "unit": "images", "sha256": "c" * 64, "dataset": DATASETS[task]},
        "presets": ("dino",),
        "environment": {"commit": "0123abcd", "torch": "2.9.0", "device": "cpu (x86_64)", "dtype": "fp32", "seed": 0},
        "seconds": 83.4,
        "peak_memory_mib": 912.0,
        "pictures": make_pictures(folder, pictures, seed),
        "samples": "samples.csv",
    }
    entry = Entry(label or task, checkpoint, Report(**(facts | changes)), folder)
    table.to_csv(folder / "samples.csv", index=False)
    entry.report.write(folder)
    return entry


def failed_entry(root: Path, task: str, checkpoint: str, error: str, label: str = "") -> Entry:
    """A pair that raised."""
    return make_entry(root, task, checkpoint, label=label, status="failed", scores=(), error=error)


def edited(entry: Entry, **changes: Any) -> Entry:
    """The entry with another report, on disk too."""
    report = dataclasses.replace(entry.report, **changes)
    report.write(entry.folder)
    return dataclasses.replace(entry, report=report)


def make_batch(root: Path) -> list[Entry]:
    """Three checkpoints, four entries of a suite, pictures, published numbers, and one failure."""
    table = {
        VITS16: {"knn": (74.4, 91.2), "davis": (61.9, 60.1, 14.2), "depth": (0.612, 71.3)},
        VITS8: {"knn": (78.3, 93.0), "davis": (69.8, 66.7, 11.0), "depth": (0.574, 76.0)},
        RANDOM: {"knn": (9.1, 21.7), "depth": (1.214, 31.9)},
    }
    entries = []
    for place, (checkpoint, tasks) in enumerate(table.items()):
        for task, means in tasks.items():
            entries.append(make_entry(root, task, checkpoint, means, n=60, seed=place, pictures=3))
        entries.append(
            make_entry(
                root,
                "knn",
                checkpoint,
                (tasks["knn"][0] - 4, 88.0),
                label="knn-64",
                n=60,
                seed=place,
                config={**CONFIG, "crop": 64},
            )
        )
    error = "CUDA out of memory. Tried to allocate 2.31 GiB: take a smaller batch_size (now 8)."
    return [*entries, failed_entry(root, "davis", RANDOM, error)]
