"""Batch normalization over all processes of a run."""

from typing import TypeVar

from timm.layers import convert_sync_batchnorm
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def synchronized(module: Network) -> Network:
    """The module with batch statistics over all processes; weights, statistics and activations are unchanged.

    timm's layers include the activation (`BatchNormAct2d`), which PyTorch's own converter would drop. Convert before
    compiling: a compiled child is replaced too.
    """
    converted: Network = convert_sync_batchnorm(module)
    return converted
