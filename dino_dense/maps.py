"""Maps to draw, from frozen features: attention, leading components, similarity to a patch.

Shapes: an image RGB uint8 [H, W, 3] has h x w patches; features are [C, h, w].
"""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_dense import Backbone
from dino_dense.arrays import Mask, Pixels
from dino_dense.backbone.grid import fit
from dino_dense.objects.segment import attention_of, to_tensor

RESOLUTION = 480  # pixels of the short side: DINO's visualize_attention.py
MASS = 0.6  # share of a head's attention that its mask keeps: DINO, Fig. 4
LIKENESS = 0.6  # cosine to the clicked patch; found by eye: below it a click on a dog takes the ground along
_FEWEST = 4  # patches that three components need
_FLAT = 1e-12  # variance; below it there is nothing to show


def to_input(backbone: Backbone, rgb: Pixels, resolution: int = RESOLUTION) -> Tensor:
    """An image as the backbone takes it, uint8 [1, 3, H', W']: short side about `resolution` pixels.

    Each side is rounded to a multiple of the patch size, so the aspect ratio changes by half a patch at most.
    """
    scale = resolution / min(rgb.shape[:2])
    size = (rgb.shape[0] * scale, rgb.shape[1] * scale)
    return to_tensor(rgb, fit(size, backbone.patch_size, "even").size)[None]


def attention_maps(backbone: Backbone, rgb: Pixels, resolution: int = RESOLUTION) -> Tensor:
    """Attention of the class token to each patch in the last block, [heads, h, w], without registers.

    Raises:
        ValueError: the network has no class token or no attention; the message lists its features.
    """
    return attention_of(backbone, to_input(backbone, rgb, resolution))[0].cpu()


def mass_masks(attention: Tensor, mass: float = MASS) -> Mask:
    """The most attended patches that together hold `mass` of each map's attention [heads, h, w] (DINO, Fig. 4).

    The patch that crosses the mass is included. Bool [heads, h, w].
    """
    flat = attention.flatten(1).double()
    values, order = (flat / flat.sum(dim=1, keepdim=True)).sort(dim=1, descending=True)
    kept = values.cumsum(dim=1) - values < mass
    return torch.zeros_like(kept).scatter(1, order, kept).view(attention.shape).numpy()


def patch_maps(backbone: Backbone, rgb: Pixels, resolution: int = RESOLUTION) -> Tensor:
    """Patch tokens [C, h, w] of an image, on the CPU."""
    patches = backbone.extract(to_input(backbone, rgb, resolution)).patches
    if not bool(patches.isfinite().all()):
        raise ValueError("the backbone gave features that are not finite numbers: check its weights, or use fp32")
    return patches[0].cpu()


# --- Principal components ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PcaColors:
    """Maps features to colors, in the same way for all images it was fitted on.

    Otsu's threshold on the first component of all patches gives the foreground (DINOv2's pictures, arXiv 2304.07193,
    Fig. 1). The three leading components of the foreground are red, green and blue: each is scaled to variance 1, and
    doubled before a sigmoid (DINOv3's notebook). The background is black.
    """

    mean: Tensor
    """[C] of all patches."""
    first: Tensor
    """[C], points to the foreground."""
    threshold: float
    """A patch is foreground from this value of its first component on."""
    center: Tensor
    """[C] of the foreground."""
    axes: Tensor
    """[C, 3], divided by the standard deviation along each."""

    @classmethod
    def fit(cls, maps: Iterable[Tensor]) -> "PcaColors":
        """Fit on the features [C, h, w] of one or more images of any size.

        The sign of a component is arbitrary: the foreground is the side with fewer patches at the images' borders.
        """
        held = [features.float() for features in maps]
        patches = torch.cat([features.flatten(1) for features in held], dim=1).T  # [N, C]
        border = torch.cat([_at_border(features).flatten() for features in held])
        mean, axes = _components(patches, 1)
        first = axes[:, 0]
        values = (patches - mean) @ first
        threshold = _otsu(values)
        above = values > threshold
        if above[border].float().mean() / above.float().mean().clamp_min(_FLAT) > 1:
            first, values, threshold = -first, -values, -threshold
            above = values > threshold
        foreground = patches[above] if int(above.sum()) >= _FEWEST else patches
        center, three = _components(foreground, 3)
        return cls(mean, first, threshold, center, three)

    def foreground(self, features: Tensor) -> Mask:
        """Features [C, h, w] -> bool [h, w]."""
        values = (features.flatten(1).T.float() - self.mean) @ self.first
        return (values > self.threshold).view(features.shape[1:]).numpy()

    def colors(self, features: Tensor) -> Pixels:
        """Features [C, h, w] -> RGB [h, w, 3], the background black."""
        values = (features.flatten(1).T.float() - self.center) @ self.axes
        rgb = (255 * (2 * values).sigmoid()).round().to(torch.uint8).view(*features.shape[1:], 3).numpy()
        return np.where(self.foreground(features)[..., None], rgb, np.uint8(0))


