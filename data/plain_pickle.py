"""Pickles of plain data (containers, texts, numbers, NumPy arrays), read without running the program that a pickle is.

They are read with stand-ins for the few things that such a file needs; whatever else it names is refused before it is
looked up.
"""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data import DataError


class _DType:
    """Replaces numpy.dtype; plain numbers only."""

    def __init__(self, code: str, *_: object) -> None:
        if not re.fullmatch(r"[<>=|]?[biuf]\d{1,2}", code):
            raise pickle.UnpicklingError(f"it holds an array of {code!r}")
        self.dtype: np.dtype[Any] = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class StoredArray:
    """Replaces numpy.ndarray."""

    values: npt.NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, raw = state
        self.values = _decode(raw, kind).reshape(shape, order="F" if fortran else "C")


def _decode(raw: Any, kind: _DType) -> npt.NDArray[Any]:
    # Bytes that Python 2 wrote arrive as text.
    return np.frombuffer(raw.encode("latin1") if isinstance(raw, str) else raw, kind.dtype)


def _reconstruct(*_: object) -> StoredArray:
    return StoredArray()


def _from_buffer(raw: Any, kind: _DType, shape: Any, order: str) -> StoredArray:
    array = StoredArray()
    array.__setstate__((1, shape, kind, order == "F", raw))
    return array


def _scalar(kind: _DType, raw: Any) -> int | float:
    return _decode(raw, kind)[0].item()


def _encode(text: str, encoding: str) -> bytes:
    return text.encode({"latin1": "latin1"}[encoding])


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): StoredArray,
    ("numpy", "dtype"): _DType,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,  # protocol 5
    ("_codecs", "encode"): _encode,  # how Python 3 writes bytes in protocol 2
}


class _PlainUnpickler(pickle.Unpickler):
    """Builds containers, texts, numbers and stand-ins; imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        key = (module.replace("numpy._core", "numpy.core"), name)
        if key not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which plain data do not need")
        return _STAND_INS[key]


def read_plain_pickle(file: Path) -> Any:
    """The content of a pickle of plain data; arrays are `StoredArray`, whose `values` are theirs.

    Raises:
        FileNotFoundError: no such file.
        DataError: it is damaged, or asks for more than plain data.
    """
    with file.open("rb") as stream:
        try:
            return _PlainUnpickler(stream, encoding="latin1").load()
        except Exception as error:  # a damaged pickle can raise anything
            reason = str(error) or type(error).__name__
            raise DataError(f"{file}: refused, {reason}. Get the published file anew.") from None
