"""The pretraining losses: each file here defines one, with the name of the file.

A file NAME.py defines a subclass of `objective.Objective` and sets `OBJECTIVE` to it.
"""

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any

from torch import nn

from dino_dense.pretrain.objective import Objective


def names() -> list[str]:
    """The names of the objectives, in alphabetical order."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def get(name: str) -> type[Objective]:
    """The class of an objective.

    Raises:
        ValueError: no file here has this name; the message gives the nearest name.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"objectives has {name!r}, expected some of {', '.join(names())}{hint}")
    objective: type[Objective] = importlib.import_module(f"{__name__}.{name}").OBJECTIVE
    return objective


def build(chosen: Sequence[str], options: Any, width: int) -> nn.ModuleDict:
    """Name -> objective, for features of `width` channels. Draws the heads from the global generator."""
    return nn.ModuleDict({name: get(name)(options, width) for name in chosen})


def with_options(config_type: type) -> type:
    """The config class extended by the options of every objective; the class itself if it has them all."""
    further = [kind for kind in (get(name).Options for name in names()) if kind and not issubclass(config_type, kind)]
    if not further:
        return config_type
    extended = type(config_type.__name__, (config_type, *further), {"__doc__": config_type.__doc__})
    return dataclasses.dataclass(frozen=True)(extended)
