"""Losses of steps, looked at together: the host does not wait for a device in each step, and can run ahead."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from dino_dense import distributed

LOOK_EVERY = 10
"""Steps between two looks at the losses. A run also looks before it saves or measures."""


class StepLoss(NamedTuple):
    """The loss of one step, as numbers of the host."""

    step: int
    loss: float
    finite: bool
    """Whether the value that `PendingLosses.add` was told to check is finite in all processes."""


class PendingLosses:
    """Losses of steps that nobody has looked at yet. They stay on their device."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._values: list[Tensor] = []

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, step: int, loss: Tensor, checked: Tensor | None = None) -> None:
        """Keep the loss (0-dim) of a step. `checked`, by default the loss, is the value that must be finite."""
        self._steps.append(step)
        self._values.append(torch.stack([loss.detach(), (loss if checked is None else checked).detach()]))

    def take(self, *, mean: bool = False) -> list[StepLoss]:
        """The kept losses, in their order; waits for the device once. With `mean`, means over all processes."""
        if not self._values:
            return []
        values = torch.stack(self._values)
        rows = (distributed.all_reduce_mean(values) if mean else values).tolist()
        steps = self._steps
        self._steps, self._values = [], []
        return [StepLoss(step, loss, math.isfinite(seen)) for step, (loss, seen) in zip(steps, rows, strict=True)]
