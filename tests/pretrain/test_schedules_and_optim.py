"""Schedules, parameter groups, clipping, freezing and the teacher's moving average."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dino_dense.pretrain import optim
from dino_dense.pretrain.schedules import teacher_temperature
from dino_dense.training.gradients import clip_gradients
from dino_dense.training.schedules import cosine_schedule

rates = st.floats(1e-6, 1.0)


@given(rates, rates, st.integers(1, 20), st.integers(1, 30), st.data())
def test_schedule_rises_to_base_then_moves_towards_final(base, final, epochs, steps, data):
    warmup = data.draw(st.integers(0, epochs))
    schedule = cosine_schedule(base, final, epochs, steps, warmup)
    assert schedule.shape == (epochs * steps,)
    rise, rest = np.split(schedule, [warmup * steps])
    assert (np.diff(rise) > 0).all()
    assert (np.diff(rest) * np.sign(final - base) >= -1e-15).all()
    if len(rest):
        assert rest[0] == pytest.approx(base)
    if len(rise) > 1:
        assert rise[0] == 0
        assert rise[-1] == pytest.approx(base)


def test_schedule_refuses_a_warmup_longer_than_itself():
    with pytest.raises(ValueError, match="warm-up of 11 epochs does not fit in a schedule of 10"):
        cosine_schedule(1, 0, 10, 5, warmup_epochs=11)


def test_teacher_temperature_reaches_its_end_in_the_last_warmup_epoch_and_stays():
    temperatures = [teacher_temperature(epoch, 0.04, 0.07, 4) for epoch in range(6)]
    np.testing.assert_allclose(temperatures, [0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert teacher_temperature(0, 0.04, 0.07, 0) == 0.07


def with_gradients(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter) * 5
    return module


def test_clipping_per_tensor_equals_the_naive_loop():
    module = with_gradients()
    before = [p.grad.clone() for p in module.parameters()]
    total = clip_gradients(module.parameters(), 3.0, "tensor")
    for parameter, gradient in zip(module.parameters(), before, strict=True):
        norm = gradient.norm()
        expected = gradient * 3.0 / (norm + 1e-6) if norm > 3.0 else gradient
        torch.testing.assert_close(parameter.grad, expected)
    assert total.item() == pytest.approx(torch.cat([g.flatten() for g in before]).norm().item())


def test_clipping_globally_equals_torch():
    ours, theirs = with_gradients(), with_gradients()
    total = clip_gradients(ours.parameters(), 3.0, "global")
    expected = nn.utils.clip_grad_norm_(theirs.parameters(), 3.0)
    torch.testing.assert_close(total, expected)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_clipping_of_zero_leaves_the_gradients():
    clipped, plain = with_gradients(), with_gradients()
    clip_gradients(clipped.parameters(), 0.0)
    for a, b in zip(clipped.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_biases_and_vectors_are_never_decayed(name: optim.OptimizerName):
    module = with_gradients()
    frozen = module[2].weight
    frozen.requires_grad_(False)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    optimizer = optim.build_optimizer(name, module)
    optim.set_schedule(optimizer, lr=0.5, weight_decay=0.1)
    optimizer.step()
    changed = {n for n, p in module.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"0.weight"}


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_a_parameter_without_gradient_is_not_touched(name: optim.OptimizerName):
    module = nn.ModuleDict({"mlp": nn.Linear(3, 3), "last_layer": nn.Linear(3, 3)})
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    for parameter in module["last_layer"].parameters():
        parameter.grad = None
    optimizer = optim.build_optimizer(name, module)
    optim.set_schedule(optimizer, lr=0.1, weight_decay=0.1)
    optimizer.step()
    for n, p in module.named_parameters():
        assert torch.equal(p, before[n]) == n.startswith("last_layer")
    assert not any(p in optimizer.state for p in module["last_layer"].parameters())


@pytest.mark.parametrize("decay", [0.0, 1e-6, 0.04])
def test_lars_is_dinos(decay: float):
    """The formula of utils.py, step by step: without weight decay too; by the length of gradient and decay together."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 4), nn.Conv2d(2, 3, 2))
    expected = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    momenta = {name: torch.zeros_like(parameter) for name, parameter in expected.items()}
    optimizer = optim.build_optimizer("lars", module)
    for step in range(3):
        for name, parameter in module.named_parameters():
            parameter.grad = torch.randn_like(parameter)
            update = parameter.grad.clone()
            if parameter.ndim > 1:
                update += decay * expected[name]
                update *= 0.001 * expected[name].norm() / update.norm()
            momenta[name] = 0.9 * momenta[name] + update
            expected[name] = expected[name] - 0.1 * (step + 1) * momenta[name]
        optim.set_schedule(optimizer, lr=0.1 * (step + 1), weight_decay=decay)
        optimizer.step()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name])


def test_lars_moves_weights_of_zero_and_leaves_those_without_gradient_of_length():
    module = nn.Linear(3, 2)
    nn.init.zeros_(module.weight)
    module.weight.grad, module.bias.grad = torch.ones(2, 3), torch.zeros(2)
    bias = module.bias.detach().clone()
    optimizer = optim.build_optimizer("lars", module)
    optim.set_schedule(optimizer, lr=0.5, weight_decay=0.0)
    optimizer.step()
    torch.testing.assert_close(module.weight.detach(), torch.full((2, 3), -0.5))
    assert torch.equal(module.bias.detach(), bias)


def test_teacher_averages_parameters_and_keeps_its_own_buffers():
    student, teacher = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    with torch.no_grad():
        student.weight.fill_(2.0)
        student.running_mean.fill_(7.0)
    optim.update_teacher(teacher, student, 0.9)
    torch.testing.assert_close(teacher.weight, torch.full((3,), 1.1))
    assert not teacher.running_mean.any()
    optim.update_teacher(teacher, student, 1.0)
    torch.testing.assert_close(teacher.weight, torch.full((3,), 1.1), rtol=0, atol=0)


def test_learning_rate_is_given_for_256_images():
    assert optim.scaled_lr(0.0005, 512) == pytest.approx(0.001)
