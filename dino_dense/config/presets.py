"""The YAML files of `configs/`: protocols by name."""

import importlib.resources
from collections.abc import Mapping
from typing import Any

import yaml


def load_protocol(presets: str, name: str) -> dict[str, Any]:
    """The constants of a named protocol, `configs/protocols/{presets}_{name}.yaml`.

    Raises:
        ValueError: there is no such protocol (with those there are).
    """
    folder = importlib.resources.files("configs") / "protocols"
    file = folder / f"{presets}_{name}.yaml"
    if not file.is_file():
        raise ValueError(f"unknown preset {name!r}; there are: {', '.join(protocol_names(presets))}.")
    return yaml.safe_load(file.read_text())


def protocol_names(presets: str) -> list[str]:
    """Names of the protocols `configs/protocols/{presets}_NAME.yaml`."""
    folder = importlib.resources.files("configs") / "protocols"
    files = [entry.name for entry in folder.iterdir() if entry.name.startswith(f"{presets}_")]
    return sorted(file.removeprefix(f"{presets}_").removesuffix(".yaml") for file in files)


def matching_protocol(presets: str, constants: Mapping[str, Any]) -> str | None:
    """The protocol `configs/protocols/{presets}_NAME.yaml` with just these constants; None for a mixture."""
    known = {name: load_protocol(presets, name) for name in protocol_names(presets)}
    return next((name for name, preset in known.items() if preset == constants), None)
