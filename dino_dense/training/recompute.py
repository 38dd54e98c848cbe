"""Activation checkpointing: blocks keep their input alone, and compute the rest again in the backward pass.

Training deep nets with sublinear memory cost (arXiv 1604.06174).
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack  # it has no public name
from torch.utils.checkpoint import checkpoint

from dino_dense.training.drop_path import KeyedDropPath


class RecomputedBlocks(nn.Sequential):
    """Blocks whose activations are computed again in the backward pass: the same numbers, in less memory and more time.

    The second pass of a block repeats the first: its drop path has the numbers that it had then, though another group
    of crops may have come since, and attention is computed in the same way.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[N, tokens, C] -> [N, tokens, C]."""
        for block in self:
            x = recomputed(block, x)
        return x


def recomputed(block: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """`block(x, **options)`, computed again in the backward pass."""
    if not torch.is_grad_enabled():
        return block(x, **options)  # type: ignore[no-any-return]
    drop_paths = [module for module in block.modules() if isinstance(module, KeyedDropPath)]
    before = [(module, module.scale, module.rows) for module in drop_paths]
    contexts = functools.partial(_contexts, before, tuple(_get_current_function_mode_stack()))
    return checkpoint(block, x, use_reentrant=False, context_fn=contexts, **options)  # type: ignore[no-any-return]


def recompute_blocks(body: Any, name: str) -> None:
    """Replace the blocks of a vision transformer by `RecomputedBlocks`; names of parameters stay.

    Args:
        name: of the network, for the message.

    Raises:
        ValueError: the network's blocks do not follow each other simply, or have statistics that a second pass would
            count twice.
    """
    blocks = getattr(body, "blocks", None)
    if type(blocks) is not nn.Sequential or any(isinstance(part, nn.BatchNorm2d) for part in blocks.modules()):
        raise ValueError(
            f"activation_checkpointing is on, but {name} is no plain vision transformer: leave it off, and lower the "
            "memory with --accumulate"
        )
    body.blocks = RecomputedBlocks(*blocks)


Scales = Sequence[tuple[KeyedDropPath, Tensor | None, Tensor | None]]


def _contexts(
    scales: Scales, modes: Sequence[TorchFunctionMode]
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """The contexts of the first pass and of the second."""
    return nullcontext(), _as_before(scales, modes)


@contextmanager
def _as_before(scales: Scales, modes: Sequence[TorchFunctionMode]) -> Iterator[None]:
    now = [(module, module.scale, module.rows) for module, _, _ in scales]
    with ExitStack() as stack:
        for mode in modes:  # they belong to a thread, and on CUDA the backward pass has one of its own
            stack.enter_context(mode)
        _set(scales)
        try:
            yield
        finally:
            _set(now)


def _set(scales: Scales) -> None:
    for module, scale, rows in scales:
        module.scale, module.rows = scale, rows
