"""Pixels sent as bytes become the numbers that the host would have computed, to the last bit."""

from typing import Any

import pytest
import torch
from torchvision.transforms import v2

from dino_dense import load_backbone
from dino_dense.backbone.bytes import Scaling, divided, filled, moved, sent, times_reciprocal
from dino_dense.backbone.shared import share_layers
from dino_dense.backbone.upsampling import UpsampledBackbone

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
    found = filled(image, sizes, mean, device)
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize(
    "kind",
    [lambda network: network, lambda network: share_layers(network, 0), lambda n: UpsampledBackbone(n, "bilinear", 2)],
)
@pytest.mark.parametrize("shape", [(2, 3, 16, 24), (1, 3, 20, 12)])
def test_features_of_bytes_are_those_of_the_float_images(kind: Any, shape: tuple[int, ...], device: torch.device):
    """Also of images that lie in memory as their files do, color by color of a pixel."""
    backbone = kind(load_backbone("random:vit_micro_patch8_64").to(device))
    if shape[-1] % backbone.patch_size:
        pytest.skip("needs smaller patches")
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        assert torch.equal(backbone.extract(given).patches, backbone.extract(given.float() / 255).patches)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.int8])
def test_images_of_other_numbers_are_refused(dtype: torch.dtype):
    with pytest.raises(ValueError, match=r"images must be uint8 or float .*, got torch.*\(1, 3, 8, 8\)"):
        load_backbone("random:vit_micro_patch8_64").extract(torch.ones(1, 3, 8, 8, dtype=dtype))


class Host:
    """A tensor of the host, which no GPU is needed to send."""

    def __init__(self, device: str) -> None:
        self.device, self.calls = torch.device(device), list[object]()

    def pin_memory(self) -> "Host":
        self.calls.append("pinned")
        return self

    def to(self, device: torch.device, *, non_blocking: bool) -> "Host":
        self.calls.append((device.type, non_blocking))
        return self


@pytest.mark.parametrize(
    ("begins", "ends", "calls"),
    [
        ("cpu", "cuda", ["pinned", ("cuda", True)]),
        ("cuda", "cuda", [("cuda", True)]),
        ("cpu", "cpu", [("cpu", True)]),
    ],
)
def test_a_gpu_copies_from_pinned_memory(begins: str, ends: str, calls: list[object]):
    tensor = Host(begins)
    moved(tensor, torch.device(ends))  # type: ignore[arg-type]
    assert tensor.calls == calls
