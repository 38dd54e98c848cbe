"""What each objective adds to a small network.

    python -m benchmarks.ablation --data PICTURES --data-root DATA --out OUT [--docs]
    python -m benchmarks.ablation --config quickstart --data-root DATA --out OUT [--docs]     # embedded pictures

Each recipe is configs/pretrain/micro8.yaml (or the one named) with one objective more than the one before. It is
trained for the same steps with each seed, then measured by the suite `ablation`. The table has a row for each recipe,
the mean over the seeds and their range; a second table has the J&F of each sequence. A finished run or suite is not
made again: the same command goes on after an interruption. `--docs` replaces the tables in docs/results.md, and the
picture of the loss of the class token.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.bench import show_tables
from benchmarks.results import DOCUMENT, ROOT, cell
from data.files import IMAGE_SUFFIXES, list_files
from data.sample import sample_data
from dino_dense.report import PAIRS_FILE
from tasks.harness.runner import SAMPLES_FILE

RECIPES: Mapping[str, Sequence[str]] = {
    "DINO": ("dino",),
    "+ iBOT": ("dino", "ibot"),
    "+ KoLeo": ("dino", "ibot", "koleo"),
    "+ Gram": ("dino", "ibot", "koleo", "gram"),
}
"""Row -> objectives."""
SETTINGS = ("--ibot-out-dim", "256", "--gram-teacher", "run")
"""Options of parts that micro8.yaml lacks: as many prototypes for patches as for class tokens; as in DINOv3, an earlier
teacher of the same run is the Gram teacher."""
GRAM_BEGINS = 2 / 3
"""Share of the steps before the Gram loss (DINOv3, arXiv 2508.10104, begins it at 1 of 1.3 million steps)."""
DINO_LOSS = "dino_loss"
DAVIS = "davis16-unseen"
"""Label of the suite's entry."""


