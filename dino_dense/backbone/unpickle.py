"""Read the tensors of an untrusted `.pth` file without running its code.

PyTorch's restricted reader comes first. If a trainer stored more than tensors (NumPy scalars, paths, dates, whole
modules), the file is read again: every other class and function is replaced by a stand-in, an object that only keeps
its state.
"""

import argparse
import io
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dino_dense.checkpoint import CheckpointError, first_line


class StandIn:
    """Replaces an object of any other class; subclasses have the class's name. Keeps its state, does nothing."""

    state: Any = None
    """The state that the pickle gives to the object."""

    def __new__(cls, *_: Any, **__: Any) -> "StandIn":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Accepts any arguments."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, *_: Any) -> None:
        """Ignores an entry of a dict subclass."""

    def append(self, *_: Any) -> None:
        """Ignores an item of a list or set subclass."""

    extend = add = update = append

    def __call__(self, *_: Any, **__: Any) -> "StandIn":
        return self

    def __hash__(self) -> int:
        return id(self)


@dataclass(frozen=True)
class Unpickled:
    """The content of a `.pth` file."""

    content: Any
    """Tensors and plain containers; a `StandIn` for each object of another class."""
    objects: tuple[str, ...] = ()
    """Module and name of each class and function that a stand-in replaces, in the order of the file."""


def read_pickled(path: Path) -> Unpickled:
    """The content of a `.pth` file.

    Raises:
        CheckpointError: the file is no checkpoint, or is damaged.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # in DINO's files
            return Unpickled(torch.load(path, map_location="cpu", weights_only=True))
    except (pickle.UnpicklingError, UnicodeDecodeError, AttributeError, TypeError) as error:
        return _read_tensors_only(path, error)
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, IndexError) as error:
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path}: a TorchScript program, which runs code when read. Give the state dict that it was made from."
            ) from None
        raise CheckpointError(f"{path}: cut short or not a checkpoint ({first_line(error)}). Copy it again.") from None


@contextmanager
def objects_named(path: Path, objects: Sequence[str]) -> Iterator[None]:
    """Add the name of a Python object that was not rebuilt to a CheckpointError of the block."""
    try:
        yield
    except CheckpointError as error:
        if not objects:
            raise
        raise CheckpointError(
            f"{path}: holds the Python object {objects[0]}, which was not rebuilt, since that could run code. "
            f"Without it: {str(error).removeprefix(f'{path}: ')} If you trust its author, load the file yourself, keep "
            "the state dict and save that."
        ) from None


def _read_tensors_only(path: Path, refusal: Exception) -> Unpickled:
    objects: list[str] = []
    try:
        with path.open("rb") as file:
            content = _from_zip(path, objects) if zipfile.is_zipfile(file) else _from_legacy(path, objects)
        return Unpickled(content, tuple(dict.fromkeys(objects)))
    except _NotTorchError:
        raise CheckpointError(f"{path}: not a PyTorch checkpoint, or damaged ({first_line(refusal)}).") from None
    except Exception as error:  # a pickle of any program may fail in any way
        unknown = re.search(r"GLOBAL ([\w.]+)", str(refusal))
        if unknown is None:
            reason = first_line(error) or type(error).__name__
            raise CheckpointError(f"{path}: not a PyTorch checkpoint, or damaged ({reason}).") from None
        raise CheckpointError(
            f"{path}: holds the Python object {unknown[1]}, which could run code when read, and its tensors cannot be "
            f"read without it ({first_line(error)}). Expected tensors only. If you trust its author, load it yourself, "
            "keep the state dict and save that."
        ) from None


class _NotTorchError(Exception):
    """A pickle that is no PyTorch checkpoint."""


@dataclass(frozen=True)
class _Storage:
    """The flat values of tensors."""

    values: Tensor


class _TensorsOnly(pickle.Unpickler):
    """Builds tensors, dicts and lists, and stand-ins for all else, so that no code of the file's author runs.

    Args:
        file: the open pickle.
        storage: (key, dtype, count) -> the values of the storage.
        objects: receives the names of the replaced classes and functions.
    """

    def __init__(
        self,
        file: io.BufferedIOBase | io.BytesIO,
        storage: Callable[[str, torch.dtype, int], Tensor],
        objects: list[str],
    ) -> None:
        super().__init__(file, encoding="latin-1")
        self.storage, self.objects = storage, objects

    def find_class(self, module: str, name: str) -> Any:
        """Our function or class for the parts of a tensor, else a new stand-in class."""
        known = _KNOWN.get((module, name))
        if known is not None:
            return known
        if module.split(".")[0] == "torch" and name.endswith("Storage"):
            return _dtype_of(name)
        dtype = getattr(torch, name, None) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        self.objects.append(f"{module}.{name}")
        return type(name, (StandIn,), {})

    def persistent_load(self, pid: Any) -> _Storage:
        """The storage of torch's reference ("storage", type, key, device, count)."""
        _, kind, key, _, count = pid[:5]
        dtype = kind if isinstance(kind, torch.dtype) else torch.uint8
        return _Storage(self.storage(str(key), dtype, int(count)))


