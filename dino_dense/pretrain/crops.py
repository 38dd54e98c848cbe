"""Multi-crop augmentation: two global views, treated differently, and several local ones (main_dino.py)."""

import hashlib

import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

from dino_dense.bodies import IMAGENET_MEAN, IMAGENET_STD
from dino_dense.pretrain.config import PretrainConfig

SOLARIZE_THRESHOLD = 128
"""Pixel values from here up are inverted (the default of PIL's solarize, which the published code uses)."""


def derive_seed(*key: int) -> int:
    """A seed in [0, 2^63) that depends on every number of `key`, and is the same on every machine."""
    digest = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class PilBlur(nn.Module):
    """PIL's Gaussian blur with a radius drawn uniformly from `radius` (pixels)."""

    def __init__(self, radius: tuple[float, float]) -> None:
        super().__init__()
        self.radius = radius

    def forward(self, image: Image.Image) -> Image.Image:
        radius = torch.empty(()).uniform_(*self.radius).item()
        return image.filter(ImageFilter.GaussianBlur(radius))


class MultiCrop:
    """An RGB image and a seed -> its views, global ones first, as uint8 [3, S, S].

    Views stay uint8 until they are on the training device (`normalise`): a quarter of the bytes to collate
    and move. All randomness comes from the seed, through torch's generator; torchvision's v2 transforms use
    no other.
    """

    def __init__(self, config: PretrainConfig) -> None:
        blur_1, blur_2, blur_local = config.blur_probs
        self.views = [
            _view(config, config.global_crop_size, config.global_crops_scale, blur_1),
            _view(config, config.global_crop_size, config.global_crops_scale, blur_2, config.solarize_prob),
            *[_view(config, config.local_crop_size, config.local_crops_scale, blur_local)] * config.local_crops_number,
        ]

    def __call__(self, image: Image.Image, seed: int) -> list[Tensor]:
        """2 + n tensors; the same image and seed give the same tensors in any process."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return [view(image) for view in self.views]


def _view(
    config: PretrainConfig,
    size: int,
    scale: tuple[float, float],
    blur_prob: float,
    solarize_prob: float = 0.0,
) -> v2.Compose:
    """The chain for one view; steps of probability 0 are left out."""
    steps: list[nn.Module] = [
        v2.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(config.flip_prob),
        v2.RandomApply([v2.ColorJitter(*config.jitter)], config.jitter_prob),
        v2.RandomGrayscale(config.gray_prob),
        v2.RandomApply([PilBlur(config.blur_radius)], blur_prob),
    ]
    if solarize_prob > 0:
        steps.append(v2.RandomSolarize(SOLARIZE_THRESHOLD, solarize_prob))
    return v2.Compose([*steps, v2.PILToTensor()])


def normalise(views: Tensor) -> Tensor:
    """uint8 [N, 3, S, S] -> float32 with ImageNet's mean and standard deviation, on the same device."""
    mean = torch.tensor(IMAGENET_MEAN, device=views.device).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=views.device).view(3, 1, 1)
    return views.float().div_(255).sub_(mean).div_(std)
