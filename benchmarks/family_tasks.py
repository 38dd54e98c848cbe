"""Which tasks run on which networks: `python -m benchmarks.family_tasks [--docs] [--rows FILE] [NAME ...]`.

Every task runs on embedded data with a network of random weights of each family of timm. A task either gives a finite
number, or refuses the network with a reason. With `--docs`, the table of docs/backbones.md is replaced. With `--rows`,
each finished row is kept in a file of JSON lines, and not made again.
"""

import atexit
import dataclasses
import functools
import json
import math
import re
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import tasks
from benchmarks.bench import write_between
from benchmarks.families import DOCUMENT, FAMILIES
from data.sample import sample_data
from dino_dense import Backbone, load_backbone
from tasks import Session, Task, measured
from tasks.harness.task import no_pictures

SIDE = 224
"""Side of square images: a multiple of the patch sizes 14, 16 and 32."""
SQUARES = {"resize": SIDE, "crop": SIDE}
SMALL: dict[str, dict[str, Any]] = {
    "cluster": {"size": SIDE, "seeds": (0,), "starts": 1},
    "copydetect": {"image_size": SIDE, "max_queries": 2, "attacks": ("crop10",)},
    "correspondence": {"image_size": SIDE, "max_pairs": 1},
    "davis": {"max_frames": 3},
    "depth": {"steps": 1, "batch_size": 2},
    "discovery": {"max_images": 1},
    "finetune": SQUARES | {"max_steps": 1, "batch_size": 2},
    "incontext": {"size": SIDE},
    "inside": {"short_side": 192, "max_frames": 3, "points": 4},
    "jhmdb": {"max_videos": 1},
    "knn": SQUARES,
    "linear": SQUARES | {"epochs": 1},
    "retrieval": SQUARES,
    "saliency": {"max_images": 1},
    "segprobe": {"crop": SIDE, "steps": 1, "batch_size": 2},
    "tokens": {"sizes": (SIDE, 256), "max_images": 2},
    "tracking": {"grid": 4},
    "vip": {"max_videos": 1},
    "vos": {"videos": ("late-trio",)},
}
"""Task -> settings that make its smoke run small."""
OF_CLASSES = ("copydetect", "finetune", "knn", "linear", "retrieval")
"""Tasks on folders of classes, which get a few images of each."""
OF_AN_IMAGE = re.compile(", and this one is [0-9]+x[0-9]+")
"""A part of a reason that another image would change."""
A_CLASS = {"train": 4, "val": 2}
"""Images of a class in each split."""
RAN = "yes"
CHOSEN = (
    *("ViT", "ViT, DINOv2 with registers", "ViT, mean of patches", "ViT, attention pooling (SigLIP)"),
    *("DeiT, distilled", "BEiT", "EVA-02", "DINOv3", "SAM", "Hiera", "XCiT", "Swin", "Swin V2", "PVT v2", "MaxViT"),
    *("DaViT", "TinyViT", "EfficientFormer", "ConvNeXt", "ResNet", "RegNet", "MobileNet V4"),
)
"""A family of each kind of body: all of them would take hours on a CPU."""


@functools.cache
def few_images() -> str:
    """A folder with a few of the embedded images of each class, which lives as long as the process."""
    few = tempfile.TemporaryDirectory()
    atexit.register(few.cleanup)
    for split, count in A_CLASS.items():
        for folder in sorted((sample_data().images / split).iterdir()):
            copies = Path(few.name) / split / folder.name
            copies.mkdir(parents=True)
            for path in sorted(folder.iterdir())[:count]:
                shutil.copy(path, copies)
    return few.name


def run(task: Task, backbone: Backbone) -> str:
    """`yes`, or the reason why the task does not run on the network."""
    task = dataclasses.replace(task, draw=no_pictures)
    data = {"data": few_images()} if task.name in OF_CLASSES else {}
    config = dataclasses.replace(task.smoke, **SMALL.get(task.name, {}), **data)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(out=Path(folder), device=torch.device("cpu"))
        try:
            outcome = measured(task, backbone, task.open(config), config, session)
        except ValueError as error:
            return " ".join(str(error).split())
        except Exception as error:
            return f"{type(error).__name__}, a fault: {' '.join(str(error).split())}"
    wrong = [score.metric for score in outcome.scores if not math.isfinite(score.value)]
    return f"not finite: {', '.join(wrong)}" if wrong else RAN


def row(family: str, name: str) -> dict[str, str]:
    """What each task gives on the network of one family."""
    backbone = load_backbone(f"random:{name}")
    return {"family": family} | {name: run(tasks.get(name), backbone) for name in tasks.names()}


def with_letters(table: pd.DataFrame, networks: dict[str, str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """The table with a letter instead of each reason, and the reason of each letter, without names of networks."""
    letters: dict[str, str] = {}

    def letter(cell: str, network: str) -> str:
        if cell == RAN:
            return cell
        reason = OF_AN_IMAGE.sub("", cell.replace(network, "NETWORK"))
        return letters.setdefault(reason, chr(ord("a") + len(letters)))

    rows = [
        {
            column: cell if column == "family" else letter(cell, networks[line["family"]])
            for column, cell in line.items()
        }
        for line in table.to_dict("records")
    ]
    return pd.DataFrame(rows), {mark: reason for reason, mark in letters.items()}


def kept_rows(file: Path | None) -> dict[str, dict[str, str]]:
    """Family -> its row, of a file of JSON lines that may not exist yet."""
    if file is None or not file.is_file():
        return {}
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return {line["family"]: line for line in rows}


def made_row(family: str, name: str, file: Path | None) -> dict[str, str]:
    """A new row, printed, and kept in the file."""
    begun = time.monotonic()
    made = row(family, name)
    refused = {task: cell for task, cell in made.items() if task != "family" and cell != RAN}
    print(f"{family}: {time.monotonic() - begun:.0f} s", *map(": ".join, refused.items()), sep="\n  ", flush=True)
    if file is not None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(made) + "\n")
    return made


def main() -> pd.DataFrame:
    """The table of the chosen families, or of the families with the given networks."""
    warnings.simplefilter("ignore")
    arguments = sys.argv[1:]
    file = None
    if "--rows" in arguments[:-1]:
        place = arguments.index("--rows")
        file = Path(arguments[place + 1])
        del arguments[place : place + 2]
    wanted = [word for word in arguments if not word.startswith("--")]
    kept = kept_rows(file)
    rows = [
        kept.get(family) or made_row(family, name, file)
        for family, name in FAMILIES.items()
        if name in wanted or (not wanted and family in CHOSEN)
    ]
    table, reasons = with_letters(pd.DataFrame(rows), FAMILIES)
    if "--docs" in arguments and not wanted:
        listed = "\n".join(f"- {mark}: {reason}" for mark, reason in reasons.items())
        write_between(DOCUMENT, "family tasks", f"{table.to_markdown(index=False)}\n\n{listed}")
    return table


if __name__ == "__main__":
    main()
