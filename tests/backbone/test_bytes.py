"""Pixels sent as bytes become the numbers that the host would have computed, to the last bit."""

import pytest
import torch
from torchvision.transforms import v2

from dino_dense.backbone.bytes import Scaling, divided, sent, times_reciprocal
from dino_dense.probes.pixels import Crop, filled

EVERY_VALUE = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16).contiguous()


@pytest.mark.parametrize(
    ("scaling", "on_the_host"),
    [(times_reciprocal, v2.ToDtype(torch.float32, scale=True)), (divided, lambda pixels: pixels.float() / 255)],
)
def test_every_value_of_a_pixel_is_scaled_as_on_the_host(scaling: Scaling, on_the_host: Scaling, device: torch.device):
    scaled = sent(EVERY_VALUE, device, scaling)
    assert scaled.device == device
    assert torch.equal(scaled.cpu(), on_the_host(EVERY_VALUE))
    assert scaled.is_contiguous()


def test_the_two_ways_differ_so_that_neither_may_take_the_place_of_the_other():
    assert not torch.equal(times_reciprocal(EVERY_VALUE), divided(EVERY_VALUE))


def test_images_in_float_are_only_moved(device: torch.device):
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(sent(images, device).cpu(), images)


def test_beside_a_small_crop_lies_the_mean_color(device: torch.device):
    mean = (0.1, 0.5, 0.9)
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([(8, 8), (5, 3)])
    expected = image.float() / 255
    expected[1] = torch.tensor(mean).view(3, 1, 1)
    expected[1, :, :5, :3] = image[1, :, :5, :3].float() / 255
    found = filled(Crop(image, torch.zeros(2, 8, 8), sizes), mean, device)
    assert torch.equal(found.cpu(), expected)
