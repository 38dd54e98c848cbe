"""An optimizer's state goes through a file."""

import pytest
import torch
from torch import nn

from dino_dense.training.optimizer_state import load_optimizer_tensors, optimizer_tensors


@pytest.mark.parametrize("fused", [False, True])
def test_momenta_of_channels_last_weights_keep_their_places(fused: bool):
    """A file holds them in the usual order; the weights of convolutions lie in another one."""
    torch.manual_seed(0)
    images = torch.randn(6, 2, 3, 8, 8)

    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        module = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        return module, torch.optim.AdamW(module.parameters(), lr=0.1, fused=fused)

    def train(module: nn.Module, optimizer: torch.optim.Optimizer, batches: torch.Tensor) -> None:
        for batch in batches:
            optimizer.zero_grad()
            module(batch).square().mean().backward()
            optimizer.step()

    whole, optimizer = make()
    train(whole, optimizer, images)
    first, optimizer = make()
    train(first, optimizer, images[:3])
    stored = {name: value.clone().contiguous() for name, value in optimizer_tensors(optimizer, first).items()}
    weights = {name: value.clone().contiguous() for name, value in first.state_dict().items()}
    second, optimizer = make()
    second.load_state_dict(weights)
    load_optimizer_tensors(optimizer, second, stored)
    train(second, optimizer, images[3:])
    assert torch.equal(second.weight, whole.weight)  # type: ignore[arg-type]