def _dtype_of(storage: str) -> torch.dtype:
    """float32 for "FloatStorage" and so on; uint8 for a storage without type."""
    names = {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64"}
    names |= {"Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool"}
    return getattr(torch, names.get(storage.removesuffix("Storage"), "uint8"))


def _rebuild(storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if offset < 0 or min(stride, default=0) < 0 or (0 not in size and last >= storage.values.numel()):
        raise ValueError("a tensor reaches beyond its storage")
    return storage.values.as_strided(tuple(size), tuple(stride), offset)


def _rebuild_untyped(
    storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any
) -> Tensor:
    """`_rebuild_tensor_v3`: the type comes after hooks, the storage is bytes."""
    dtype = next((value for value in rest if isinstance(value, torch.dtype)), torch.float32)
    return _rebuild(_Storage(storage.values.view(torch.uint8).view(dtype)), offset, size, stride)


def _first(value: Any, *_: Any) -> Any:
    return value


def _plain_dict(items: Any = (), *_: Any) -> dict[Any, Any]:
    return dict(items) if isinstance(items, Mapping | list | tuple) else {}


_KNOWN: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_untyped,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): _plain_dict,
    ("collections", "Counter"): _plain_dict,
}


def _from_zip(path: Path, objects: list[str]) -> Any:
    """Read the current format: an archive of data.pkl and one entry for each storage."""
    with zipfile.ZipFile(path) as archive:
        entries = [name for name in archive.namelist() if name.endswith("data.pkl")]
        if len(entries) != 1:
            raise _NotTorchError
        root = entries[0].removesuffix("data.pkl")
        order = archive.read(f"{root}byteorder").decode() if f"{root}byteorder" in archive.namelist() else "little"
        if order != "little":
            raise ValueError(f"its numbers are {order}-endian")
        storages: dict[str, Tensor] = {}

        def storage(key: str, dtype: torch.dtype, _: int) -> Tensor:
            if key not in storages:
                numbers = bytearray(archive.read(f"{root}data/{key}"))
                storages[key] = torch.frombuffer(numbers, dtype=torch.uint8) if numbers else torch.zeros(0).byte()
            return storages[key].view(dtype)

        return _TensorsOnly(io.BytesIO(archive.read(entries[0])), storage, objects).load()


_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def _from_legacy(path: Path, objects: list[str]) -> Any:
    """Read the format before PyTorch 1.6: several pickles, then the storages' values in the order of their keys."""

    def no_storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        raise ValueError(f"unexpected storage {key}")

    storages: dict[str, Tensor] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
        return storages.setdefault(key, torch.zeros(count, dtype=dtype))

    with path.open("rb") as file:
        try:
            magic = _TensorsOnly(file, no_storage, objects).load()
        except Exception as error:
            raise _NotTorchError from error
        if magic != _LEGACY_MAGIC:
            raise _NotTorchError
        for _ in range(2):  # the version, and sizes of the writer's C types
            _TensorsOnly(file, no_storage, objects).load()
        content = _TensorsOnly(file, storage, objects).load()
        for key in _TensorsOnly(file, no_storage, objects).load():
            count = int.from_bytes(file.read(8), "little")
            values = storages[str(key)]
            numbers = bytearray(file.read(count * values.element_size()))
            if numbers:
                values.copy_(torch.frombuffer(numbers, dtype=values.dtype))
    return content


# --- What is in a content ----------------------------------------------------------------------------------


def module_state(module: StandIn) -> dict[str, Tensor]:
    """The state dict of a whole pickled module, collected from its parts; {} for any other object."""
    state = module.state if isinstance(module.state, Mapping) else {}
    tensors: dict[str, Tensor] = {}
    for kind in ("_parameters", "_buffers"):
        own = state.get(kind) or {}
        tensors |= {str(name): value for name, value in own.items() if isinstance(value, Tensor)}
    for name, child in (state.get("_modules") or {}).items():
        if isinstance(child, StandIn):
            tensors |= {f"{name}.{inner}": value for inner, value in module_state(child).items()}
    return tensors
