"""The loss against its definition written as loops; the head's normalizations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dino_dense.pretrain.head import DINOHead
from dino_dense.pretrain.objectives.dino import DINOLoss


def naive_loss(student: Tensor, teacher: Tensor, center: Tensor, temperature: float, views: int) -> Tensor:
    """Mean over pairs of different views of the cross-entropy, as the paper's Algorithm 1 writes it."""
    terms = []
    for t, target in enumerate(teacher.chunk(2)):
        q = torch.softmax((target - center) / temperature, dim=-1)
        for v, scores in enumerate(student.chunk(views)):
            if v != t:
                terms.append(-(q * torch.log_softmax(scores / 0.1, dim=-1)).sum(dim=-1).mean())
    return torch.stack(terms).mean()


@settings(max_examples=25, deadline=None)
@given(views=st.integers(2, 6), images=st.integers(1, 4), k=st.integers(2, 40), seed=st.integers(0, 1000))
def test_loss_and_gradient_equal_the_naive_loop(views: int, images: int, k: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(views * images, k, generator=generator, requires_grad=True)
    teacher = torch.randn(2 * images, k, generator=generator)
    loss = DINOLoss(k, views, 0.05, 0.05, 0)
    loss.center.copy_(torch.randn(1, k, generator=generator))
    output = loss(student, teacher, epoch=0)
    expected = naive_loss(student, teacher, loss.center, 0.05, views)
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-4)
    ours, theirs = (torch.autograd.grad(value, student)[0] for value in (output.loss, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert output.kl.item() >= -1e-4
    assert 0 <= output.teacher_entropy.item() <= torch.tensor(float(k)).log().item() + 1e-4


def test_center_moves_only_after_the_loss_and_only_on_demand():
    loss = DINOLoss(5, 2, 0.04, 0.04, 0, center_momentum=0.9)
    teacher = torch.arange(10.0).view(2, 5)
    output = loss(torch.zeros(2, 5), teacher, 0)
    assert not loss.center.any()
    loss.update_center(output.teacher_mean)
    torch.testing.assert_close(loss.center, 0.1 * teacher.mean(dim=0, keepdim=True))


def test_loss_is_float32_under_autocast():
    loss = DINOLoss(5, 2, 0.04, 0.04, 0)
    scores = torch.linspace(-1, 1, 10).view(2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        output = loss(scores.bfloat16(), scores.bfloat16(), 0)
    plain = loss(scores.bfloat16().float(), scores.bfloat16().float(), 0)
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, plain.loss, rtol=0, atol=0)


def test_last_layer_sees_only_directions_and_keeps_unit_rows():
    head = DINOHead(6, 7, hidden_dim=8, bottleneck_dim=4, norm_last_layer=True)
    assert not head.last_layer.weight_g.requires_grad
    scores = head(torch.randn(50, 6))
    assert scores.abs().max() <= 1 + 1e-6  # cosines
    with torch.no_grad():
        head.last_layer.weight_v.mul_(3)
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    before = head(x)
    with torch.no_grad():
        head.last_layer.weight_v.mul_(0.1)
    torch.testing.assert_close(head(x), before)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("use_bn", [False, True])
def test_head_layers(layers: int, use_bn: bool):
    head = DINOHead(6, 7, 8, 4, n_layers=layers, norm_last_layer=False, use_bn=use_bn)
    modules = [type(module).__name__ for module in head.mlp]
    assert modules.count("Linear") == layers
    assert modules.count("BatchNorm1d") == (layers - 1 if use_bn else 0)
    assert head(torch.randn(3, 6)).shape == (3, 7)
    assert head.last_layer.weight_g.requires_grad
