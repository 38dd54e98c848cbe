"""Photometric augmentation of views: color jitter, gray, blur and solarization, applied by the loader or the device.

The parameters of a view (`Photometric`) are drawn once (`draw_photometric`). A loader process applies them to 8-bit
pixels with OpenCV (`apply_photometric`), or the training device applies them to all views of a batch at once
(`apply_photometric_batch`). Both do the operations of main_dino.py, which uses PIL through torchvision, after resizing:

    brightness, contrast, saturation    x -> p + f (x - p), clipped to [0, 255], with p = 0, the mean gray level, the
                                        pixel's own gray (PIL ImageEnhance); fractions are dropped, as in PIL
    hue                                 a rotation of H in HSV by a share of the circle
    blur                                PIL's GaussianBlur(radius), see `blur_kernel`

Only the loader rounds to 8 bits after each operation, as PIL does.

Shapes: N views of S x S pixels, T taps of the blur's kernel.
"""

import functools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dino_dense.arrays import Pixels
from dino_dense.pretrain.options import SHARE, Options, Ranges

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""The operations of the jitter, as numbered in `Photometric.order`."""
GRAY_WEIGHTS = (0.299, 0.587, 0.114)
"""Weights of R, G and B in gray (ITU-R BT.601, as in PIL's convert("L"))."""
SOLARIZE_THRESHOLD = 128
"""Pixel values from here up are inverted (the default of PIL's solarize, which the published code uses)."""
HUE_STEPS = 255
"""The hue rotates by a whole number of these steps, rounded towards 0 (torchvision's adjust_hue of a PIL image)."""
BLUR_PASSES = 3
"""Number of box filters in PIL's Gaussian blur (the default of Pillow's ImagingGaussianBlur)."""


@dataclass(frozen=True)
class PhotometricOptions(Options):
    """Color augmentation of the crops"""

    jitter_prob: float = 0.8
    """Probability of color jitter. (main_dino)"""
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    """Strength of the jitter of brightness, contrast, saturation, hue. (main_dino)"""
    gray_prob: float = 0.2
    """Probability of dropping the color. (main_dino)"""
    blur_probs: tuple[float, float, float] = (1.0, 0.1, 0.5)
    """Probability of blur in global crop 1, global crop 2, and a local crop. (main_dino)"""
    blur_radius: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's radius (pixels, PIL GaussianBlur), drawn uniformly. (utils.py)"""
    solarize_prob: float = 0.2
    """Probability of solarization, in global crop 2 only. (main_dino)"""
    augment_on: Literal["auto", "loader", "device"] = "auto"
    """Where to apply color jitter, gray, blur and solarization: loader = in the loader processes, one view at a time on
    8-bit pixels (as main_dino); device = on the training device, a batch at a time; auto = device on CUDA, loader on
    the CPU. (not in main_dino)"""

    RANGES: ClassVar[Ranges] = dict.fromkeys(("jitter_prob", "gray_prob", "blur_probs", "solarize_prob"), SHARE)
    RISING: ClassVar[tuple[str, ...]] = ("blur_radius",)


class Photometric(NamedTuple):
    """One view's photometric parameters; the defaults change nothing."""

    order: tuple[int, ...] = (BRIGHTNESS, CONTRAST, SATURATION, HUE)
    """Order of the jitter's operations."""
    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    """In [-0.5, 0.5], a share of the color circle."""
    gray: bool = False
    blur: float = 0.0
    """Radius (pixels); 0 = none."""
    solarize: bool = False

    @property
    def factors(self) -> tuple[float, float, float, float]:
        """The strength of each operation, indexed by its number."""
        return self.brightness, self.contrast, self.saturation, self.hue

    def row(self) -> list[float]:
        """All parameters as numbers: a row of a table [N, PARAMETERS]."""
        return [*self.order, *self.factors, float(self.gray), self.blur, float(self.solarize)]


PARAMETERS = len(Photometric().row())
_ORDER, _FACTORS, _GRAY, _BLUR, _SOLARIZE = slice(0, 4), slice(4, 8), 8, 9, 10  # columns of the table


def draw_photometric(
    options: PhotometricOptions, blur_prob: float, solarize_prob: float, rng: random.Random
) -> Photometric:
    """Random parameters with the distributions of torchvision's ColorJitter and main_dino's transforms."""
    photometric = _draw_jitter(options.jitter, rng) if rng.random() < options.jitter_prob else Photometric()
    return photometric._replace(
        gray=rng.random() < options.gray_prob,
        blur=rng.uniform(*options.blur_radius) if rng.random() < blur_prob else 0.0,
        solarize=rng.random() < solarize_prob,
    )


def _draw_jitter(strengths: tuple[float, float, float, float], rng: random.Random) -> Photometric:
    """Factors uniform in [max(0, 1 - s), 1 + s], hue in [-s, s], in a random order of all 24."""
    order = [BRIGHTNESS, CONTRAST, SATURATION, HUE]
    rng.shuffle(order)
    brightness, contrast, saturation = (rng.uniform(max(0.0, 1 - width), 1 + width) for width in strengths[:HUE])
    return Photometric(tuple(order), brightness, contrast, saturation, rng.uniform(-strengths[HUE], strengths[HUE]))


# --- In a loader process: 8-bit pixels, one view at a time ---

_DROP_FRACTION = -0.499  # added before OpenCV rounds to nearest, to round down as PIL does
_SOLARIZED = np.where(np.arange(256) < SOLARIZE_THRESHOLD, np.arange(256), 255 - np.arange(256)).astype(np.uint8)


def apply_photometric(pixels: Pixels, photometric: Photometric) -> Pixels:
    """Apply the parameters to a view, uint8 RGB [S, S, 3]; returns a new array."""
    for operation in photometric.order:
        factor = photometric.factors[operation]
        if operation == HUE and factor != 0:
            pixels = _turn_hue(pixels, factor)
        elif operation != HUE and factor != 1:
            pixels = _blend(pixels, operation, factor)
    if photometric.gray:
        pixels = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    if photometric.blur > 0:
        kernel = blur_kernel(photometric.blur)
        pixels = cv2.sepFilter2D(pixels, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    return cv2.LUT(pixels, _SOLARIZED) if photometric.solarize else pixels


def _blend(pixels: Pixels, operation: int, factor: float) -> Pixels:
    """Brightness, contrast or saturation, as one affine map of RGB."""
    affine = np.zeros((3, 4))
    affine[:, 3] = _DROP_FRACTION
    if operation == CONTRAST:
        gray = cv2.mean(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[0]
        affine[:, 3] += (1 - factor) * int(gray + 0.5)
    if operation == SATURATION:
        affine[:, :3] = (1 - factor) * np.array(GRAY_WEIGHTS)
    affine[[0, 1, 2], [0, 1, 2]] += factor
    return cv2.transform(pixels, affine)


def _turn_hue(pixels: Pixels, turn: float) -> Pixels:
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(int(HUE_STEPS * turn) % 256)  # 256 steps are OpenCV's circle: overflow is meant
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL, dst=hsv)


def blur_kernel(radius: float) -> npt.NDArray[np.float32]:
    """Kernel [T] of PIL's Gaussian blur with this radius (pixels), T odd.

    PIL approximates a Gaussian of standard deviation r by three passes of an extended box filter (Gwosdek et al.,
    Theoretical Foundations of Gaussian Convolution by Extended Box Filtering, 2011): 2l + 1 taps of weight 1 and one
    of weight a at each end, with l and a such that the three variances add up to r^2. Here the three passes are one
    kernel. This differs only within T/2 pixels of the border, which PIL extends again in each pass.
    """
    variance = radius * radius / BLUR_PASSES
    reach = int((math.sqrt(12 * variance + 1) - 1) / 2)  # l
    end = (2 * reach + 1) * (reach * (reach + 1) - 3 * variance) / (6 * (variance - (reach + 1) ** 2))  # a
    box = np.ones(2 * reach + 3)
    box[0] = box[-1] = end
    kernel = functools.reduce(np.convolve, [box] * BLUR_PASSES)
    return (kernel / kernel.sum()).astype(np.float32)


# --- On the training device: a batch at a time ---

_DROPPED = 0.5  # mean loss of the 8-bit operations by rounding down: subtracted to keep the same brightness


def apply_photometric_batch(views: Tensor, table: Tensor) -> Tensor:
    """Apply the parameters `table` [N, PARAMETERS] to views [N, 3, S, S], 0 to 255: float32 [N, 3, S, S], 0 to 255.

    The table is on the CPU and selects the views of each operation there, without waiting for the device.
    """
    views = views.contiguous().float()
    factors = table[:, _FACTORS]
    for operations in table[:, _ORDER].long().T:
        views = _blend_batch(views, operations, factors.gather(1, operations[:, None])[:, 0])
        _change(views, factors[:, HUE].where(operations == HUE, 0), _turn_hue_batch)
    _change(views, table[:, _GRAY], lambda chosen, _: _gray(chosen)[:, None].expand_as(chosen))
    _change(views, table[:, _BLUR], _blur_batch)
    _change(views, table[:, _SOLARIZE], lambda x, _: torch.where(x < SOLARIZE_THRESHOLD, x, 255 - x))
    return views


def _change(views: Tensor, amounts: Tensor, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Change in place the views with an amount [N] other than 0."""
    index = amounts.nonzero()[:, 0]
    if len(index):
        where = index.to(views.device, non_blocking=True)
        views.index_copy_(0, where, change(views.index_select(0, where), amounts[index]))


def _gray(views: Tensor) -> Tensor:
    """[N, 3, S, S] -> [N, S, S]."""
    red, green, blue = (channel * weight for channel, weight in zip(views.unbind(1), GRAY_WEIGHTS, strict=True))
    return red + green + blue


def _blend_batch(views: Tensor, operations: Tensor, factors: Tensor) -> Tensor:
    """Apply to each view its operation [N] with its factor [N], as one batch of 3x3 matrices; identity for hue."""
    factors = factors.where(operations != HUE, 1.0)
    own_gray = (1 - factors).where(operations == SATURATION, 0.0)
    matrices = factors[:, None, None] * torch.eye(3) + own_gray[:, None, None] * torch.tensor(GRAY_WEIGHTS)
    dropped = torch.full_like(factors, _DROPPED).where(factors != 1, 0.0)
    offsets = -dropped.to(views.device, non_blocking=True)
    mean_gray = (1 - factors).where(operations == CONTRAST, 0.0).nonzero()[:, 0]
    if len(mean_gray):
        where = mean_gray.to(views.device, non_blocking=True)
        levels = (_gray(views.index_select(0, where)).mean(dim=(1, 2)) + 0.5).floor()
        offsets.index_add_(0, where, levels * (1 - factors[mean_gray]).to(views.device, non_blocking=True))
    matrices = matrices.to(views.device, non_blocking=True)
    blended = torch.baddbmm(offsets[:, None, None], matrices, views.flatten(2))  # [N, 3, S*S]
    return blended.clamp_(0, 255).view_as(views)


def _turn_hue_batch(views: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue of HSV (Smith, Color Gamut Transform Pairs, 1978), in sixths of the circle, and convert to RGB."""
    red, green, blue = views.unbind(1)
    value = views.amax(dim=1)
    chroma = value - views.amin(dim=1)
    divisor = chroma.clamp(min=1e-6)  # gray has no hue; any value works
    hue = torch.where(value == green, (blue - red) / divisor + 2, (red - green) / divisor + 4)
    hue = torch.where(value == red, (green - blue) / divisor, hue)
    turns = (turns * HUE_STEPS).trunc() / HUE_STEPS
    hue += 6 * turns.to(views.device, non_blocking=True)[:, None, None]
    # A channel is the value minus up to the chroma, by the distance between the hue and the channel's own hue.
    far = torch.stack([(hue + start) % 6 for start in (5, 3, 1)], dim=1)
    return value[:, None] - chroma[:, None] * torch.minimum(far, 4 - far).clamp_(0, 1)


def _blur_batch(views: Tensor, radii: Tensor) -> Tensor:
    """Blur as products with two band matrices: faster on a GPU than convolutions, and includes the border."""
    kernels = [blur_kernel(radius) for radius in radii.tolist()]
    taps, size = max(map(len, kernels)), views.shape[-1]
    padded = torch.from_numpy(np.stack([np.pad(kernel, (taps - len(kernel)) // 2) for kernel in kernels]))
    filters = padded.to(views.device, non_blocking=True) @ _shifts(size, taps, views.device).flatten(1)
    filters = filters.view(-1, 1, size, size)
    return filters @ views @ filters.mT


@functools.lru_cache(maxsize=8)
def _shifts(size: int, taps: int, device: torch.device) -> Tensor:
    """[T, S, S]: matrix t shifts a column of pixels by t - T//2, and repeats the border pixel."""
    pixels = torch.arange(size)
    source = (pixels + torch.arange(taps)[:, None] - taps // 2).clamp(0, size - 1)
    return (source[:, :, None] == pixels).float().to(device)
