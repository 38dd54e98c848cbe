"""The quickstart: render data, pretrain a small DINO, and compare it with random weights in a table.

With `--real` it then compares the small DINO with a published network.
"""

from __future__ import annotations

import importlib.resources
import sys
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
REAL_SUITE = "real"
REAL = "timm:vit_small_patch16_224.dino"
"""The published network of `--real` without a name: DINO's own ViT-S/16, a download of 83 MiB."""


@dataclass(frozen=True)
class QuickstartConfig:
    """Results and seeds"""

    out: str = path("runs/quickstart")
    """Folder for the run and the results. Run the same command again to continue an interrupted run."""
    seeds: tuple[int, ...] = (0,)
    """Pretrain and measure once for each seed (a few minutes each on two CPU cores)."""
    real: bool | str = path(False)
    """Compare the small DINO with a trained network too, and open the page in a browser if there is a display. Without
    a value, DINO's published ViT-S/16 (timm:vit_small_patch16_224.dino; downloads 83 MiB); or a checkpoint as for a
    task's --ckpt. Goes on without it if the hub cannot be reached."""


def main(argv: Sequence[str]) -> int:
    """Parse, pretrain, measure, print one table. Returns the exit status."""
    config = command_line.parse(
        QuickstartConfig,
        prog="python -m tasks quickstart",
        description="Render data, pretrain a small DINO on them, and compare it with random weights.",
        argv=argv,
    )
    real = _real_checkpoint(config.real)  # asked now: a wrong name is an error before minutes of work
    _compare_with_random(config)
    if real:
        _compare_with_real(config, real)
    return 0


def _real_checkpoint(wanted: bool | str) -> str:
    """The checkpoint of `--real`; empty if none is wanted, or if it is out of reach, with a notice."""
    if not wanted:
        return ""
    from dino_dense.backbone.hub import why_out_of_reach

    spec = wanted if isinstance(wanted, str) else REAL
    reason = why_out_of_reach(spec)
    if not reason:
        return spec
    print(f"--real: {spec} is left out: {reason}. A file of your own works too: --real FILE.", file=sys.stderr)
    return ""


def _compare_with_random(config: QuickstartConfig) -> None:
    """Pretrain with each seed, measure the run beside random weights, and print the table of all."""
    import pandas as pd

    from dino_dense.backbone.load import random_name
    from dino_dense.pretrain.config import PretrainConfig

    constants = recipe("pretrain/quickstart.yaml")
    tables = []
    for seed in config.seeds:
        run = _run_folder(config, seed)
        settings: PretrainConfig = schema.from_plain(PretrainConfig, {**constants, "seed": seed, "out": str(run)})
        _pretrain(settings)
        results = Path(config.out) / f"results-seed{seed}"
        tables.append(_measured(SUITE, (random_name(settings.arch), str(run)), results, seed).assign(seed=seed))
    pairs = pd.concat(tables, ignore_index=True)
    write_text(Path(config.out) / "results.csv", pairs.to_csv(index=False))
    table = _table(pairs.assign(checkpoint=_random_or_pretrained(pairs["checkpoint"])), ["seed", "checkpoint"])
    write_text(Path(config.out) / "results.md", table.to_markdown(floatfmt=".1f") + "\n")
    print(f"\nFrozen features on the embedded data, percent:\n\n{_text(table)}\n")
    print(f"Pages with pictures: {config.out}/results-seed*/index.html")


def _compare_with_real(config: QuickstartConfig, real: str) -> None:
    """Measure the run of the first seed and the real network, print a table, and open the page."""
    from dino_dense.report import open_page

    results = Path(config.out) / "results-real"
    pairs = _measured(REAL_SUITE, (str(_run_folder(config, config.seeds[0])), real), results, config.seeds[0])
    print(f"\nBoth networks, on larger images, percent:\n\n{_text(_table(pairs, ['checkpoint']))}\n")
    open_page(results / "index.html")


def _run_folder(config: QuickstartConfig, seed: int) -> Path:
    return Path(config.out) / f"pretrain-seed{seed}"


def _measured(suite: str, checkpoints: tuple[str, ...], out: Path, seed: int) -> pd.DataFrame:
    """The scores of a suite, a row for each."""
    from dino_dense.report import pairs_frame

    entries = run_batch(BatchOptions(suite=suite, ckpt=checkpoints, out=str(out), device="cpu", seed=seed))
    for entry in entries:
        if entry.report.status == "failed":
            raise ValueError(f"{entry.label} of {entry.checkpoint} failed: {entry.report.error}")
    return pairs_frame(entries)


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


def _random_or_pretrained(checkpoints: pd.Series) -> pd.Series:
    from dino_dense.backbone.load import split_name

    return checkpoints.map(lambda spec: "random" if split_name(spec)[0] == "random" else "pretrained")


def _table(pairs: pd.DataFrame, index: Sequence[str]) -> pd.DataFrame:
    """A row for each combination of the columns `index`, a column for each headline metric."""
    headlines = pairs.groupby([*index, "entry"], sort=False).first().reset_index()
    headlines["column"] = headlines["entry"] + " " + headlines["metric"]
    return headlines.pivot_table(index=index, columns="column", values="value", sort=False).rename_axis(columns=None)


def _text(table: pd.DataFrame) -> str:
    return table.to_string(float_format="{:.1f}".format)
