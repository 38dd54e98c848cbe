"""Label propagation: carry the labels of a video's first frame to the others by feature similarity.

Every patch of a frame looks at the patches of some earlier frames, keeps the ``top_k`` most similar inside a
window around its own place, and takes the mean of their labels, weighted by exp(cosine / temperature).

Shapes: D features, C label channels (0 is background), h x w patch grid, n context frames, H x W pixels.

Sources, by file: DINO ``dino/eval_video_segmentation.py``, CRW ``videowalk/code/test.py`` and
``utils/test_utils.py``, DINOv3 ``dinov3/notebooks/segmentation_tracking.ipynb``.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from dino_dense.propagation.protocol import PropagationProtocol
from dino_dense.propagation.search import (
    Context,
    Neighbourhood,
    Window,
    context_bytes,
    tile_bytes,
    tile_sides,
    unit_features,
)

DEFAULT_MAX_BYTES = 256 * 2**20  # memory for one tile of the affinity; the results do not depend on it


# ---- propagation


def propagate_video(
    features_of: Callable[[int], Tensor],
    first_labels: Tensor,
    n_frames: int,
    protocol: PropagationProtocol,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Iterator[Tensor]:
    """Labels of the frames 1 .. n_frames - 1 in order, each [C, h, w]: soft, as the propagation gives them.

    The context of a frame is frame 0 and the last ``context_frames`` frames before it, with their soft
    labels. Only the features in the context are held.

    Args:
        features_of: gives the features [D, h, w] of a frame; called once a frame, in order, frame 0 first.
        first_labels: labels [C, h, w] of frame 0 (``encode_labels``).
        n_frames: number of frames of the video.
        protocol: the constants.
        max_bytes: see ``propagate_labels``.

    Raises:
        ValueError: features and labels have different grids.
    """
    frames = ((features_of(index), None if index else first_labels) for index in range(n_frames))
    yield from islice(propagate_stream(frames, protocol, max_bytes=max_bytes), 1, None)


@torch.no_grad()
def propagate_labels(
    target: Tensor,
    sources: Tensor,
    labels: Tensor,
    *,
    hw: tuple[int, int],
    radius: int,
    top_k: int,
    temperature: float,
    window: Window = "square",
    unrestricted: int = 0,
    keep_ties: bool = True,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Tensor:
    """Labels [C, h, w] of one frame from the labels of its context.

    Features are L2-normalised first. Of all source patches inside the window the ``top_k`` of highest cosine
    are kept, ties at the last place included; their weights exp(cosine / temperature) are divided by the sum.
    Source: ``label_propagation`` of dino/eval_video_segmentation.py.

    Args:
        target: features [h*w, D] of the frame.
        sources: features [n, D, h*w] of the context frames.
        labels: soft labels [n, C, h, w] of the context frames.
        hw: the patch grid (h, w).
        radius: half-width of the window in patches; 0 looks everywhere.
        top_k: patches kept over all context frames together (all, where the window has fewer).
        temperature: of the weights.
        window: shape of the window, see ``PropagationProtocol``.
        unrestricted: number of leading sources to which the window does not apply.
        keep_ties: False keeps exactly ``top_k``.
        max_bytes: memory for one tile of queries: the affinity of all patches is never held at once. One
            query at a time is the least. The result does not depend on it but for rounding.

    Raises:
        ValueError: shapes do not fit together.
    """
    h, w = hw
    n, channels = labels.shape[:2]
    expected = {"target": (h * w, target.shape[-1]), "sources": (n, target.shape[-1], h * w)}
    expected["labels"] = (n, channels, h, w)
    for name, tensor in (("target", target), ("sources", sources), ("labels", labels)):
        if tuple(tensor.shape) != expected[name]:
            raise ValueError(f"{name} is {tuple(tensor.shape)}: expected {expected[name]} for a grid of {h}x{w}")
    neighbourhood = Neighbourhood(radius, window, top_k, keep_ties, temperature, unrestricted)
    context = Context((target.shape[-1], h, w), channels, n, neighbourhood, max_bytes, target.device)
    for features, label in zip(sources, labels, strict=True):
        context.add(unit_features(features.unflatten(1, hw), hw), label.float())
    return context.propagate(unit_features(target.T.unflatten(1, hw), hw))


@dataclass(frozen=True)
class PropagationMemory:
    """What propagation is predicted to take at most, beside the network and the features of the frame, bytes."""

    context: int
    """Features and labels of the context, and the frame compared with it."""
    tile: int
    """One tile of queries."""

    @property
    def total(self) -> int:
        return self.context + self.tile


def plan_memory(
    shape: tuple[int, int, int], channels: int, protocol: PropagationProtocol, max_bytes: int, *, on_cpu: bool = True
) -> PropagationMemory:
    """Divide ``max_bytes`` for a video with features [D, h, w] and ``channels`` label channels.

    Raises:
        ValueError: it does not suffice for the context and one query at a time.
    """
    slots, neighbourhood = 1 + protocol.context_frames, protocol.neighbourhood()
    context = context_bytes(shape, channels, slots)
    least = context + tile_bytes((1, 1), shape, slots, neighbourhood)
    if max_bytes < least:
        raise ValueError(
            f"propagation may take {max_bytes / 2**20:.0f} MiB, but {slots} context frames of {shape[1]}x{shape[2]} "
            f"patches need {math.ceil(least / 2**20)} MiB: raise max_memory, or lower context_frames or short_side"
        )
    sides = tile_sides(shape, slots, neighbourhood, max_bytes - context, on_cpu=on_cpu)
    return PropagationMemory(context, tile_bytes(sides, shape, slots, neighbourhood))


# ---- streams of unknown length


@torch.no_grad()
def propagate_stream(
    frames: Iterable[tuple[Tensor, Tensor | None]],
    protocol: PropagationProtocol,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Iterator[Tensor]:
    """``propagate_video`` for a stream of unknown length, in which labels may be given for later frames too.

    Labels of a later frame take the place of what was propagated wherever they hold an object (a channel but the
    first above 0); elsewhere the propagated ones stand. Propagation then begins anew from that frame, as if it were
    frame 0: the frames before it, in which the new object is background, have no say any more. Nothing but the
    context is held.

    Args:
        frames: features [D, h, w] of each frame in order, with labels [C, h, w] (``encode_labels``) or None; the
            first has labels. Labels always have the same C: a channel of zeros is an object not seen yet.
        protocol: the constants.
        max_bytes: see ``propagate_labels``.

    Yields:
        Soft labels [C, h, w] of every frame, the first among them.

    Raises:
        ValueError: the first frame has no labels, or features and labels have different grids.
    """
    context: Context | None = None
    for features, given in frames:
        if context is None:
            if given is None:
                raise ValueError("the first frame has no labels: nothing to propagate")
            labels = given.to(features.device, torch.float32)
            target = unit_features(features, labels.shape[1:])
        else:
            target = unit_features(features, (context.height, context.width))
            labels = context.propagate(target)
            if given is not None:
                given = given.to(labels)
                labels = torch.where((given[1:] > 0).any(dim=0), given, labels)
        if context is None or given is not None:
            context = _context_from(target, labels, protocol, max_bytes)
        else:
            context.add(target, labels)
        yield labels


def _context_from(anchor: Tensor, labels: Tensor, protocol: PropagationProtocol, max_bytes: int) -> Context:
    """A context that begins with this frame: unit features [h, w, D] and labels [C, h, w]."""
    slots = 1 + protocol.context_frames
    shape = anchor.shape[-1], anchor.shape[0], anchor.shape[1]
    context = Context(shape, len(labels), slots, protocol.neighbourhood(), max_bytes, anchor.device)
    for _ in range(slots if protocol.pad_context else 1):
        context.add(anchor, labels)
    return context
