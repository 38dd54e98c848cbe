"""Images as 8-bit pixels until they are on the device: a quarter of the bytes of float32 is sent.

Shapes: B images, H x W pixels.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Scaling = Callable[[Tensor], Tensor]
"""uint8 [...] -> float32 [...] in [0, 1], on the same device: `times_reciprocal` or `divided`."""


def times_reciprocal(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1], as a product with 1 / 255: equal bits to torchvision's `ToDtype(scale=True)`."""
    return pixels.float().mul_(1 / 255)


def divided(pixels: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1], as a quotient by 255, which differs from a product with 1 / 255 in the last bit.

    CUDA replaces a division by a Python number by a product with its reciprocal, so the divisor is a tensor there.
    """
    return pixels.float().div_(torch.full((), 255.0, device=pixels.device))


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device; a GPU copies it from pinned memory, so that the host does not wait for the copy."""
    pinned = tensor.pin_memory() if (tensor.device.type, device.type) == ("cpu", "cuda") else tensor
    return pinned.to(device, non_blocking=True)


def sent(images: Tensor, device: torch.device, scaling: Scaling = divided) -> Tensor:
    """uint8 images [B, 3, H, W] -> float32 in [0, 1] on the device; float images are only moved.

    The host does not wait for the copy.
    """
    there = moved(images, device)
    return there if there.is_floating_point() else scaling(there)


def filled(images: Tensor, sizes: Tensor, mean: Sequence[float], device: torch.device) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 in [0, 1] on the device, with the mean color below and right of each image.

    Args:
        sizes: height and width of each image [B, 2]; it begins at the top left.
    """
    pixels, sizes = sent(images, device), moved(sizes, device)
    rows, columns = (torch.arange(pixels.shape[axis], device=device) for axis in (-2, -1))
    inside = (rows < sizes[:, :1])[:, None, :, None] & (columns < sizes[:, 1:])[:, None, None]
    return torch.where(inside, pixels, statistics(mean, mean, device)[0])


def statistics(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """A mean and a standard deviation of pixels, [3, 1, 1] each; copied once, since each copy waits for the device."""
    return _on(tuple(mean), device), _on(tuple(std), device)


@functools.lru_cache
def _on(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(3, 1, 1)
