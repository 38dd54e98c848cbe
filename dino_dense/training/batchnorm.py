"""Batch normalization over all processes of a run."""

from typing import TypeVar

from timm.layers import convert_sync_batchnorm
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def synchronized(module: Network) -> Network:
    """The module with batch statistics over all processes; its weights, statistics and activations stay as they are.

    timm's layers hold the activation beside the norm (`BatchNormAct2d`), which PyTorch's own converter drops.
    Convert before anything is compiled: a compiled child is replaced too.
    """
    converted: Network = convert_sync_batchnorm(module)
    return converted
