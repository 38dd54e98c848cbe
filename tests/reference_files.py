"""Where the reference arrays and the DAVIS frames for tests are; tests skip, saying which variable to set."""

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch
from torch import Tensor

PROJECT = Path(__file__).resolve().parents[1]


def _missing(variable: str) -> Callable[[str], NoReturn]:
    """Skip what nobody promised; a variable that names nothing is a failure."""
    return pytest.fail if os.environ.get(variable) else pytest.skip


def reference(name: str) -> np.lib.npyio.NpzFile:
    """The arrays of `<name>.npz` in DINO_DENSE_REFERENCE."""
    beside = PROJECT.parent / "shared" / "reference"
    default = beside if beside.is_dir() else PROJECT / "tests" / "reference"
    path = Path(os.environ.get("DINO_DENSE_REFERENCE") or default) / f"{name}.npz"
    if not path.is_file():
        _missing("DINO_DENSE_REFERENCE")(f"no {path}: set DINO_DENSE_REFERENCE to the folder of reference arrays")
    return np.load(path, allow_pickle=False)


def davis_root() -> Path:
    """The DAVIS tree in DINO_DENSE_DAVIS."""
    default = PROJECT.parent / "shared" / "datasets" / "davis2016"
    path = Path(os.environ.get("DINO_DENSE_DAVIS") or default)
    if not path.is_dir():
        _missing("DINO_DENSE_DAVIS")(f"no {path}: set DINO_DENSE_DAVIS to a DAVIS-2016 tree")
    return path


def recipe_weights(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The reference's deterministic weights: parameter names and shapes -> float32 tensors.

    A normal draw seeded by the name's CRC-32, scaled by what the parameter is.
    """
    return {name: torch.from_numpy(_recipe(name, tuple(shape))) for name, shape in shapes.items()}


def _recipe(name: str, shape: tuple[int, ...]) -> np.ndarray:
    draw = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    if name.endswith(("norm1.weight", "norm2.weight")) or name == "norm.weight":
        return (1 + 0.1 * draw).astype(np.float32)
    if name in ("pos_embed", "cls_token"):
        scale = 0.05
    elif name == "patch_embed.proj.weight":
        scale = 2 / np.sqrt(fan_in)
    else:
        scale = 0.5 / np.sqrt(fan_in) if len(shape) >= 2 else 0.02
    return (scale * draw).astype(np.float32)


def pretrain_weights(shapes: Mapping[str, Sequence[int]], salt: str) -> dict[str, Tensor]:
    """The deterministic weights of the second set of arrays, whose every part shows in the output."""
    return {name: torch.from_numpy(_pretrain_recipe(name, tuple(shape), salt)) for name, shape in shapes.items()}


_TOKENS = {"cls_token", "storage_tokens", "register_tokens", "mask_token", "pos_embed", "position_embeddings"}
_PATCHES = ("patch_embed.proj.weight", "patch_embeddings.projection.weight", "patch_embeddings.weight")
_PROJECTIONS = {"qkv", "query", "key", "value", "q_proj", "k_proj", "v_proj"}


def _pretrain_recipe(name: str, shape: tuple[int, ...], salt: str) -> np.ndarray:
    draw = np.random.Generator(np.random.PCG64(zlib.crc32((salt + name).encode()))).standard_normal(shape)
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    *_, owner, last = ["", *name.split(".")]
    projection = owner in _PROJECTIONS
    if last in _TOKENS:
        value = 0.05 * draw
    elif last in ("gamma", "lambda1"):
        value = 0.5 + 0.1 * draw
    elif "norm" in owner and last == "weight":
        value = 1 + 0.1 * draw
    elif name.endswith(_PATCHES):
        value = draw * (2 / np.sqrt(fan_in))
    elif len(shape) >= 2:
        value = draw * ((1.5 if projection else 0.5) / np.sqrt(fan_in))
    else:
        value = (0.2 if projection else 0.02) * draw
    return value.astype(np.float32)
