"""`python -m dino_dense.pretrain` whose measurements are results that are there already: PREPARED/step-N."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from dino_dense.config import command_line
from dino_dense.pretrain import trainer
from dino_dense.pretrain.__main__ import main
from dino_dense.pretrain.watch import Measure


def prepared(device: str, stopped: Callable[[], bool] = lambda: False) -> Measure:
    def measure(suite: Path, checkpoint: Path, out: Path) -> bool:
        shutil.copytree(Path(os.environ["PREPARED"]) / out.name, out)
        return True

    return measure


if __name__ == "__main__":
    torch.set_num_threads(1)
    trainer.in_own_process = prepared
    command_line.run(main)
