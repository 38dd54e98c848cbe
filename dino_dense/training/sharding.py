"""Shares of weights: each process holds a part of every weight, gradient and optimizer state (FSDP2, ZeRO stage 3).

A module gathers its weights for its own forward and backward pass. Numbers equal replicas' up to rounding.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dino_dense import distributed


def shard(units: Iterable[nn.Module], device: torch.device) -> None:
    """Share out the weights of each module among all processes; inner modules first. The weights move to the device.

    Each module of `units` gathers its weights when it is called, except those of an earlier, inner one, and lets them
    go afterwards.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for unit in units:
        fully_shard(unit, mesh=mesh, reshard_after_forward=True)


def is_shared(tensor: Tensor) -> bool:
    """Whether this process holds only its part of the tensor."""
    return hasattr(tensor, "full_tensor")


@torch.no_grad()
def own_part(tensor: Tensor) -> Tensor:
    """The part of a shared tensor that this process holds, in the same memory; other tensors as they are."""
    return tensor.to_local() if is_shared(tensor) else tensor  # type: ignore[attr-defined,no-any-return]


@torch.no_grad()
def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with shared ones put together, on the CPU, in the main process; other processes get {} then.

    All processes call it. One shared tensor at a time is whole on the device.
    """
    if not any(is_shared(tensor) for tensor in tensors.values()):
        return dict(tensors)
    gathered = {}
    for name, tensor in tensors.items():
        value = tensor.full_tensor().cpu() if is_shared(tensor) else tensor  # type: ignore[attr-defined]
        if distributed.rank() == 0:
            gathered[name] = value
    return gathered


def stored_as(target: Any, value: Tensor) -> Tensor:
    """A whole value, shared out as `target` is; as it is if `target` is not shared. Without communication."""
    if not is_shared(target) or value.shape != target.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = target.device_mesh, target.placements
    return distribute_tensor(value.to(target.device), mesh, placements, src_data_rank=None)


def stored_as_in(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of whole values, shared out as the weights of `module` are."""
    present = module.state_dict()
    return {name: stored_as(present.get(name, value), value) for name, value in tensors.items()}
