"""Label propagation: transfer the labels of a video's first frame to later frames by feature similarity.

Each patch of a frame is compared with patches of earlier frames in a window around its own position. Its label is the
mean of the `top_k` most similar patches' labels, weighted by exp(cosine / temperature).

Shapes: D features, C label channels (0 is background), h x w patch grid.

Sources, by file: DINO `dino/eval_video_segmentation.py`, CRW `videowalk/code/test.py` and
`utils/test_utils.py`, DINOv3 `dinov3/notebooks/segmentation_tracking.ipynb`.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dino_dense.propagation.protocol import PropagationProtocol
from dino_dense.propagation.search import (
    ContextFrames,
    context_bytes,
    neighborhood_of,
    tile_bytes,
    tile_sides,
    unit_features,
)

DEFAULT_MAX_BYTES = 256 * 2**20  # memory for one tile of the affinity; the results do not depend on it

CPU_LIMIT = 512 * 2**20  # bytes of propagation on a CPU, and at least on a GPU
FREE_SHARE = 8  # propagation takes at most 1 / FREE_SHARE of the free memory of a GPU


def memory_limit(mib: int | None, device: torch.device) -> int:
    """Bytes that propagation may take: `mib`; by default 512 MiB, and on CUDA an eighth of the free memory if larger.

    Memory that PyTorch keeps for its next tensors counts as free. With too little, a frame is searched in many small
    tiles, and a GPU waits for the host after each.
    """
    if mib is not None:
        return mib * 2**20
    if device.type != "cuda":
        return CPU_LIMIT
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(CPU_LIMIT, (free + unused) // FREE_SHARE)


class LabelPropagator:
    """Propagates labels through a stream of frames in order, one frame at a time. Stores only the context.

    The context of a frame is frame 0 and the last `context_frames` frames before it, with their soft labels.

    Args:
        protocol: the constants.
        max_bytes: memory for one tile of queries (the full affinity is never built); a tile has at least one query.
            Changes the result by rounding only.
    """

    def __init__(self, protocol: PropagationProtocol, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        self.protocol, self.max_bytes = protocol, max_bytes
        self._context: ContextFrames | None = None

    @torch.no_grad()
    def step(self, features: Tensor, given: Tensor | None = None) -> Tensor:
        """Soft labels [C, h, w] of the next frame.

        Given labels of a later frame replace the propagated labels where they have an object (a channel other than the
        first above 0). Propagation then restarts with this frame as frame 0: in earlier frames a new object is
        background, so they are dropped.

        Args:
            features: [D, h, w] of the frame.
            given: labels [C, h, w] of the frame (`encode_labels`), or None; the first frame needs labels. C is
                constant: an object that has not appeared yet has a channel of zeros.

        Raises:
            ValueError: the first frame has no labels, or features and labels have different grids.
        """
        if self._context is None:
            if given is None:
                raise ValueError("the first frame has no labels: nothing to propagate")
            labels = given.to(features.device, torch.float32)
            target = unit_features(features, labels.shape[1:])
        else:
            target = unit_features(features, (self._context.height, self._context.width))
            labels = self._context.propagate(target)
            if given is not None:
                given = given.to(labels)
                labels = torch.where((given[1:] > 0).any(dim=0), given, labels)
        if self._context is None or given is not None:
            self._context = self._begin(target, labels)
        else:
            self._context.add(target, labels)
        return labels

    def _begin(self, anchor: Tensor, labels: Tensor) -> ContextFrames:
        """A context that begins with this frame: unit features [h, w, D] and labels [C, h, w]."""
        slots = 1 + self.protocol.context_frames
        shape = anchor.shape[-1], anchor.shape[0], anchor.shape[1]
        neighborhood = neighborhood_of(self.protocol)
        context = ContextFrames(shape, len(labels), slots, neighborhood, self.max_bytes, anchor.device)
        for _ in range(slots if self.protocol.pad_context else 1):
            context.add(anchor, labels)
        return context


@dataclass(frozen=True)
class PropagationMemory:
    """Predicted peak memory of propagation, without the network and the frame's features, bytes."""

    context: int
    """Features and labels of the context and of the target frame."""
    tile: int
    """One tile of queries."""

    @property
    def total(self) -> int:
        return self.context + self.tile


def plan_memory(
    shape: tuple[int, int, int], channels: int, protocol: PropagationProtocol, max_bytes: int, *, on_cpu: bool = True
) -> PropagationMemory:
    """Divide `max_bytes` for a video with features [D, h, w] and `channels` label channels.

    Raises:
        ValueError: too little for the context and a tile of one query.
    """
    slots, neighborhood = 1 + protocol.context_frames, neighborhood_of(protocol)
    context = context_bytes(shape, channels, slots)
    least = context + tile_bytes((1, 1), shape, slots, neighborhood)
    if max_bytes < least:
        raise ValueError(
            f"propagation may take {max_bytes / 2**20:.0f} MiB, but {slots} context frames of {shape[1]}x{shape[2]} "
            f"patches need {math.ceil(least / 2**20)} MiB: raise max_memory, or lower context_frames or short_side"
        )
    sides = tile_sides(shape, slots, neighborhood, max_bytes - context, on_cpu=on_cpu)
    return PropagationMemory(context, tile_bytes(sides, shape, slots, neighborhood))
