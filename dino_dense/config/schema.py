"""A frozen dataclass as the definition of a configuration: its fields, their texts, YAML and plain values."""

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import docstring_parser
import yaml


def to_yaml(config: Any) -> str:
    """A config as YAML that `--config` reads back."""
    return yaml.safe_dump(to_plain(config), sort_keys=False)


def to_plain(config: Any) -> dict[str, Any]:
    """A config dataclass as a dict of JSON values."""
    plain = dataclasses.asdict(config)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def from_plain(config_type: type, values: Mapping[str, Any]) -> Any:
    """The inverse of `to_plain`.

    Raises:
        ValueError: a key is not a field (with the nearest name).
    """
    names = [item.name for item in dataclasses.fields(config_type)]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" Its fields: {', '.join(names)}."
            raise ValueError(f"{config_type.__name__} has no field {key!r}.{hint}")
    return config_type(**{key: frozen(value) for key, value in values.items()})


def field_names(config_type: type) -> list[str]:
    return [item.name for item in dataclasses.fields(config_type)]


def field_docs(config_type: type) -> dict[str, str]:
    """The text under each field of a dataclass and of its bases, on one line.

    Raises:
        TypeError: a field has no text; every option explains itself.
    """
    texts: dict[str, str] = {}
    for base in reversed(config_type.__mro__):
        if dataclasses.is_dataclass(base):
            for param in docstring_parser.parse_from_object(base).params:
                texts[param.arg_name] = " ".join((param.description or "").split())
    for item in dataclasses.fields(config_type):
        if not texts.get(item.name):
            raise TypeError(f"{config_type.__name__}.{item.name} has no docstring under it")
    return texts


def frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
