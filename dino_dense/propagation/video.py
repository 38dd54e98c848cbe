"""Propagate object masks along a video: frames in, masks at the frames' own size out.

Frames are read ahead, and their features are computed in batches while earlier frames propagate. Memory does not grow
with the length of the video.

Shapes: H x W pixels of a frame, D features, C label channels (0 is background), h x w patch grid, B frames of a batch.
"""

import dataclasses
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from dino_dense.arrays import Pixels
from dino_dense.backbone import Backbone
from dino_dense.backbone.dino_vit import IMAGENET_MEAN, IMAGENET_STD
from dino_dense.pipeline import computed_ahead, drawn_ahead, read_ahead
from dino_dense.propagation.frames import frame_size, resize_frame
from dino_dense.propagation.labels import decode_labels, encode_labels
from dino_dense.propagation.protocol import PropagationProtocol
from dino_dense.propagation.stream import DEFAULT_MAX_BYTES, LabelPropagator, PropagationMemory, plan_memory

GPU_BATCH = 8  # frames whose features are computed at once
GPU_RESIZERS = 4  # threads that resize frames for a GPU, which waits for a single one at large sizes


@dataclass(frozen=True)
class Frame:
    """A frame of a video. A subclass may add fields; `VideoPropagator.run` returns the same objects."""

    rgb: Pixels = dataclasses.field(repr=False)
    """uint8 [H, W, 3]."""
    labels: Pixels | None = dataclasses.field(default=None, repr=False)
    """Known ids uint8 [H, W] of this frame, or None; the first frame needs them."""


AnyFrame = TypeVar("AnyFrame", bound=Frame)
Resized = TypeVar("Resized")


