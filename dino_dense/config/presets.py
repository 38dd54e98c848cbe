"""The YAML files of `configs/`: protocols by name."""

import functools
import importlib.resources
import math
from collections.abc import Mapping
from typing import Any

import yaml


def load_protocol(presets: str, name: str) -> dict[str, Any]:
    """The constants of a named protocol, `configs/protocols/{presets}_{name}.yaml`.

    Raises:
        ValueError: there is no such protocol; the message lists the existing names.
    """
    folder = importlib.resources.files("configs") / "protocols"
    file = folder / f"{presets}_{name}.yaml"
    if not file.is_file():
        raise ValueError(f"unknown preset {name!r}; there are: {', '.join(protocol_names(presets)) or 'none'}.")
    return yaml.safe_load(file.read_text())


def protocol_names(presets: str) -> list[str]:
    """Names of the protocols `configs/protocols/{presets}_NAME.yaml`."""
    folder = importlib.resources.files("configs") / "protocols"
    files = [entry.name for entry in folder.iterdir() if entry.name.startswith(f"{presets}_")]
    return sorted(file.removeprefix(f"{presets}_").removesuffix(".yaml") for file in files)


def matching_protocols(presets: str, config: Any) -> tuple[str, ...]:
    """The protocols whose file agrees with the config in every constant that it lists."""
    return tuple(name for name in protocol_names(presets) if not changed_fields(presets, name, vars(config)))


def changed_fields(presets: str, name: str, values: Mapping[str, Any]) -> tuple[str, ...]:
    """The fields whose values are not the protocol's constants.

    Raises:
        ValueError: there is no such protocol.
    """
    constants = _protocol(presets, name).items()
    return tuple(field for field, value in constants if field not in values or not _same(values[field], value))


@functools.cache
def _protocol(presets: str, name: str) -> dict[str, Any]:
    return load_protocol(presets, name)


def _same(value: Any, constant: Any) -> bool:
    """Whether two values are equal; numbers up to omitted digits (0.70711 for the root of a half)."""
    if isinstance(value, tuple | list) and isinstance(constant, tuple | list):
        return len(value) == len(constant) and all(map(_same, value, constant))
    if isinstance(value, float) and isinstance(constant, float):
        return math.isclose(value, constant, rel_tol=1e-5)
    return bool(value == constant)
