"""A configuration defined by a frozen dataclass: roles and texts of its fields, conversion to YAML and plain values.

A field has one role, given in its definition::

    data: str | None = path()           a file or folder
    split: str = selects("val")         selects data
    batch_size: int = runtime(64)       changes no number, only speed, memory or additional output
    temperature: float = 0.07           default: a constant of the protocol
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import docstring_parser
import yaml

RENAMED = {"normalise": "normalize", "centred_whitening": "centered_whitening"}
"""Old name -> new name of a field. Command lines, files and reports may use old names until version 0.2."""

T = TypeVar("T")
Role = Literal["path", "selects", "runtime", "protocol"]


def path(default: Any = None) -> Any:
    """A field for one or more files or folders: `~` is the home folder, and relative paths are below `--data-root`."""
    return dataclasses.field(default=default, metadata={"role": "path"})


def selects(default: T, *, layout: str = "") -> T:
    """A field that selects data. With `layout`, it applies to this kind of data only."""
    return dataclasses.field(default=default, metadata={"role": "selects", "layout": layout})


def runtime(default: T) -> T:
    """A field that changes no number: a run may resume, and be compared, with another value."""
    return dataclasses.field(default=default, metadata={"role": "runtime"})


def constant(default: T, *, layout: str) -> T:
    """A constant of the protocol that applies to one kind of data only."""
    return dataclasses.field(default=default, metadata={"layout": layout})


def fields_of(config_type: type, role: Role) -> frozenset[str]:
    """Names of the fields with this role."""
    return frozenset(
        item.name for item in dataclasses.fields(config_type) if item.metadata.get("role", "protocol") == role
    )


def idle_fields(config: Any, layout: str) -> list[str]:
    """Fields for another layout that differ from their defaults: they would be ignored."""
    return [
        item.name
        for item in dataclasses.fields(config)
        if item.metadata.get("layout") not in (None, "", layout) and getattr(config, item.name) != item.default
    ]


def check_positive(config: Any, *names: str) -> None:
    """ValueError for the first of these fields that is set and below 1."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}: expected 1 or more")


def with_home_expanded(config_type: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config with `~` and `~user` expanded in path fields."""

    def expanded(text: str) -> str:
        return str(Path(text).expanduser()) if text.startswith("~") else text

    return _paths_mapped(config_type, values, expanded)


def _paths_mapped(config_type: type, values: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    def changed(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(map(changed, value))
        return change(value) if isinstance(value, str) else value

    paths = fields_of(config_type, "path")
    return {name: changed(value) if name in paths else value for name, value in values.items()}


def below_root(config_type: type, values: Mapping[str, Any], root: str) -> dict[str, Any]:
    """The values of a config with relative paths moved below `root`."""
    return _paths_mapped(config_type, with_home_expanded(config_type, values), lambda text: str(Path(root) / text))


def with_new_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values under present names: a run of an earlier version may have `normalise`."""
    return {RENAMED.get(name, name): value for name, value in values.items()}


def to_yaml(config: Any) -> str:
    """A config as YAML for `--config`."""
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
    names, values = field_names(config_type), with_new_names(values)
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f" Did you mean {near[0]}?" if near else f" Its fields: {', '.join(names)}."
            raise ValueError(f"{config_type.__name__} has no field {key!r}.{hint}")
    return config_type(**{key: frozen(value) for key, value in values.items()})


def field_names(config_type: type) -> list[str]:
    return [item.name for item in dataclasses.fields(config_type)]


def field_docs(config_type: type) -> dict[str, str]:
    """The docstring under each field of a dataclass and its bases, on one line.

    Raises:
        TypeError: a field has no docstring; every option needs help.
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
