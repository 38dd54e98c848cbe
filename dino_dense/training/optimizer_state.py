"""Convert an optimizer's state to named tensors, for a file, and back.

`torch.distributed.checkpoint.state_dict` does this too, but cannot load a parameter without state, such as the last
layer of a DINO head in its frozen first epochs (PyTorch 2.15: TypeError in set_optimizer_state_dict).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dino_dense.training.sharding import stored_as


def optimizer_tensors(optimizer: Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """PARAMETER.KEY -> value, for every parameter of `module` that the optimizer has updated."""
    return {
        f"{name}.{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def load_optimizer_tensors(optimizer: Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; learning rates and other options are unchanged.

    PyTorch decides the device of each value: AdamW's step count is on the CPU, where reading it does not wait for the
    device, but on the device with `fused`.

    Raises:
        KeyError: a value does not belong to a parameter of the module.
    """
    parameters = dict(module.named_parameters())
    in_order = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    number = {identity: index for index, identity in enumerate(in_order)}
    state: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        parameter_name, _, key = name.rpartition(".")
        parameter = parameters[parameter_name]
        state.setdefault(number[id(parameter)], {})[key] = _laid_out_as(parameter, value)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """The value in the parameter's memory format: fused steps walk through both in the order of memory."""
    if value.shape != parameter.shape:
        return value
    value = stored_as(parameter, value)
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
