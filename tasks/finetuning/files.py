"""The files of a run: the exact state to resume from, the fine-tuned weights, the log of the epochs."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from dino_dense.backbone.dino_vit import DinoViT, describe
from dino_dense.checkpoint import read_tensors, write_tensors
from dino_dense.files import write_text
from dino_dense.training.optimizer_state import load_optimizer_tensors, optimizer_tensors
from tasks.finetuning.network import Classifier

STATE_FILE = "last.safetensors"
"""The full state, to resume from."""
MODEL_FILE = "model.safetensors"
"""The weights of the headline score, network and linear layer; `load_backbone` opens the file as a backbone."""
BEST_FILE = "best.safetensors"
"""The weights of the best evaluation."""
LOG_FILE = "epochs.csv"


class State(NamedTuple):
    """All that changes during a run, except the numbers in the metadata."""

    model: Classifier
    average: ModelEmaV3 | None
    optimizer: Optimizer
    scaler: GradScaler


def save_state(path: Path, state: State, metadata: Mapping[str, Any]) -> None:
    """Write the state as one file, atomically, with `metadata` (plain JSON)."""
    tensors = {f"model.{name}": value for name, value in state.model.state_dict().items()}
    if state.average is not None:
        tensors |= {f"average.{name}": value for name, value in state.average.module.state_dict().items()}
    optimizer = optimizer_tensors(state.optimizer, state.model)
    tensors |= {f"optimizer.{name}": value for name, value in optimizer.items()}
    write_tensors(path, tensors, {**metadata, "scaler": state.scaler.state_dict()})


def load_state(path: Path, state: State) -> dict[str, Any]:
    """Load a saved state; returns its metadata.

    Raises:
        CheckpointError: the file is damaged (`read_tensors`).
    """
    tensors, metadata = read_tensors(path)
    state.model.load_state_dict(_under(tensors, "model."))
    if state.average is not None:
        state.average.module.load_state_dict(_under(tensors, "average."))
    load_optimizer_tensors(state.optimizer, state.model, _under(tensors, "optimizer."))
    state.scaler.load_state_dict(metadata["scaler"])
    return metadata


def save_model(path: Path, model: Classifier, metadata: Mapping[str, Any]) -> None:
    """Write the network's weights as backbone.* and the linear layer's as head.*, in one file."""
    body = model.body
    described = isinstance(body, DinoViT) or hasattr(body, "pretrained_cfg")
    architecture = {"architecture": describe(body)} if described else {}
    tensors: dict[str, Tensor] = {f"backbone.{name}": value for name, value in body.state_dict().items()}
    tensors |= {f"head.{name}": value for name, value in model.head.state_dict().items()}
    write_tensors(path, tensors, {**architecture, **metadata})


def read_log(path: Path, last_step: int) -> list[dict[str, float]]:
    """The rows of the log up to a step; [] without a log."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [
            {name: int(text) if text.isdecimal() else float(text) for name, text in row.items()}
            for row in csv.DictReader(file)
        ]
    return [row for row in rows if row["step"] <= last_step]


def write_log(path: Path, rows: list[dict[str, float]]) -> None:
    """Write the log atomically."""
    write_text(path, pd.DataFrame(rows).to_csv(index=False))


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
