"""Losses that are looked at together."""

import math

import torch

from dino_dense.training.losses import PendingLosses


def test_losses_come_back_once_in_order_as_they_were():
    pending, values = PendingLosses(), torch.rand(7, generator=torch.Generator().manual_seed(0))
    assert pending.take() == []
    for step, value in enumerate(values):
        pending.add(step, value)
    assert len(pending) == 7
    taken = pending.take()
    assert [(step, loss) for step, loss, _ in taken] == list(enumerate(values.tolist()))
    assert all(finite for *_, finite in taken)
    assert len(pending) == 0
    assert pending.take() == []


def test_the_loss_or_what_is_checked_beside_it_may_be_not_finite():
    pending = PendingLosses()
    pending.add(1, torch.tensor(math.nan))
    pending.add(2, torch.tensor(1.0), torch.tensor(math.inf))
    pending.add(3, torch.tensor(math.inf), torch.tensor(2.0))
    assert [finite for *_, finite in pending.take()] == [False, False, True]


def test_a_pending_loss_keeps_no_graph():
    weight = torch.ones((), requires_grad=True)
    pending = PendingLosses()
    pending.add(1, weight * 2)
    assert pending.take(mean=True)[0].loss == 2  # the mean of one process
