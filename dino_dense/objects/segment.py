"""Shared parts of object discovery in an image: the result, the compared features, components and sizes.

Shapes: an image has h x w patches, N = h*w, in rows; features are [C, h, w], masks bool [h, w].
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.ndimage
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dino_dense import Backbone
from dino_dense.arrays import Box, Floats, Mask
from dino_dense.backbone.grid import to_pixels
from dino_dense.objects.protocol import SegmentProtocol

UNCUT = 1.0
"""Normalized cut of an image whose patches are all alike, so that there is no partition."""


class Segment(NamedTuple):
    """One object found in an image."""

    mask: Mask
    """[h, w]; all False if no object was found."""
    confidence: float
    """0 to 1, comparable among images of one method (see each method)."""
    seed: int = -1
    """Index of the patch that the object grew from; -1 without one."""
    ncut: float = np.nan
    """Normalized cut of the partition, 0 (two separate components) to 1 (no structure) or more; NaN if not a cut."""
    eigenvector: Floats | None = None
    """[h, w], the relaxed solution of the partition up to a factor, larger on the object."""


# --- All methods -------------------------------------------------------------------------------------------


def patch_features(backbone: Backbone, images: Tensor, protocol: SegmentProtocol) -> Tensor:
    """The features that TokenCut, LOST and MaskCut compare, [B, C, h, w], of images [B, 3, H, W].

    A last map without negative values (it ends with a ReLU) is layer-normalized over all its values, as in LOST for
    ResNets: otherwise every product would be positive.
    """
    kind = feature_kind(backbone, protocol)
    features = backbone.extract(images, {kind})[kind]
    return F.layer_norm(features, features.shape[1:]) if backbone.nonnegative_maps else features


def feature_kind(backbone: Backbone, protocol: SegmentProtocol) -> Literal["keys", "patches"]:
    """The kind of features to compare: `protocol.features`, or patches for a backbone without keys."""
    return protocol.features if protocol.features in backbone.provides else "patches"


def uncut_note(normalized_cuts: Sequence[float], protocol: SegmentProtocol) -> str:
    """A sentence on images without an object since their patches are all alike; empty if there are none.

    Args:
        normalized_cuts: of each image's (first) segment; `UNCUT` without a cut.
    """
    uncut = sum(value == UNCUT for value in normalized_cuts)
    if not uncut:
        return ""
    other = "patches" if protocol.features == "keys" else "keys"
    return (
        f"{uncut} of {len(normalized_cuts)} images have no object: the cosines of all their patches are on one side of "
        f"tau {protocol.tau:g}, so nothing is cut. Set another --tau (a larger one if patches are alike), or "
        f"--features {other}."
    )


def feature_note(backbone: Backbone, protocol: SegmentProtocol) -> str:
    """A note if other features are compared than requested, else ""."""
    if feature_kind(backbone, protocol) == protocol.features:
        return ""
    return f"{backbone.name} has no keys: its last map was compared instead."


def attention_of(backbone: Backbone, images: Tensor) -> Tensor:
    """The class token's attention [B, heads, h, w] to images [B, 3, H, W]; ValueError if it has none."""
    return backbone.extract(images, {"attention"}).attention


def compared_maps(backbone: Backbone, images: Tensor, protocol: SegmentProtocol, method: str) -> Tensor:
    """The input of a method from images [B, 3, H, W]: attention [B, heads, h, w], or features [B, C, h, w]."""
    if method == "attention":
        return attention_of(backbone, images)
    return patch_features(backbone, images, protocol)


def component(mask: Mask, seed: int) -> Mask:
    """The 4-connected component of a mask [h, w] with the patch `seed`; empty if the seed is not in the mask."""
    pieces, _ = scipy.ndimage.label(mask)
    return mask & (pieces == pieces.flat[seed])


def largest_component(mask: Mask) -> Mask:
    """The largest 4-connected component of a mask, the first of equally large; empty for an empty mask."""
    pieces, count = scipy.ndimage.label(mask)
    if not count:
        return mask
    sizes = np.bincount(pieces.ravel())[1:]
    return pieces == 1 + sizes.argmax()


def box_of(mask: Mask, patch_size: int, size: tuple[int, int]) -> Box | None:
    """The box (x0, y0, x1, y1) around a mask [h, w], pixels of an image of `size` (H, W), ends not included.

    None for an empty mask.
    """
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    patches = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return to_pixels(patches, patch_size, size)


def working_size(size: tuple[int, int], protocol: SegmentProtocol) -> tuple[int, int]:
    """The size (H, W) to resize an image of `size` (H, W) to, before fitting to whole patches, pixels."""
    if protocol.squash is not None:
        return protocol.squash, protocol.squash
    if protocol.short_side is None:
        return size
    scale = protocol.short_side / min(size)
    return round(size[0] * scale), round(size[1] * scale)


def to_tensor(rgb: npt.NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """RGB [H, W, 3] -> uint8 [3, *size], resized to `size` (h, w) with Pillow's LANCZOS if needed."""
    if rgb.shape[:2] != size:
        rgb = np.asarray(Image.fromarray(rgb).resize(size[::-1], Image.Resampling.LANCZOS))
    return torch.from_numpy(rgb.copy()).permute(2, 0, 1)


def check_finite(values: Tensor) -> None:
    extremes = torch.stack(values.aminmax())  # NaN if any value is; a tenth of the time of asking each
    if not bool(extremes.isfinite().all()):
        raise ValueError("the backbone gave features that are not finite numbers: check its weights, or use fp32")