def _components(patches: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean [C] and the leading components [C, count], each divided by its standard deviation.

    The largest loading of each component is positive, so that colors are reproducible.
    """
    mean = patches.mean(dim=0)
    centered = (patches - mean).double()
    variances, axes = torch.linalg.eigh(centered.T @ centered / len(patches))
    leading = axes[:, -count:].flip(1)
    signs = leading.gather(0, leading.abs().argmax(dim=0, keepdim=True)).sign()
    spread = variances[-count:].flip(0).clamp_min(_FLAT).sqrt()
    return mean, F.pad(leading * signs / spread, (0, count - leading.shape[1])).float()


def _at_border(features: Tensor) -> Tensor:
    """Bool [h, w]: patches at the border of the image."""
    border = torch.ones(features.shape[1:], dtype=torch.bool)
    border[1:-1, 1:-1] = False
    return border


def _otsu(values: Tensor) -> float:
    """Otsu's threshold (1979) on 256 steps, moved to the middle of the gap between values that it lies in."""
    low, high = float(values.min()), float(values.max())
    if high - low < _FLAT:
        return low
    steps = ((values - low) / (high - low) * 255).round().to(torch.uint8).numpy()
    cut, _ = cv2.threshold(steps, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    above = torch.from_numpy(steps > cut)
    return (float(values[~above].max()) + float(values[above].min())) / 2


# --- Likeness to one patch ---------------------------------------------------------------------------------


def patch_under(point: tuple[int, int], size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """Row and column of the patch under a pixel (x, y) of an image of `size` (H, W), on a grid (h, w).

    Raises:
        ValueError: the pixel is not in the image.
    """
    x, y = point
    height, width = size
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f"the point {x},{y} (x,y) is not in the image, {width} wide and {height} high")
    return y * grid[0] // height, x * grid[1] // width


def similarity(features: Tensor, query: Tensor) -> Tensor:
    """Cosine [h, w] of each patch [C, h, w] with one feature [C]."""
    return torch.einsum("chw,c->hw", F.normalize(features.float(), dim=0), F.normalize(query.float(), dim=0))


def match_map(features: Tensor, size: tuple[int, int], point: tuple[int, int], target: Tensor) -> Tensor:
    """Cosine [h', w'] of every patch of another image [C, h', w'] with the patch under a pixel (x, y) of this one.

    Args:
        features: [C, h, w] of this image, `size` (H, W) pixels.
    """
    grid = (features.shape[1], features.shape[2])
    row, column = patch_under(point, size, grid)
    return similarity(target, features[:, row, column])


def grow(
    features: Tensor, size: tuple[int, int], point: tuple[int, int], likeness: float = LIKENESS
) -> npt.NDArray[np.bool_]:
    """The region of similar patches around a clicked pixel (x, y), bool [H, W].

    Features are centered by their mean over the image. The region holds the patches with a cosine to the clicked patch
    above `likeness` that are 4-connected to it. The map is upsampled bilinearly and thresholded in pixels.

    Raises:
        ValueError: the pixel is not in the image.
    """
    grid = (features.shape[1], features.shape[2])
    row, column = patch_under(point, size, grid)
    centered = features.float() - features.float().mean(dim=(1, 2), keepdim=True)
    alike = similarity(centered, centered[:, row, column]).numpy()
    pieces, _ = scipy.ndimage.label(alike > likeness)
    piece = pieces == pieces[row, column] if pieces[row, column] else np.zeros(grid, bool)
    piece[row, column] = True
    # Only the component and the patches around it count: other similar regions stay out.
    near = scipy.ndimage.binary_dilation(piece)
    values = np.where(near, alike, -1).astype(np.float32)
    values[row, column] = 1
    dense = cv2.resize(np.where(near & ~piece, np.minimum(values, likeness), values), size[::-1])
    clicked = np.zeros(grid, np.uint8)
    clicked[row, column] = 1
    return (dense > likeness) | (cv2.resize(clicked, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT) > 0)
