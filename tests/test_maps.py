"""Attention masks, component colors and likeness maps, against their definitions."""

import numpy as np
import pytest
import torch

from dino_dense import load_backbone
from dino_dense.maps import (
    PcaColors,
    attention_maps,
    grow,
    mass_masks,
    match_map,
    patch_maps,
    patch_under,
    similarity,
    to_input,
)
from tasks.harness import figures

IMAGE = np.random.default_rng(0).integers(0, 256, (45, 70, 3), np.uint8)


@pytest.mark.parametrize("arch", ["vit_micro_patch8_64", "vit_micro_patch14_70", "vit_small_patch14_reg4_dinov2"])
def test_attention_has_the_grid_of_the_image_and_leaves_registers_out(arch: str):
    backbone = load_backbone(f"random:{arch}")
    attention = attention_maps(backbone, IMAGE, 56)
    patch = backbone.patch_size
    assert attention.shape == (backbone.num_heads, 56 // patch, round(70 * 56 / 45 / patch))
    assert bool((attention.sum((1, 2)) < 1).all())  # the rest goes to class token and registers
    assert patch_maps(backbone, IMAGE, 56).shape == (backbone.embed_dim, *attention.shape[1:])


def test_a_network_without_attention_says_what_it_has():
    with pytest.raises(ValueError, match="no attention; it has cls, patches"):
        attention_maps(load_backbone("random:resnet18"), IMAGE, 64)


@pytest.mark.parametrize("size", [(1080, 1920), (1920, 1080), (500, 500), (37, 53), (9, 400)])
def test_any_shape_of_image_is_taken(size: tuple[int, int]):
    backbone = load_backbone("random:vit_micro_patch8_64")
    batch = to_input(backbone, np.zeros((*size, 3), np.uint8), 48)
    assert min(batch.shape[-2:]) == 48
    assert max(batch.shape[-2:]) == pytest.approx(48 * max(size) / min(size), abs=4)


def test_mass_masks_are_the_fewest_patches_that_hold_the_mass():
    attention = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    for mass in (0.3, 0.6, 1.0):
        for values, mask in zip(attention.numpy().astype(float), mass_masks(attention, mass), strict=True):
            share = values[mask].sum() / values.sum()
            assert share >= mass - 1e-9
            assert share - values[mask].min() / values.sum() < mass
            assert mask.all() or values[mask].min() >= values[~mask].max()


def scene(shift: int = 0) -> torch.Tensor:
    """Features [8, 10, 12]: a ground, and an object of two parts, with little noise."""
    features = 0.05 * torch.randn(8, 10, 12, generator=torch.Generator().manual_seed(shift))
    features[0] += 1
    features[:2, 3:7, 2 + shift : 8 + shift] += torch.tensor([-2.0, 1.0])[:, None, None]
    features[2, 3:7, 2 + shift : 5 + shift] += 1
    features[3, 3:7, 5 + shift : 8 + shift] += 1
    return features


def test_component_colors_find_the_object_and_keep_to_its_parts():
    fitted = PcaColors.fit([scene(0), scene(3)])
    for shift in (0, 1, 3):
        truth = np.zeros((10, 12), bool)
        truth[3:7, 2 + shift : 8 + shift] = True
        assert (fitted.foreground(scene(shift)) == truth).all()
        colors = fitted.colors(scene(shift)).astype(int)
        assert (colors[~truth] == 0).all()
        left, right = colors[4, 3 + shift], colors[4, 6 + shift]
        assert abs(left[0] - right[0]) > 100  # red is the first component, which tells the parts apart
        assert abs(left[0] - fitted.colors(scene(0)).astype(int)[4, 3, 0]) < 30
    again = PcaColors.fit([scene(0), scene(3)])
    assert (again.colors(scene(1)) == fitted.colors(scene(1))).all()


@pytest.mark.parametrize("features", [torch.ones(8, 4, 5), torch.randn(8, 1, 1), torch.randn(2, 4, 4)])
def test_component_colors_of_nothing_to_see(features: torch.Tensor):
    assert PcaColors.fit([features]).colors(features).shape == (*features.shape[1:], 3)


def test_likeness_is_the_cosine_and_finds_the_same_part_elsewhere():
    here, there = scene(0), scene(3)
    alike = match_map(here, (100, 120), (35, 45), there)
    naive = torch.nn.functional.cosine_similarity(there, here[:, 4, 3][:, None, None], dim=0)
    assert torch.allclose(alike, naive, atol=1e-6)
    row, column = np.unravel_index(alike.numpy().argmax(), (10, 12))
    assert 3 <= row < 7
    assert 5 <= column < 8
    assert float(similarity(here, here[:, 4, 3])[4, 3]) == pytest.approx(1)


def test_points_and_patches():
    assert patch_under((0, 0), (100, 120), (10, 12)) == (0, 0)
    assert patch_under((119, 99), (100, 120), (10, 12)) == (9, 11)
    for point in ((120, 0), (0, 100), (-1, 0)):
        with pytest.raises(ValueError, match="not in the image, 120 wide and 100 high"):
            patch_under(point, (100, 120), (10, 12))


def test_a_click_grows_over_its_object_and_no_further():
    features = scene(0)
    features[:, 8, 10] = features[:, 4, 3]  # alike, but apart
    mask = grow(features, (100, 120), (35, 45))
    assert mask.shape == (100, 120)
    assert mask[35:65, 25:75].all()
    assert not mask[80:90, 100:110].any()
    assert mask.mean() < 0.25
    alone = grow(torch.randn(8, 10, 12, generator=torch.Generator().manual_seed(1)), (100, 120), (35, 45), 0.99)
    assert alone[45, 35]
    assert 0 < alone.sum() <= 400


def test_heat_is_darkest_at_the_lowest_and_flat_within_a_patch():
    values = np.arange(6.0).reshape(2, 3)
    heat = figures.heat(values, (20, 30)).astype(int)
    assert heat.shape == (20, 30, 3)
    brightness = heat.sum(axis=2)[5::10, 5::10]
    assert (np.diff(brightness.ravel()) > 0).all()
    assert (heat[:10, :10] == heat[0, 0]).all()
    assert (figures.heat(np.ones((2, 2)), (4, 4)) == figures.heat(np.zeros((2, 2)), (4, 4))).all()


def test_a_grid_keeps_order_and_fills_up_with_white():
    tiles = [(name, np.full((40, 60, 3), shade, np.uint8)) for name, shade in (("a", 10), ("b", 90), ("c", 170))]
    grid = figures.grid(tiles, 2)
    height, width = grid.shape[0] // 2, grid.shape[1] // 2
    shades = [grid[y * height + height - 5, x * width + 30, 0] for y in (0, 1) for x in (0, 1)]
    assert shades == [10, 90, 170, 255]
