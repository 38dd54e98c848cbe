"""The device that tests compute on: `pytest --device cuda`; without the option, the CPU.

Tests of the CPU alone (its attention, exact bits, command lines, other processes) do not ask here.
"""

import os

import torch

from dino_dense.distributed import resolve_device

_names = ["cpu"]


def choose(name: str) -> None:
    """Compute on the device of this name from now on.

    Raises:
        ValueError: no such device; the message says which there are.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read before the first product, for exact repetition
    resolve_device(name)
    _names[:] = [name]


def chosen_name() -> str:
    """The chosen device as the value of an option."""
    return _names[0]


def chosen() -> torch.device:
    """The chosen device."""
    return resolve_device(chosen_name())
