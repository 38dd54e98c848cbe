"""Counts the places where the host would wait for a device, without a device.

The meta device stands for it: its tensors have shapes and types, but no values. Each question for a value gets a 1.
"""

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")
aten = torch.ops.aten
WITH_INDICES = (aten.index, aten.index_put, aten.index_put_, aten._unsafe_index, aten._index_put_impl_)
DEPEND_ON_VALUES = (aten.nonzero, aten.masked_select, aten._unique2, aten.unique_consecutive)
"""Operations whose result has a size that only the device knows."""


class Waits(TorchDispatchMode):
    """A context that lists the waits of its block, each by the name of its operation.

    A wait is a value that the host asks for, a copy to the host, a copy to the device that is not `non_blocking`, and
    an index of the host into a tensor of the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self._constants = _Constants(self.seen)

    def __enter__(self) -> "Waits":
        self._constants.__enter__()
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        self._constants.__exit__(kind, error, trace)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name, first = func.overloadpacket, args[0] if args else None
        if not isinstance(first, Tensor):
            return func(*args, **kwargs)
        if name is aten._local_scalar_dense and first.device == DEVICE:
            self.seen.append("value")
            return torch.ones((), dtype=first.dtype).item()
        if name is aten._to_copy and first.device == DEVICE and _type_of(kwargs, first) == "cpu":
            self.seen.append("copy to the host")
            return torch.ones(first.shape, dtype=kwargs.get("dtype") or first.dtype)
        if name is aten._to_copy and _type_of(kwargs, first) == "meta" != first.device.type:
            self._blocking(kwargs.get("non_blocking", False))
        if name is aten.copy_ and first.device == DEVICE != args[1].device and args[1].ndim:
            self._blocking(args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        if name in WITH_INDICES and first.device == DEVICE and any(_on_host(index) for index in args[1]):
            self.seen.append("index of the host")
        if name in DEPEND_ON_VALUES and first.device == DEVICE:
            self.seen.append("size")
        return func(*args, **kwargs)

    def _blocking(self, non_blocking: bool) -> None:
        if not non_blocking:
            self.seen.append("copy to the device")


class _Constants(TorchFunctionMode):
    """Sees `torch.tensor(numbers, device=...)`, which on a device is a copy of the host's numbers."""

    def __init__(self, seen: list[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            self.seen.append("constant")
        return func(*args, **kwargs)


def _type_of(kwargs: dict[str, Any], tensor: Tensor) -> str:
    return torch.device(kwargs.get("device") or tensor.device).type


def _on_host(index: Tensor | None) -> bool:
    return index is not None and index.device.type == "cpu"
