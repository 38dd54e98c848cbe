"""Descriptors for search: images of any size, sums over scales, whitening.

Shapes: N images, C channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from data import DataError
from data.images import read_rgb
from dino_dense import Backbone, distributed
from dino_dense.arrays import Box
from dino_dense.backbone.bytes import sent
from dino_dense.backbone.grid import fit
from dino_dense.loaders import WorkerItems, read_items
from dino_dense.pipeline import batches_by_key
from tasks.harness.session import Session

EIGENVALUE_FLOOR = 1e-5  # of the largest (the reference's PCA)
WAITING_BATCHES = 4  # limit of images that wait for a batch of their size, in batches
WHITENING_POWER = -0.5  # full whitening (eval_copy_detection.py)


def describe_all(
    dataset: Dataset[Tensor],
    count: int,
    describe: Callable[[Tensor], Tensor],
    *,
    session: Session,
    batch_size: int,
    workers: int | None = None,
    label: str = "descriptors",
    names: Sequence[object] | None = None,
) -> Tensor:
    """Descriptors [N, C] on the CPU, in the order of the data set, computed by all processes together.

    Args:
        dataset: `count` images [3, H, W] of any sizes; a batch has images of one size.
        describe: images [B, 3, H, W], of the data set's type, -> descriptors [B, C].
        names: names of the images in messages; default: their numbers.
    """
    own_indices = distributed.even_share(range(count), session.world)
    descriptors: dict[int, Tensor] = {}
    worker_items = WorkerItems(workers, lambda index: str(names[index]) if names else f"{label}: image {index}")
    read = enumerate(read_items(dataset, worker_items, batch_size=None, sampler=own_indices))
    with session.bar(len(own_indices), label) as bar:
        for batch in batches_by_key(read, lambda entry: entry[1].shape, batch_size, WAITING_BATCHES * batch_size):
            indices, images = zip(*batch, strict=True)
            descriptors.update(zip(indices, describe(torch.stack(images)), strict=True))
            bar.update(len(indices))
    return distributed.all_gather(torch.stack([descriptors[index] for index in range(len(own_indices))]))[:count].cpu()


@dataclass(frozen=True)
class Transformed(Dataset[Tensor]):
    """Pictures after a transform, as RGB uint8 [3, H, W]."""

    images: Sequence[Image.Image]
    transform: Callable[[Image.Image], Tensor]

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.images[index])


# --- Images at their own aspect, one or more scales --------------------------------------------------------


@dataclass(frozen=True)
class Thumbnails(Dataset[Tensor]):
    """Image files, reduced to a long side of `size` pixels (never enlarged), as RGB uint8 [3, H, W].

    Raises DataError for a reduced image with a side below `least` pixels.
    """

    paths: Sequence[Path]
    size: int
    boxes: Sequence[Box] | None = None
    """The part of each image to crop; it is scaled by the factor of the whole image (revisitop's loader)."""
    least: int = 1

    def __getitem__(self, index: int) -> Tensor:
        path = self.paths[index]
        image = read_rgb(path)
        size = float(self.size)
        if self.boxes is not None:
            full = max(image.size)
            image = _cut(image, self.boxes[index], path)
            size *= max(image.size) / full
        image.thumbnail((round(max(size, 1)), round(max(size, 1))), Image.Resampling.LANCZOS)
        if min(image.size) < self.least:
            raise DataError(
                f"{path}: {image.width} x {image.height} pixels when shrunk, expected {self.least} or more a side "
                "(one patch at the smallest scale). Choose a larger --image-size."
            )
        return pil_to_tensor(image)


def _cut(image: Image.Image, box: Box, path: Path) -> Image.Image:
    """Crop to the part of the box within the image."""
    left, top = (max(0, round(side)) for side in box[:2])
    right, bottom = (min(full, round(side)) for side, full in zip(box[2:], image.size, strict=True))
    if left >= right or top >= bottom:
        raise DataError(f"{path}: {image.width} x {image.height} pixels, and the query's box {box} is outside.")
    return image.crop((left, top, right, bottom))


def multi_scale_cls(backbone: Backbone, images: Tensor, scales: Sequence[float]) -> Tensor:
    """Class tokens [B, C] of images [B, 3, H, W], uint8 or in [0, 1], summed over scales (the reference's
    utils.multi_scale).

    Each scale is resized bilinearly, without antialiasing, to the rounded-down size. The remainder beyond whole patches
    is cropped at the right and the bottom, as a patch embedding does.
    """
    images = sent(images, backbone.device)
    total = torch.zeros((), device=backbone.device)
    for scale in scales:
        scaled = images
        if scale != 1:
            scaled = F.interpolate(images, scale_factor=scale, mode="bilinear", align_corners=False)
        height, width = fit((scaled.shape[-2], scaled.shape[-1]), backbone.patch_size, "floor", least=0).size
        total = total + backbone.extract(scaled[..., :height, :width], {"cls"}).cls
    return total


# --- Whitening ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Whitening:
    """Subtract a mean, rotate to the principal axes, divide by the spread along each axis."""

    mean: Tensor
    """[C]"""
    axes: Tensor
    """[C, C], with a scaled axis in each column."""

    def __call__(self, features: Tensor) -> Tensor:
        """[N, C] -> [N, C], not normalized."""
        return ((features.double() - self.mean) @ self.axes).float()


def fit_whitening(features: Tensor, *, centered: bool) -> Whitening:
    """Fit a whitening on features [N, C] of images that are neither queries nor database.

    With d the eigenvalues of the second-moment matrix X'X / N, floored at 1e-5 of the largest, and V its axes,
    a feature x becomes (x - mean) V d^-1/2.

    Args:
        centered: subtract the mean also before the second moments, so that they are the covariance. The reference does
            not.

    Raises:
        ValueError: fewer than two images, or non-finite features.
    """
    if len(features) < 2 or not torch.isfinite(features).all():
        raise ValueError(f"whitening from {len(features)} features: expected 2 or more, all finite.")
    features = features.double()
    mean = features.mean(0)
    spread = features - mean if centered else features
    values, axes = torch.linalg.eigh(spread.T @ spread / len(features))
    values = values.clamp(min=EIGENVALUE_FLOOR * float(values.max()))
    return Whitening(mean, axes * values.pow(WHITENING_POWER))
