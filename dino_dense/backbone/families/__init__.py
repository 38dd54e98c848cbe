"""The families of networks that features are read from: every file here is a family, and `READER` is its reader.

A file may also define `ARCHITECTURES`: name -> a function that makes this network with random weights, for networks
that timm does not have. The name then works wherever an architecture is named (`random:NAME`, `--arch NAME`), and in
our checkpoints.
"""

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from dino_dense.backbone.reader import Reader

Make = Callable[..., nn.Module]


@functools.cache
def readers() -> tuple[type[Reader], ...]:
    """A reader for each family, in the order in which they are asked; those of last resort come last."""
    return tuple(sorted((module.READER for module in _modules()), key=lambda reader: reader.last_resort))


def reader_of(module: nn.Module) -> Reader:
    """The reader of a network's family: the first that says it reads it."""
    return next(reader for reader in readers() if reader.reads(module))(module)


@functools.cache
def architectures() -> Mapping[str, Make]:
    """Name -> maker of each network that a family defines."""
    return {name: make for module in _modules() for name, make in getattr(module, "ARCHITECTURES", {}).items()}


def build(name: str, **options: Any) -> nn.Module:
    """A network of a family with random weights; it carries its name, by which a checkpoint rebuilds it."""
    module = architectures()[name](**options)
    module.architecture = name  # type: ignore[assignment]
    return module


def _modules() -> list[Any]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [importlib.import_module(f"{__name__}.{name}") for name in names]
