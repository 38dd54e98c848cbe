"""A picture folder, and a call that trains on it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from data.pretraining import open_pretraining_data
from dino_dense.distributed import World
from dino_dense.pretrain.batches import ImageSource
from dino_dense.pretrain.trainer import Trainer
from tests.pretrain.tiny_run import TINY, write_pictures


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Small tensors only lose time to threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 26)
    return folder


@pytest.fixture
def train(pictures: Path, device: torch.device) -> Iterator[Callable[..., pd.DataFrame]]:
    """Train TINY with changes, in this process; returns log.csv."""
    exact = {"dtype": "fp32", "deterministic": True, "augment_on": "loader"} if device.type == "cuda" else {}

    def run(out: Path, images: ImageSource | None = None, **changes: Any) -> pd.DataFrame:
        config = replace(TINY, out=str(out), **exact | changes)
        Trainer(config, images or open_pretraining_data(pictures), World(), device).train()
        return pd.read_csv(out / "log.csv")

    yield run
    torch.use_deterministic_algorithms(False)
