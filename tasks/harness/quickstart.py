"""The quickstart: render data, pretrain a small DINO, and compare it with random weights in a table."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dino_dense import distributed
from dino_dense.config import command_line, schema
from dino_dense.config.schema import path
from dino_dense.files import write_text
from tasks.harness.batch import run_batch
from tasks.harness.options import BatchOptions

if TYPE_CHECKING:
    import pandas as pd

    from dino_dense.pretrain.config import PretrainConfig

SUITE = "quickstart"


@dataclass(frozen=True)
class QuickstartConfig:
    """Results and seeds"""

    out: str = path("runs/quickstart")
    """Folder for the run and the results. Run the same command again to continue an interrupted run."""
    seeds: tuple[int, ...] = (0,)
    """Pretrain and measure once for each seed (a few minutes each on two CPU cores)."""


def main(argv: Sequence[str]) -> int:
    """Parse, pretrain, measure, print one table. Returns the exit status."""
    config = command_line.parse(
        QuickstartConfig,
        prog="python -m tasks quickstart",
        description="Render data, pretrain a small DINO on them, and compare it with random weights.",
        argv=argv,
    )
    import pandas as pd

    from dino_dense.backbone.load import random_name
    from dino_dense.pretrain.config import PretrainConfig
    from dino_dense.report import pairs_frame

    constants = recipe("pretrain/quickstart.yaml")
    tables = []
    for seed in config.seeds:
        run = Path(config.out) / f"pretrain-seed{seed}"
        settings: PretrainConfig = schema.from_plain(PretrainConfig, {**constants, "seed": seed, "out": str(run)})
        _pretrain(settings)
        entries = run_batch(
            BatchOptions(
                suite=SUITE,
                ckpt=(random_name(settings.arch), str(run)),
                out=str(Path(config.out) / f"results-seed{seed}"),
                device="cpu",
                seed=seed,
            )
        )
        failed = [entry for entry in entries if entry.report.status == "failed"]
        if failed:
            raise ValueError(f"{failed[0].label} of {failed[0].checkpoint} failed: {failed[0].report.error}")
        tables.append(pairs_frame(entries).assign(seed=seed))
    pairs = pd.concat(tables, ignore_index=True)
    write_text(Path(config.out) / "results.csv", pairs.to_csv(index=False))
    table = _table(pairs)
    write_text(Path(config.out) / "results.md", table.to_markdown(floatfmt=".1f") + "\n")
    print(f"\nFrozen features on the embedded data, percent:\n\n{table.to_string(float_format='{:.1f}'.format)}\n")
    print(f"Pages with pictures: {config.out}/results-seed*/index.html")
    return 0


def recipe(name: str) -> Any:
    return yaml.safe_load((importlib.resources.files("configs") / name).read_text())


def _pretrain(settings: PretrainConfig) -> None:
    """Train, or resume an interrupted run; does nothing for a finished run."""
    from data.pretraining import open_pretraining_data
    from data.sample import sample_data
    from dino_dense.pretrain.trainer import Trainer

    settings = replace(settings, resume="auto")
    images = open_pretraining_data(sample_data().images / "train")
    with distributed.session(settings.device) as (world, device):
        outcome = Trainer(settings, images, world, device).train()
    if outcome.signal is not None:
        raise KeyboardInterrupt


def _table(pairs: pd.DataFrame) -> pd.DataFrame:
    """A row for each checkpoint and seed, a column for each headline metric."""
    from dino_dense.backbone.load import split_name

    headlines = pairs.groupby(["seed", "checkpoint", "entry"], sort=False).first().reset_index()
    is_random = headlines["checkpoint"].map(lambda spec: split_name(spec)[0] == "random")
    headlines["checkpoint"] = is_random.map({True: "random", False: "pretrained"})
    headlines["column"] = headlines["entry"] + " " + headlines["metric"]
    table = headlines.pivot_table(index=["seed", "checkpoint"], columns="column", values="value", sort=False)
    return table.rename_axis(columns=None)
