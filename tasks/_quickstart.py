"""One command from nothing to a table: make data, pretrain a small DINO, measure it beside random weights."""

import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from data.sample import sample_data
from data.video import open_pretraining_data
from dino_dense import Report, cli, distributed
from dino_dense.checkpoint import STATE_FILE
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.trainer import Trainer
from dino_dense.report import write_text
from tasks._task import RunOptions, get, run_one


@dataclass(frozen=True)
class QuickstartConfig:
    """Where to, and how often"""

    out: str = "runs/quickstart"
    """Folder for the run and the results. The same command goes on where it stopped."""
    seeds: tuple[int, ...] = (0,)
    """Pretrain and measure once for each seed (a few minutes each on two CPU cores)."""


def quickstart(argv: Sequence[str]) -> int:
    """Parse, pretrain, measure, print one table. The exit status."""
    config = cli.parse(
        QuickstartConfig,
        prog="python -m tasks quickstart",
        description="Make data, pretrain a small DINO on it, and measure it beside random weights.",
        argv=argv,
    )
    recipe = _recipe("pretrain/quickstart.yaml")
    suite = _recipe("suites/quickstart.yaml")
    reports = []
    for seed in config.seeds:
        run = Path(config.out) / f"pretrain-seed{seed}"
        settings: PretrainConfig = cli.from_plain(PretrainConfig, {**recipe, "seed": seed, "out": str(run)})
        _pretrain(settings)
        for spec in (f"random:{settings.arch}", str(run)):
            for entry in suite:
                task = get(entry["task"])
                name = f"{task.name}-{'random' if spec.startswith('random:') else 'pretrained'}-seed{seed}"
                options = RunOptions(ckpt=spec, out=str(Path(config.out) / name), device="cpu", seed=seed)
                reports.append(run_one(task, options, cli.from_plain(task.config, entry["config"])))
    table = _table(reports)
    write_text(
        Path(config.out) / "results.csv", pd.concat([report.to_frame() for report in reports]).to_csv(index=False)
    )
    write_text(Path(config.out) / "results.md", table.to_markdown(floatfmt=".1f") + "\n")
    print(f"\nFrozen features on the embedded data, percent:\n\n{table.to_string(float_format='{:.1f}'.format)}\n")
    print(f"Masks over frames, loss curve, reports: {config.out}")
    return 0


def _recipe(name: str) -> Any:
    return yaml.safe_load((importlib.resources.files("configs") / name).read_text())


def _pretrain(settings: PretrainConfig) -> None:
    """Train, or go on with a run that stopped; nothing is left to do in one that is finished."""
    settings = replace(settings, resume=(Path(settings.out) / STATE_FILE).is_file())
    images = open_pretraining_data(sample_data().images / "train")
    with distributed.session(settings.device) as (world, device):
        outcome = Trainer(settings, images, world, device).train()
    if outcome.signal is not None:
        raise KeyboardInterrupt


def _table(reports: Sequence[Report]) -> pd.DataFrame:
    """A row a checkpoint and seed, a column a headline metric."""
    headlines = pd.DataFrame(
        [
            {
                "seed": report.environment["seed"],
                "checkpoint": "random" if report.checkpoint["spec"].startswith("random:") else "pretrained",
                f"{report.task} {report.scores[0].metric}": report.scores[0].value,
            }
            for report in reports
        ]
    )
    return headlines.groupby(["seed", "checkpoint"], sort=False).first()
