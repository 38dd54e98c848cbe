"""Labeled images as squares of one size, and the patch tokens of a backbone on them.

Shapes: B images, S x S pixels, h x w patches, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from data.segmentation import LabeledPixels
from dino_dense.backbone.grid import fit
from dino_dense.loaders import WorkerItems, read_items
from dino_dense.training.seeds import derive_seed

if TYPE_CHECKING:
    from dino_dense import Backbone
    from tasks.harness.session import Session

Interpolation = Literal["bilinear", "bicubic"]
MODES = {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}
CROP_AREA = (0.5, 2.0)
"""Share of an image's area that a random crop has; shares that do not fit fall back to the whole (open-hummingbird)."""
JITTER = 0.1
"""Largest change of brightness, contrast, saturation and hue, each made with probability 0.5 (open-hummingbird)."""

Key = tuple[int, int]
"""(image, seed of its augmentation)."""


class LabeledBatch(NamedTuple):
    """Patch tokens of some images."""

    positions: list[int]
    """Position of each image in the list of keys."""
    patches: Tensor
    """[B, D, h, w], on the backbone's device."""
    ids: Tensor
    """[B, S, S], uint8, on the CPU."""


def image_of(key: Key) -> int:
    """(image, seed) -> image."""
    return key[0]


class Squares(Dataset[tuple[Tensor, Tensor]]):
    """Pictures and their masks, stretched to `size` x `size` pixels, or randomly cropped to them.

    Args:
        augment: whether to crop and change colors at random (open-hummingbird's training transforms, without flips).
    """

    def __init__(
        self, pairs: Sequence[LabeledPixels], size: int, interpolation: Interpolation, *, augment: bool = False
    ) -> None:
        self.pairs, self.size, self.mode, self.augment = pairs, (size, size), MODES[interpolation], augment

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        """RGB uint8 [3, S, S] and ids uint8 [S, S]."""
        index, seed = key
        picture, ids = self.pairs[index].read()
        image = tv_tensors.Image(v2.functional.pil_to_tensor(picture))
        mask = tv_tensors.Mask(torch.from_numpy(ids))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            image, mask = self._transform()(image, mask)
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)

    def _transform(self) -> v2.Transform:
        if not self.augment:
            return v2.Resize(self.size, self.mode, antialias=True)
        changes = ({"brightness": JITTER}, {"contrast": JITTER}, {"saturation": JITTER}, {"hue": JITTER})
        colors = [v2.RandomApply([v2.ColorJitter(**change)], p=0.5) for change in changes]
        return v2.Compose([v2.RandomResizedCrop(self.size, scale=CROP_AREA, interpolation=self.mode), *colors])


def side_of(size: int, patch: int) -> int:
    """Pixels of the largest square of whole patches that is no larger than `size`: 512 is 504 for patches of 14."""
    return fit((size, size), patch, "floor").size[0]


def labeled_batches(
    backbone: Backbone,
    squares: Squares,
    keys: Sequence[tuple[int, Key]],
    *,
    batch_size: int,
    workers: int | None,
) -> Iterator[LabeledBatch]:
    """Patch tokens of the images with these keys, batch by batch.

    Args:
        keys: (position among all, key) of this process's images.
    """
    worker_items = WorkerItems(workers, lambda image: squares.pairs[image].name)
    loaded = read_items(
        squares,
        worker_items,
        index=image_of,
        batch_size=batch_size,
        sampler=[key for _, key in keys],
        pin_memory=not backbone.on_cpu,
    )
    for start, (images, ids) in zip(range(0, len(keys), batch_size), loaded, strict=True):
        positions = [position for position, _ in keys[start : start + batch_size]]
        yield LabeledBatch(positions, backbone.extract(images).patches, ids)


def shared_keys(session: Session, images: Sequence[int], *key: int) -> list[tuple[int, Key]]:
    """This process's share of images, each with a seed that depends on `key` and its position alone."""
    return [(position, (image, derive_seed(session.seed, *key, position))) for position, image in session.share(images)]
