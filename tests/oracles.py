"""Backbones whose features are the ground truth, or noise: what a measure must tell apart.

They know the embedded data: an image is recognised by its thumbnail, whatever size a task gives it.
"""

from functools import cached_property
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.davis import load_davis
from data.images import labelled_splits, read_rgb
from data.sample import sample_data
from dino_dense import Backbone, Features

THUMBNAIL = 12  # pixels
CHANNELS = 16


class NoiseBackbone(Backbone):
    """Every image gets features of its own, drawn afresh: they say nothing about what is in it."""

    def __init__(self) -> None:
        module = nn.Identity()
        module.anchor = nn.Parameter(torch.zeros(1))
        self.module, self.metadata = module, {}
        self.name = self.spec = self.sha256 = self.weights_sha256 = "noise"
        self.patch_size, self.embed_dim, self.depth, self.num_heads = 8, CHANNELS, 1, 1
        self.mean, self.std, self.dtype = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), torch.float32
        self.provides = frozenset({"patches", "cls"})

    def extract(self, images: Tensor, want=frozenset({"patches"}), layers=(-1,)) -> Features:
        """Noise [B, C] and [B, C, h, w]."""
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        generator = torch.Generator().manual_seed(int(images.double().sum() * 1e3) % 2**31)
        return Features(
            patches=torch.randn(len(images), CHANNELS, *grid, generator=generator),
            cls=torch.randn(len(images), CHANNELS, generator=generator),
        )


class OracleBackbone(NoiseBackbone):
    """Class tokens are the image's class, patch tokens the object in the patch."""

    def __init__(self) -> None:
        super().__init__()
        self.name = self.spec = self.sha256 = self.weights_sha256 = "oracle"

    def extract(self, images: Tensor, want=frozenset({"patches"}), layers=(-1,)) -> Features:
        """One-hot ground truth [B, C] and [B, C, h, w]."""
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        thumbnails, answers = self._known
        found = torch.cdist(_thumbnail(images), thumbnails).argmin(dim=1)
        labels = [answers[index] for index in found.tolist()]
        ids = [torch.full(grid, label) if isinstance(label, int) else _shrink(label, grid) for label in labels]
        patches = F.one_hot(torch.stack(ids), CHANNELS).permute(0, 3, 1, 2).float()
        return Features(patches=patches, cls=patches.mean((-2, -1)))

    @cached_property
    def _known(self) -> tuple[Tensor, list[int | np.ndarray]]:
        """Thumbnails [N, ...] and, for each, the class or the mask of ids."""
        data = sample_data()
        thumbnails, answers = [], []
        for split in labelled_splits(data.images):
            thumbnails += [_thumbnail_of_file(path) for path in split.paths]
            answers += split.labels
        for sequence in load_davis(data.davis):
            thumbnails += [_thumbnail(_to_tensor(sequence.read_frame(index))) for index in range(len(sequence))]
            answers += list(sequence.read_masks())
        return torch.cat(thumbnails), answers


def _shrink(ids: np.ndarray, grid: tuple[int, int]) -> Tensor:
    return torch.from_numpy(cv2.resize(ids, grid[::-1], interpolation=cv2.INTER_NEAREST_EXACT)).long()


def _to_tensor(rgb: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None].float() / 255


def _thumbnail_of_file(path: Path) -> Tensor:
    return _thumbnail(_to_tensor(np.asarray(read_rgb(path))))


def _thumbnail(images: Tensor) -> Tensor:
    small = F.interpolate(images, (THUMBNAIL, THUMBNAIL), mode="area")
    return small.flatten(1)