@dataclass(frozen=True)
class Ablation:
    """What is trained, and where its files are."""

    config: str
    """Name of the recipe in configs/pretrain to which objectives are added."""
    data: Path
    """Folder of pictures to train on."""
    data_root: Path
    """Folder of the suite's data sets."""
    out: Path
    seeds: Sequence[int]
    epochs: int

    @property
    def file(self) -> Path:
        return ROOT / "configs" / "pretrain" / f"{self.config}.yaml"

    def run(self, recipe: str, seed: int) -> Path:
        return self.out / f"{'-'.join(RECIPES[recipe])}-seed{seed}"

    def train(self, recipe: str, seed: int) -> None:
        """Train one recipe, or go on where an interrupted command was."""
        steps = self.epochs * (len(list_files(self.data, IMAGE_SUFFIXES)) // self.settings()["batch_size"])
        words = ["-m", "dino_dense.pretrain", "--config", str(self.file), *SETTINGS]
        words += ["--objectives", ",".join(RECIPES[recipe]), "--gram-begin", str(round(GRAM_BEGINS * steps))]
        words += ["--data", str(self.data), "--epochs", str(self.epochs), "--seed", str(seed)]
        run_python(*words, "--resume", "auto", "--out", str(self.run(recipe, seed)))

    def settings(self) -> dict[str, Any]:
        return dict(yaml.safe_load(self.file.read_text()))

    def measure(self, checkpoint: str, folder: Path) -> pd.DataFrame:
        """The suite's scores of a run folder, or of another checkpoint."""
        run_python(
            *("-m", "tasks", "--suite", "ablation", "--ckpt", checkpoint),
            *("--data-root", str(self.data_root), "--out", str(folder)),
        )
        scores = pd.read_csv(folder / PAIRS_FILE)
        failed = scores[scores["status"] == "failed"]
        if len(failed):
            raise ValueError(
                f"{folder}: {failed.iloc[0]['entry']} failed: {failed.iloc[0]['error']}. Mend it, run again."
            )
        return scores[~scores["entry"].duplicated()]  # the headline of each


def run_python(*words: str) -> None:
    """Run a Python command; CalledProcessError if it fails."""
    subprocess.run([sys.executable, *words], check=True, cwd=ROOT, env=os.environ)


def ablate(plan: Ablation) -> pd.DataFrame:
    """Train and measure everything; the scores, long: columns of pairs.csv, and `recipe` and `seed`."""
    start = f"random:{plan.settings()['arch']}"
    frames = []
    for seed in plan.seeds:
        first = plan.measure(start, plan.out / "suites" / "random") if seed == plan.seeds[0] else pd.DataFrame()
        frames.append(first.assign(recipe="random weights", seed=seed))
        for recipe in RECIPES:
            plan.train(recipe, seed)
            run = plan.run(recipe, seed)
            scores = plan.measure(str(run), plan.out / "suites" / run.name)
            frames.append(scores.assign(recipe=recipe, seed=seed))
            print(ablation_table(pd.concat(frames)).to_markdown(index=False), flush=True)
    return pd.concat(frames)


def ablation_table(scores: pd.DataFrame) -> pd.DataFrame:
    """A row for each recipe, a column for each task: the mean over the seeds, and their range."""
    texts = [
        (recipe, f"{task} {metric}", cell(group["value"]))
        for (recipe, task, metric), group in scores.groupby(["recipe", "task", "metric"], sort=False)
    ]
    table = pd.DataFrame(texts, columns=["recipe", "score", "text"])
    return (
        table.set_index(["recipe", "score"])["text"]
        .unstack("score", sort=False)
        .reset_index()
        .rename_axis(columns=None)
    )


def sequence_table(plan: Ablation) -> pd.DataFrame:
    """A row for each recipe, a column for each sequence: the mean J&F over the seeds, and their range."""
    runs = [("random weights", "random", 0)]
    runs += [(recipe, plan.run(recipe, seed).name, seed) for recipe in RECIPES for seed in plan.seeds]
    frames = []
    for recipe, folder, seed in runs:
        (file,) = (plan.out / "suites" / folder).glob(f"*/{DAVIS}-*/{SAMPLES_FILE}")
        frames.append(pd.read_csv(file).assign(recipe=recipe, seed=seed))
    samples = pd.concat(frames)
    scores = samples.assign(task=samples["cluster"], metric="J&F-Mean", value=samples["J&F-Mean"])
    return ablation_table(scores)


def draw_losses(plan: Ablation, picture: Path) -> None:
    """DINO's loss of each recipe over the steps: the mean over the seeds, and their range."""
    from matplotlib import pyplot

    from dino_dense.pretrain.monitor import LOG_FILE

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for recipe in RECIPES:
        logs = [pd.read_csv(plan.run(recipe, seed) / LOG_FILE, index_col="step") for seed in plan.seeds]
        losses = pd.concat([log[DINO_LOSS if DINO_LOSS in log else "loss"] for log in logs], axis=1)
        axes.plot(losses.index, losses.mean(axis=1), label=recipe)
        axes.fill_between(losses.index, losses.min(axis=1), losses.max(axis=1), alpha=0.2)
    axes.set(xlabel="step", ylabel="DINO's loss (class token)")
    axes.legend()
    figure.savefig(picture, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="micro8", help="name of a recipe in configs/pretrain")
    parser.add_argument("--data", type=Path, help="folder of pictures to train on; without it, the embedded pictures")
    parser.add_argument("--data-root", type=Path, required=True, help="folder with CamVid, DAVIS and cifar10")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--docs", action="store_true", help="replace the table and picture of docs/results.md")
    words = parser.parse_args()
    data = (words.data or sample_data().images / "train").absolute()
    plan = Ablation(words.config, data, words.data_root.absolute(), words.out.absolute(), words.seeds, words.epochs)
    name = f"ablation-{plan.config}"
    texts = {
        name: ablation_table(ablate(plan)).to_markdown(index=False),
        f"{name}-sequences": sequence_table(plan).to_markdown(index=False),
    }
    draw_losses(plan, (DOCUMENT.parent if words.docs else plan.out) / f"{name}.png")
    show_tables(texts, DOCUMENT if words.docs else None)


if __name__ == "__main__":
    main()
