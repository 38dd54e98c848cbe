"""Where the reference arrays and the DAVIS frames for tests are; tests skip, saying which variable to set."""

import os
from pathlib import Path

import numpy as np
import pytest

PROJECT = Path(__file__).resolve().parents[1]


def reference(name: str) -> np.lib.npyio.NpzFile:
    """The arrays of ``<name>.npz`` in DINO_DENSE_REFERENCE."""
    beside = PROJECT.parent / "shared" / "reference"
    default = beside if beside.is_dir() else PROJECT / "tests" / "reference"
    path = Path(os.environ.get("DINO_DENSE_REFERENCE") or default) / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"no {path}: set DINO_DENSE_REFERENCE to the folder of reference arrays")
    return np.load(path, allow_pickle=False)


def davis_root() -> Path:
    """The DAVIS tree in DINO_DENSE_DAVIS."""
    default = PROJECT.parent / "shared" / "datasets" / "davis2016"
    path = Path(os.environ.get("DINO_DENSE_DAVIS") or default)
    if not path.is_dir():
        pytest.skip(f"no {path}: set DINO_DENSE_DAVIS to a DAVIS-2016 tree")
    return path
