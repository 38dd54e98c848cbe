"""The base class of option groups. Each group is defined next to its code; `config.PretrainConfig` combines them."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args, get_origin, get_type_hints

Ranges = Mapping[str, tuple[float, float]]
"""Field -> smallest and largest allowed value, both included; for a tuple, the limits of each element."""
POSITIVE = (1e-9, math.inf)
COUNT = (1, math.inf)
NOT_NEGATIVE = (0, math.inf)
SHARE = (0, 1)


@dataclass(frozen=True)
class Options:
    """Settings that are checked on construction.

    Raises:
        ValueError: an impossible setting; the message names the field and its value.
    """

    RANGES: ClassVar[Ranges] = {}
    RISING: ClassVar[tuple[str, ...]] = ()
    """Fields with a range (low, high), 0 < low <= high."""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Check each field. A subclass calls `super().check()` first, then checks relations between fields."""
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal:
                _check_choice(name, getattr(self, name), get_args(hint))
        for owner in type(self).__mro__:
            for name, limits in vars(owner).get("RANGES", {}).items():
                _check_numbers(name, getattr(self, name), limits)
            for name in vars(owner).get("RISING", ()):
                low, high = getattr(self, name)
                if not 0 < low <= high:
                    raise ValueError(f"{name} is {low, high}, expected a range (low, high) with 0 < low <= high")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}{hint}")


def _check_numbers(name: str, value: object, limits: tuple[float, float]) -> None:
    low, high = limits
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int | float) and not low <= number <= high:
            raise ValueError(f"{name} is {value}, expected from {low:g} to {high:g}")
