"""Every layer and several sizes of one network, on the tasks of the suite `results`.

    python -m benchmarks.sweeps --ckpt TRAINED --data-root DATA --out OUT [--docs]

Three results: a score for each layer, how alike the tasks rank the layers (Spearman's correlation), and a score for
each size of the network's input. A finished sweep is not made again. `--docs` replaces the tables and the picture of
docs/results.md.
"""

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib import pyplot

from benchmarks.bench import show_tables
from benchmarks.results import DOCUMENT, ROOT, SUITE, typed
from dino_dense.report import SWEEP_FILE
from tasks import get

LAYERS = ("knn", "davis", "inside", "saliency", "incontext", "cluster", "correspondence", "tracking")
"""Tasks measured at each layer, which train nothing. `cluster` has one seed here."""
SIZED = ("davis", "incontext", "cluster")
"""Tasks on patch tokens of real pictures that are measured at each size."""
SIZES = (112, 168, 224, 336)
"""Sides of the network's input, pixels: multiples of 14, and of 8 and 16 but for some."""
PLACES = {
    "davis": "DAVIS",
    "inside": "DAVIS",
    "saliency": "DAVIS",
    "correspondence": "embedded",
    "tracking": "embedded",
    "knn": "CIFAR-10",
}
"""Task -> its data; CamVid for the others."""


def settings(task: str, data_root: Path) -> list[str]:
    """The options of a task in the suite, with absolute data."""
    entry = next(entry for entry in yaml.safe_load(SUITE.read_text()) if entry["task"] == task)
    values: dict[str, Any] = dict(entry["config"])
    if "data" in values:
        values["data"] = data_root / values["data"]
    if task == "cluster":
        values["seeds"] = [0]
    words = ["--preset", entry["preset"]] if "preset" in entry else []
    return words + [f"--{name.replace('_', '-')}={typed(value)}" for name, value in values.items()]


def sweep(task: str, options: Sequence[str], out: Path) -> pd.DataFrame:
    """The table of one sweep: columns layer, size, then the metrics, the headline first."""
    if not (out / SWEEP_FILE).is_file():
        subprocess.run([sys.executable, "-m", f"tasks.{task}", *options, "--out", str(out)], check=True, cwd=ROOT)
    return pd.read_csv(out / SWEEP_FILE)


def headlines(tables: Mapping[str, pd.DataFrame], by: str) -> pd.DataFrame:
    """The headline of each task, a column each, by `layer` or `size`."""
    columns = {}
    for task, table in tables.items():
        metric = get(task).metrics[0]
        name = f"{task} ({PLACES.get(task, 'CamVid')}), {metric.name}"
        columns[name] = table.set_index(by)[metric.name]
    return pd.DataFrame(columns).sort_index()


def alike(scores: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of each two columns; all headlines here are better when higher."""
    table = scores.rename(columns=lambda name: name.split(" ")[0]).corr(method="spearman").round(2)
    return table.where(np.tri(len(table), k=-1, dtype=bool)).iloc[1:, :-1].reset_index(names="task")


def draw(scores: pd.DataFrame, picture: Path) -> None:
    """Each task's score by layer, as a share of its best layer's."""
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, values in (scores / scores.max()).items():
        axes.plot(values.index, 100 * values, marker="o", markersize=3, label=name)
    axes.set(xlabel="layer (0 is the first)", ylabel="score, % of the best layer's", ylim=(0, 103))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    figure.savefig(picture, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--data-root", type=Path, required=True, help="folder with CamVid, DAVIS and cifar10")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--docs", action="store_true", help="replace the tables and picture of docs/results.md")
    words = parser.parse_args()
    root, out = words.data_root.absolute(), words.out.absolute()
    by_layer, by_size = {}, {}
    sizes = f"--sizes={','.join(map(str, SIZES))}"
    for task in LAYERS:
        options = ["--ckpt", words.ckpt, *settings(task, root)]
        by_layer[task] = sweep(task, [*options, "--layers", "all"], out / f"{task}-layers")
        if task in SIZED:
            by_size[task] = sweep(task, [*options, sizes], out / f"{task}-sizes")
    layers, sized = headlines(by_layer, "layer"), headlines(by_size, "size")
    texts = {
        "layers": layers.round(1).to_markdown(),
        "alike": alike(layers).astype(object).fillna("").to_markdown(index=False),
        "sizes": sized.round(1).to_markdown(),
    }
    draw(layers, (DOCUMENT.parent if words.docs else out) / "layers.png")
    show_tables(texts, DOCUMENT if words.docs else None)


if __name__ == "__main__":
    main()
