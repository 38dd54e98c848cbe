"""Multi-crop augmentation: two global views with different probabilities, and several local views (main_dino.py).

The picture's size is read first, then all views are drawn, and the picture is decoded last: at reduced size if this
does not change the views noticeably.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from dino_dense.arrays import Pixels
from dino_dense.backbone.bytes import statistics
from dino_dense.backbone.dino_vit import IMAGENET_MEAN, IMAGENET_STD
from dino_dense.pretrain.options import COUNT, NOT_NEGATIVE, SHARE, Ranges
from dino_dense.pretrain.photometric import (
    Photometric,
    PhotometricOptions,
    apply_photometric,
    apply_photometric_batch,
    draw_photometric,
)

BOX_TRIES = 10
"""Boxes drawn before falling back to a center crop (torchvision's RandomResizedCrop)."""
ASPECT_RATIOS = (3 / 4, 4 / 3)
"""Width / height of a box, drawn uniformly on a logarithmic scale (torchvision's default)."""
_LOG_RATIOS = tuple(math.log(ratio) for ratio in ASPECT_RATIOS)
REDUCTION_GAP = 2.0
"""Pictures are decoded at reduced size if every box still has this many times the side of its view.
Pillow's documentation of `reducing_gap` calls 2.0 close to fair resampling; `benchmarks/crops.py` says how close."""


@dataclass(frozen=True)
class CropOptions(PhotometricOptions):
    """Crops"""

    global_crop_size: int = 224
    """Side of the two global crops (pixels). (main_dino)"""
    local_crop_size: int = 96
    """Side of the local crops (pixels). (main_dino)"""
    local_crops_number: int = 8
    """Local crops per image; 0 turns multi-crop off. (main_dino; the paper's best run has 10)"""
    global_crops_scale: tuple[float, float] = (0.4, 1.0)
    """Area of a global crop, as a share of the image; without local crops use (0.14, 1). (main_dino)"""
    local_crops_scale: tuple[float, float] = (0.05, 0.4)
    """Area of a local crop, as a share of the image. (main_dino)"""
    flip_prob: float = 0.5
    """Probability of a horizontal flip. (main_dino)"""

    RANGES: ClassVar[Ranges] = {
        **dict.fromkeys(("global_crop_size", "local_crop_size"), COUNT),
        "local_crops_number": NOT_NEGATIVE,
        **dict.fromkeys(("flip_prob", "global_crops_scale", "local_crops_scale"), SHARE),
    }
    RISING: ClassVar[tuple[str, ...]] = ("global_crops_scale", "local_crops_scale")

    @property
    def n_views(self) -> int:
        """Crops per image: 2 global crops and the local crops."""
        return 2 + self.local_crops_number


class EncodedPicture(Protocol):
    """A picture that is not decoded yet."""

    @property
    def reductions(self) -> tuple[int, ...]:
        """Supported divisors of the sides in decoding, ascending from 1."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels, undivided."""

    def decode(self, reduction: int = 1) -> Pixels:
        """RGB uint8 [ceil(H / reduction), ceil(W / reduction), 3]; ValueError or OSError if unreadable."""


class CropBox(NamedTuple):
    """Part of a picture (pixels)."""

    top: int
    left: int
    height: int
    width: int


class View(NamedTuple):
    """All random parameters of a view."""

    box: CropBox
    flip: bool
    photometric: Photometric


class LargerCrops(NamedTuple):
    """Global crops at a second, larger size: the same boxes and flips."""

    size: int
    """Side (pixels)."""
    photometric: bool
    """Whether they have the photometric changes of the global crops; blur in proportion to the size."""
    begin: int
    """Optimizer steps before which they are not cut."""
    shrinks: bool = False
    """Whether the global crops are made from them, rather than cut from the picture; not with `photometric`."""


class ViewSpec(NamedTuple):
    """Parameters that all views of a kind share."""

    size: int
    scale: tuple[float, float]
    blur_prob: float
    solarize_prob: float


class MultiCrop:
    """Draws and renders the views of a picture from a seed, global views first.

    All randomness comes from the seed, through Python's generator, which is the same in every version.

    Args:
        config: sizes and probabilities.
        larger: the global crops are also rendered at this size, where asked for.
    """

    def __init__(self, config: CropOptions, larger: LargerCrops | None = None) -> None:
        self.config, self.larger = config, larger
        self.applies_photometric = config.augment_on != "device"
        blur_1, blur_2, blur_local = config.blur_probs
        size, scale = config.global_crop_size, config.global_crops_scale
        local = ViewSpec(config.local_crop_size, config.local_crops_scale, blur_local, 0.0)
        self.kinds = [
            ViewSpec(size, scale, blur_1, 0.0),
            ViewSpec(size, scale, blur_2, config.solarize_prob),
            *[local] * config.local_crops_number,
        ]

    def draw(self, size: tuple[int, int], seed: int) -> list[View]:
        """2 + n views of a picture of this (height, width)."""
        rng = random.Random(seed)
        return [
            View(
                draw_box(size, kind.scale, rng),
                rng.random() < self.config.flip_prob,
                draw_photometric(self.config, kind.blur_prob, kind.solarize_prob, rng),
            )
            for kind in self.kinds
        ]

    def render(
        self, picture: EncodedPicture, views: Sequence[View], into: Sequence[Pixels], larger: Sequence[Pixels] = ()
    ) -> None:
        """Write each view's pixels uint8 [S, S, 3] (RGB): decoded, cropped, resized, flipped.

        Photometric changes are applied unless `augment_on` is "device". Unless larger crops shrink to the global ones,
        each size is cut from the picture itself, so the crops of `into` are the same with and without larger crops, up
        to the size of decoding.

        Args:
            picture: not decoded yet.
            views: from `draw`.
            into: an array of its size for each view.
            larger: arrays of the size of `LargerCrops` for the global views; empty for none.

        Raises the errors of the picture's `decode`.
        """
        jobs = list(zip(views, into, [self.applies_photometric] * len(into), strict=True))
        if len(larger):
            assert self.larger is not None
            both = [self.larger_view(view) for view in views[:2]]
            jobs += zip(both, larger, [self.applies_photometric and self.larger.photometric] * 2, strict=True)
            jobs = jobs[2:] if self.larger.shrinks else jobs
        boxes, sizes = [view.box for view, _, _ in jobs], [len(target) for _, target, _ in jobs]
        reduction = allowed_reduction(picture.reductions, boxes, sizes)
        pixels = picture.decode(reduction)
        scratch = {size: np.empty((size, size, 3), np.uint8) for size in set(sizes)}
        for view, target, is_changed in jobs:
            crop = scratch[len(target)]
            box = view.box if reduction == 1 else reduced_box(view.box, reduction, pixels)
            if is_changed:
                resize(pixels, box, crop)
                np.copyto(target, apply_photometric(cv2.flip(crop, 1) if view.flip else crop, view.photometric))
            elif view.flip:
                cv2.flip(resize(pixels, box, crop), 1, dst=target)
            else:
                resize(pixels, box, target)
        if len(larger) and self.larger and self.larger.shrinks:
            for view, source, target in zip(views, larger, into, strict=False):
                self._shrink(view, source, target)

    def _shrink(self, view: View, larger: Pixels, into: Pixels) -> None:
        """Make a global crop from the larger crop of its view, which is flipped already."""
        resize(larger, CropBox(0, 0, *larger.shape[:2]), into)
        if self.applies_photometric:
            np.copyto(into, apply_photometric(into, view.photometric))

    def larger_view(self, view: View) -> View:
        """The view at the size of `LargerCrops`: its blur has the same radius as a share of the crop."""
        assert self.larger is not None
        ratio = self.larger.size / self.config.global_crop_size
        return view._replace(photometric=view.photometric._replace(blur=view.photometric.blur * ratio))


def draw_box(size: tuple[int, int], scale: tuple[float, float], rng: random.Random) -> CropBox:
    """A random box, as in torchvision's RandomResizedCrop.get_params.

    Args:
        size: (height, width) of the picture.
        scale: range of the box's area, as a share of the picture's, drawn uniformly.
        rng: source of random numbers.
    """
    height, width = size
    for _ in range(BOX_TRIES):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(*_LOG_RATIOS))
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < h <= height and 0 < w <= width:
            return CropBox(int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1)), h, w)
    h = min(height, round(width / ASPECT_RATIOS[0]))
    w = min(width, round(height * ASPECT_RATIOS[1]))
    return CropBox((height - h) // 2, (width - w) // 2, h, w)


def allowed_reduction(reductions: Sequence[int], boxes: Sequence[CropBox], sizes: Sequence[int]) -> int:
    """The largest reduction with every box at least `REDUCTION_GAP` times its view's size (pixels), or 1."""
    room = min(min(box.height, box.width) / size for box, size in zip(boxes, sizes, strict=True))
    return max((reduction for reduction in reductions if room >= REDUCTION_GAP * reduction), default=1)


def reduced_box(box: CropBox, reduction: int, pixels: Pixels) -> CropBox:
    """The box in the reduced picture, rounded to its pixels: an error of at most a quarter of a view's pixel."""
    top, left = round(box.top / reduction), round(box.left / reduction)
    height = min(round(box.height / reduction), pixels.shape[0] - top)
    width = min(round(box.width / reduction), pixels.shape[1] - left)
    return CropBox(top, left, height, width)


def resize(pixels: Pixels, box: CropBox, into: Pixels) -> Pixels:
    """A box of uint8 [H, W, 3] -> `into`, uint8 [S, S, 3]: bicubic with antialiasing.

    torchvision uses this torch kernel for tensors. It differs from Pillow's by at most one level, except in one value
    of 10,000, and is several times faster on 8-bit pixels than Pillow's or OpenCV's INTER_AREA. `F.interpolate` calls
    the same kernel without an output argument: a new array for every crop would cost a sixth of the time.
    """
    part = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    source, result = (torch.from_numpy(array).permute(2, 0, 1).unsqueeze(0) for array in (part, into))
    side = (len(into), len(into))
    torch._C._nn._upsample_bicubic2d_aa(source, side, False, None, None, out=result)  # type: ignore[call-arg]
    return into


def prepare(views: Tensor, photometric: Tensor) -> Tensor:
    """uint8 [N, 3, S, S] -> float32, normalized, after photometric changes [N, PARAMETERS] (or [0, PARAMETERS])."""
    return normalize(apply_photometric_batch(views, photometric) if len(photometric) else views)


def normalize(views: Tensor) -> Tensor:
    """[N, 3, S, S] in 0 to 255 -> float32 with ImageNet's mean and standard deviation, on the same device."""
    mean, std = statistics(IMAGENET_MEAN, IMAGENET_STD, views.device)
    return views.contiguous().float().div_(255).sub_(mean).div_(std)