class VideoPropagator:
    """Propagates the masks of a video's first frame, and of later frames with masks, to all frames.

    Args:
        backbone: extracts patch features, with the pixel statistics of `pixel_statistics`.
        protocol: the constants.
        size: (H, W) of the frames, pixels.
        objects: ids of the masks, 1..255, ascending, with or without gaps.
        max_bytes: memory limit of propagation (`plan_memory`); does not change the result.
        batch_size: frames in a batch of feature extraction; default 1 on a CPU (several batches at once), 8 on a GPU.

    Raises:
        ValueError: `max_bytes` is too small, or the frames become smaller than a patch.
    """

    def __init__(
        self,
        backbone: Backbone,
        protocol: PropagationProtocol,
        size: tuple[int, int],
        objects: Sequence[int],
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        batch_size: int | None = None,
    ) -> None:
        self.backbone, self.protocol, self.size = pixel_statistics(backbone, protocol), protocol, size
        on_cpu = backbone.on_cpu
        self.batch_size = batch_size or (1 if on_cpu else GPU_BATCH)
        patch = backbone.patch_size
        self.working_size = frame_size(
            *size, short_side=protocol.short_side, rounding=protocol.rounding, patch_size=patch
        )
        self.grid = self.working_size[0] // patch, self.working_size[1] // patch
        self._ids = np.array([0, *objects], np.uint8)  # channel -> id
        shape = backbone.embed_dim, *self.grid
        self.memory: PropagationMemory = plan_memory(shape, len(self._ids), protocol, max_bytes, on_cpu=on_cpu)
        self._tile_bytes = max_bytes - self.memory.context

    def run(self, frames: Iterable[AnyFrame]) -> Generator[tuple[AnyFrame, Pixels]]:
        """Yield every frame with its ids uint8 [H, W], in order.

        The first frame's ids are its labels. In a later frame with labels, its objects replace the propagated ids
        (`LabelPropagator.step`).

        Args:
            frames: read by a worker thread, up to two batches ahead of the batches whose features are computed
                (`pipeline.computed_ahead`: up to four at once on a CPU). Avoid torch in it, it would start its own
                thread pool. Its errors are raised here in order.

        Raises:
            ValueError: the first frame has no labels, the size of a frame differs, or labels have an unknown id.
        """
        propagator = LabelPropagator(self.protocol, max_bytes=self._tile_bytes)
        first = True
        with closing(self._with_features(frames)) as measured:
            for frame, features in measured:
                given = None if frame.labels is None else self._encode(frame.labels)
                soft = propagator.step(features, given)
                yield frame, self._ids_of(frame, soft, first)
                first = False

    def _with_features(self, frames: Iterable[AnyFrame]) -> Generator[tuple[AnyFrame, Tensor]]:
        """Every frame with its patch features [D, h, w]."""
        on_cpu = self.backbone.on_cpu
        with (
            closing(self._resized_ahead(frames, on_cpu)) as drawn,
            closing(computed_ahead(self._measured, self._batches(drawn), on_cpu=on_cpu)) as measured,
        ):
            for batch in measured:
                yield from batch

    def _batches(self, resized: Iterator[Resized]) -> Iterator[list[Resized]]:
        return iter(lambda: list(islice(resized, self.batch_size)), [])

    def _resized_ahead(self, frames: Iterable[AnyFrame], on_cpu: bool) -> Generator[tuple[AnyFrame, Pixels]]:
        """Frames with their resized pixels: drawn by one thread, resized by it too or, for a GPU, by several."""

        def resized(frame: AnyFrame) -> tuple[AnyFrame, Pixels]:
            return frame, self._resize(frame)

        ahead = 2 * self.batch_size
        if on_cpu:
            with closing(drawn_ahead(map(resized, frames), ahead=ahead)) as drawn:
                yield from drawn
            return
        with (
            closing(drawn_ahead(frames, ahead=ahead)) as read,
            closing(read_ahead(resized, read, ahead=ahead, workers=GPU_RESIZERS)) as drawn,
        ):
            yield from drawn

    def _measured(self, batch: Sequence[tuple[AnyFrame, Pixels]]) -> list[tuple[AnyFrame, Tensor]]:
        """Frames of one batch with their patch features [D, h, w]."""
        pixels = torch.from_numpy(np.stack([small for _, small in batch]))
        patches = self.backbone.extract(pixels.movedim(-1, -3)).patches  # [B, D, h, w]
        return list(zip((frame for frame, _ in batch), patches, strict=True))

    def _resize(self, frame: Frame) -> Pixels:
        for pixels in (frame.rgb, frame.labels):
            if pixels is not None and pixels.shape[:2] != self.size:
                raise ValueError(f"a frame or its labels are {pixels.shape[:2]} (height, width): expected {self.size}")
        return resize_frame(frame.rgb, self.working_size, self.protocol.interpolation)

    def _encode(self, labels: Pixels) -> Tensor:
        """Ids [H, W] -> soft labels [C, h, w], with a channel for each id."""
        unknown = np.setdiff1d(labels, self._ids)
        if len(unknown):
            raise ValueError(f"labels have the ids {unknown.tolist()}: expected some of {self._ids.tolist()}")
        channels: Pixels = np.asarray(np.searchsorted(self._ids, labels), np.uint8)
        encoded = encode_labels(channels, self.grid, len(self._ids) - 1, self.protocol.label_encoding)
        return encoded.to(self.backbone.device)

    def _ids_of(self, frame: Frame, soft: Tensor, first: bool) -> Pixels:
        """Soft labels [C, h, w] -> ids [H, W], overlaid by the frame's own labels."""
        if first and frame.labels is not None:
            return frame.labels
        protocol = self.protocol
        channels = decode_labels(
            soft, self.backbone.patch_size, self.size, protocol.upsample, protocol.normalize, protocol.upsample_to
        )
        ids: Pixels = self._ids[channels]
        return ids if frame.labels is None else np.where(frame.labels > 0, frame.labels, ids)


def pixel_statistics(backbone: Backbone, protocol: PropagationProtocol) -> Backbone:
    """The backbone with the protocol's pixel mean and standard deviation, if it was trained with ImageNet's.

    The protocols assume this; a backbone trained with other statistics keeps its own.
    """
    if (backbone.mean, backbone.std) != (IMAGENET_MEAN, IMAGENET_STD):
        return backbone
    return backbone.with_normalization(protocol.mean, protocol.std)


def pixel_note(backbone: Backbone) -> str:
    """A sentence for a backbone that keeps its own pixel statistics; "" otherwise."""
    if (backbone.mean, backbone.std) == (IMAGENET_MEAN, IMAGENET_STD):
        return ""
    return f" Pixels were normalized as {backbone.name} was trained, mean {backbone.mean}, std {backbone.std}."
