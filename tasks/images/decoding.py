"""JPEG files that the backbone's device decodes, resizes and crops; worker processes read their bytes only.

Pixels differ slightly from Pillow's: the decoder may be another, and the resizing rounds otherwise. As everywhere in
data sets, orientation tags are ignored. Other files, and JPEGs that the decoder refuses, are read by Pillow.

Shapes: B files of a batch, H x W pixels of a file, S pixels a side of a square.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from data import jpeg
from data.images import JpegPicture, open_picture, read_rgb
from data.notices import say
from dino_dense.backbone.bytes import moved
from dino_dense.loaders import WorkerItems, read_items

Transform = Callable[[Any], Tensor]


class Files(NamedTuple):
    """A batch on its way to the device. All JPEGs are one tensor: each tensor of a worker needs a file descriptor."""

    indices: Tensor
    """int64 [B]."""
    lengths: Tensor
    """int64 [B]: bytes of each JPEG; 0 for a file that is a square already."""
    encoded: Tensor
    """uint8: the JPEGs, one after another."""
    squares: list[Tensor]
    """uint8 [3, S, S] of each other file."""


class _FilesToDecode(Dataset[tuple[int, Tensor]]):
    """Index, and the bytes of a JPEG [n] or the square [3, S, S] of another file."""

    def __init__(self, paths: Sequence[Path], transform: Transform) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        picture = open_picture(self.paths[index])
        # Decoders differ on JPEGs that store RGB, which are rare: Pillow reads them.
        if isinstance(picture, JpegPicture) and not jpeg.is_marked_rgb(picture.encoded):
            return index, torch.frombuffer(bytearray(picture.encoded), dtype=torch.uint8)
        return index, self.transform(Image.fromarray(picture.decode()))


def decoded_squares(
    paths: Sequence[Path],
    geometry: Transform,
    transform: Transform,
    device: torch.device,
    worker_items: WorkerItems,
    batch_size: int,
) -> Iterator[Tensor]:
    """RGB uint8 [B, 3, S, S] of image files, in order, on the device.

    Args:
        geometry: resizes and crops uint8 [3, H, W] to [3, S, S].
        transform: PIL image -> uint8 [3, S, S], for files that the device does not decode.

    Raises:
        DataError: an image cannot be read; the message names it.
        ValueError: the device has no decoder.
    """
    check_decoder(device)
    items, by_pillow = _FilesToDecode(paths, transform), 0
    for files in read_items(items, worker_items, batch_size=batch_size, collate=_collate):
        parts = files.encoded.split(files.lengths.tolist())
        images = iter(decoded([part for part in parts if len(part)], device))
        others = iter(files.squares)
        squares = []
        for index, part in zip(files.indices.tolist(), parts, strict=True):
            image = next(images) if len(part) else None
            if image is None:
                by_pillow += 1
                square = transform(read_rgb(paths[index])) if len(part) else next(others)
            else:
                square = geometry(image)
            squares.append(moved(square, device))
        yield torch.stack(squares).contiguous()
    if by_pillow:
        say(f"{by_pillow} of {len(paths)} files were read by Pillow: {device} does not decode them.")


def decoded(jpegs: Sequence[Tensor], device: torch.device) -> list[Tensor | None]:
    """Bytes of JPEGs, uint8 [n] each -> RGB uint8 [3, H, W] each, on the device; None for a refused file."""
    if not jpegs:
        return []
    try:
        return list(decode_jpegs(jpegs, device))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # one of them; the decoder does not say which
        return [None] if len(jpegs) == 1 else [image for part in jpegs for image in decoded([part], device)]


def check_decoder(device: torch.device) -> None:
    """Raise ValueError if the device cannot decode a small JPEG."""
    encoded = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1]
    try:
        (image,) = decode_jpegs([torch.from_numpy(encoded)], device)
        reason = "" if image.shape == (3, 16, 16) else f"it gave {tuple(image.shape)} for 16 x 16 pixels"
    except (RuntimeError, ImportError) as error:
        reason = str(error).splitlines()[0]
    if reason:
        raise ValueError(f"decode is device, but torchvision decodes no JPEGs on {device} ({reason}): use pillow.")


def decode_jpegs(jpegs: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """The only call of a decoder. Deprecated since torchvision 0.29, for TorchCodec."""
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        images: list[Tensor] = decode_jpeg(list(jpegs), ImageReadMode.RGB, device=device)
    return images


def _collate(items: list[tuple[int, Tensor]]) -> Files:
    indices, parts = zip(*items, strict=True)
    encoded = [part for part in parts if part.ndim == 1]
    return Files(
        torch.tensor(indices),
        torch.tensor([len(part) if part.ndim == 1 else 0 for part in parts]),
        torch.cat(encoded) if encoded else torch.empty(0, dtype=torch.uint8),
        [part for part in parts if part.ndim > 1],
    )
