"""A frozen reference network: on the student's grid, in its own pixel statistics."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_dense import load_backbone
from dino_dense.pretrain.anchor import START, Anchor
from dino_dense.pretrain.objective import Views

TEACHER: Any = SimpleNamespace(backbone=load_backbone("random:vit_micro_patch8_64").module)


def views(side: int, grid: int) -> Views:
    """Two normalized crops, and a student's tokens of width 5."""
    crops = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    return Views(torch.zeros(2, 5), torch.zeros(2, grid**2, 5), None, crops)


def tokens(module: Any, crops: Tensor) -> Tensor:
    features: Tensor = module.forward_features(crops)
    return features[:, module.num_prefix_tokens :]


def test_the_start_of_the_run_sees_the_crops_as_they_are():
    given = views(64, 8)
    assert given.crops is not None
    with torch.no_grad():
        assert torch.equal(Anchor(START, TEACHER)(given), tokens(TEACHER.backbone, given.crops))


@pytest.mark.parametrize(("side", "student_patch"), [(64, 4), (64, 16), (96, 8), (112, 14)])
def test_a_network_of_another_patch_size_gives_the_students_grid(side: int, student_patch: int):
    grid = side // student_patch
    given, anchor = views(side, grid), Anchor("random:vit_micro_patch8_64", TEACHER)
    assert given.crops is not None
    ours = anchor(given)
    assert ours.shape == (2, grid**2, 128)
    size = (8 * grid, 8 * grid)
    seen = F.interpolate(given.crops, size=size, mode="bicubic", antialias=True) if side != size[0] else given.crops
    with torch.no_grad():
        torch.testing.assert_close(ours, tokens(load_backbone("random:vit_micro_patch8_64").module, seen))


@pytest.mark.parametrize("student_patch", [8, 16])
def test_of_larger_crops_it_gives_the_grid_of_the_students_patch_size(student_patch: int):
    given = views(64, 64 // student_patch)
    larger = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    ours = Anchor("random:vit_micro_patch8_64", TEACHER)(given, larger)
    side = 8 * (96 // student_patch)
    seen = F.interpolate(larger, size=(side, side), mode="bicubic", antialias=True) if side != 96 else larger
    with torch.no_grad():
        torch.testing.assert_close(ours, tokens(load_backbone("random:vit_micro_patch8_64").module, seen))


def test_crops_are_normalized_as_the_network_expects(monkeypatch: pytest.MonkeyPatch):
    backbone = load_backbone("random:vit_micro_patch8_64")
    imagenet, own = (backbone.mean, backbone.std), ((0.5, 0.4, 0.3), (0.5, 0.6, 0.7))
    backbone.mean, backbone.std = own
    monkeypatch.setattr("dino_dense.pretrain.anchor.load_backbone", lambda source: backbone)
    given = views(64, 8)
    assert given.crops is not None
    (mean, std), (own_mean, own_std) = (
        [torch.tensor(numbers).view(3, 1, 1) for numbers in statistics] for statistics in (imagenet, own)
    )
    pixels = given.crops * std + mean
    with torch.no_grad():
        expected = tokens(backbone.module, (pixels - own_mean) / own_std)
    torch.testing.assert_close(Anchor("a file", TEACHER)(given), expected, rtol=1e-4, atol=1e-5)


def test_a_network_without_patch_tokens_is_refused():
    with pytest.raises(ValueError, match=r"random:resnet10t: its network has no patch tokens to compare with"):
        Anchor("random:resnet10t", TEACHER)


def test_a_module_of_the_run_is_copied_and_stays_in_evaluation_mode():
    anchor = Anchor(START, TEACHER).train()
    assert not anchor.backbone.training
    assert not any(parameter.requires_grad for parameter in anchor.parameters())
    first: nn.Parameter = next(anchor.backbone.parameters())
    assert first.data_ptr() != next(TEACHER.backbone.parameters()).data_ptr()
