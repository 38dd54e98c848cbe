"""Convert masks to soft labels on the patch grid, and back to masks."""

from typing import get_args

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dino_dense.propagation.protocol import LabelEncoding, Normalize, Upsample, UpsampleTo, check_choice


def encode_labels(
    ids: npt.NDArray[np.uint8], grid: tuple[int, int], num_objects: int, method: LabelEncoding = "nearest"
) -> Tensor:
    """Ids uint8 [H, W] -> soft labels float32 [C, h, w] on the patch grid, C = num_objects + 1.

    There are always C channels: an object that vanishes on the patch grid keeps a channel of zeros, so that ids do not
    shift (DINO's script drops the channel if the object has the highest id).
    """
    check_choice("label_encoding", method, get_args(LabelEncoding))
    if ids.max() > num_objects:
        raise ValueError(f"a label id of {ids.max()}, but num_objects is {num_objects}")
    height_width, width_height = grid, (grid[1], grid[0])
    if method == "bilinear":
        masks = [(ids == identity).astype(np.float32) for identity in range(num_objects + 1)]
        resized = [cv2.resize(mask, width_height, interpolation=cv2.INTER_LINEAR) for mask in masks]
        return torch.from_numpy(np.stack(resized))
    if method == "nearest":
        small = torch.from_numpy(np.array(Image.fromarray(ids).resize(width_height, Image.Resampling.NEAREST)))
    else:
        small = F.interpolate(torch.from_numpy(ids)[None, None].float(), height_width, mode="nearest-exact")[0, 0]
    return F.one_hot(small.long(), num_objects + 1).permute(2, 0, 1).float()


def decode_labels(
    scores: Tensor,
    patch_size: int,
    size: tuple[int, int],
    upsample: Upsample = "bilinear",
    normalize: Normalize = "minmax",
    upsample_to: UpsampleTo = "frame",
) -> npt.NDArray[np.uint8]:
    """Soft labels [C, h, w] -> ids uint8 [H, W] at `size` (H, W).

    Scores are upsampled to the resized frame (h, w times `patch_size`) or directly to `size`, and normalized. The
    id is the channel of the highest score. From the resized frame, ids are resized to `size` by nearest neighbor
    (PIL).
    """
    check_choice("upsample", upsample, get_args(Upsample))
    check_choice("normalize", normalize, get_args(Normalize))
    check_choice("upsample_to", upsample_to, get_args(UpsampleTo))
    _, h, w = scores.shape
    pixels = (h * patch_size, w * patch_size) if upsample_to == "frame" else size
    align = {"align_corners": False} if upsample == "bilinear" else {}
    dense = F.interpolate(scores[None].float(), pixels, mode=upsample, **align)[0]
    if normalize == "minmax":
        dense = _scale_channels(dense)
    ids = dense.max(dim=0).indices.to(torch.uint8).cpu().numpy()  # argmax over so few channels is 30 times slower
    return np.array(Image.fromarray(ids).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _scale_channels(scores: Tensor) -> Tensor:
    """Scale each channel of [C, H, W] to [0, 1]; a constant channel is unchanged (0 / 0 in the references)."""
    lowest, highest = scores.amin((1, 2), keepdim=True), scores.amax((1, 2), keepdim=True)
    span = highest - lowest
    return (scores - torch.where(span > 0, lowest, 0)) / torch.where(span > 0, span, 1)
