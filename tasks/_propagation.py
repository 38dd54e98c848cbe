"""Label propagation: carry the labels of a video's first frame to the others by feature similarity.

Every patch of a frame looks at the patches of some earlier frames, keeps the ``top_k`` most similar inside a
window around its own place, and takes the mean of their labels, weighted by exp(cosine / temperature).

Shapes: D features, C label channels (0 is background), h x w patch grid, n context frames, H x W pixels.

Sources, by file: DINO ``dino/eval_video_segmentation.py``, CRW ``videowalk/code/test.py`` and
``utils/test_utils.py``, DINOv3 ``dinov3/notebooks/segmentation_tracking.ipynb``.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tasks._context import Context, Neighbourhood, Window, context_bytes, tile_bytes, tile_sides, unit_features

Rounding = Literal["floor64", "ceil", "nearest"]
Interpolation = Literal["bilinear", "bicubic"]
LabelEncoding = Literal["nearest", "bilinear", "nearest-exact"]
Upsample = Literal["bilinear", "nearest"]
UpsampleTo = Literal["frame", "original"]
Normalise = Literal["minmax", "none"]

DEFAULT_MAX_BYTES = 256 * 2**20  # memory for one tile of the affinity; the results do not depend on it
_DINO_MULTIPLE = 64  # dino/eval_video_segmentation.py, read_frame: the long side becomes a multiple of 64


@dataclass(frozen=True)
class PropagationProtocol:
    """Every constant of one published way to propagate labels; the defaults are DINO's (preset ``dino``)."""

    context_frames: int = 7
    """Most recent frames used as context besides frame 0 (DINO and DINOv3 7, CRW 20)."""
    pad_context: bool = False
    """Repeat frame 0 until the recent context is full (CRW)."""
    radius: int = 12
    """Half-width of the window in patches; 0 looks everywhere (all three 12)."""
    window: Window = "square"
    """square: |dy|, |dx| <= radius (DINO); circle: distance <= radius (DINOv3); open_circle: < (CRW)."""
    window_on: Literal["all", "recent"] = "all"
    """Context the window applies to: all (DINO, DINOv3), or recent: frame 0 is seen everywhere (CRW)."""
    top_k: int = 5
    """Most similar patches kept over the whole context (DINO and DINOv3 5, CRW 10)."""
    keep_ties: bool = True
    """Keep all patches as similar as the last one kept (DINO, DINOv3), or exactly top_k (CRW)."""
    temperature: float = 0.1
    """Weights are exp(cosine / temperature) (DINO 0.1, CRW's README 0.05, DINOv3 0.2)."""
    short_side: int | None = 480
    """Pixels of the frame's shorter side; null keeps the native size (DINO 480, DINOv3 960, CRW native)."""
    rounding: Rounding = "floor64"
    """Fit to the patch size: floor64: long side down to 64 (DINO); ceil: up (DINOv3, CRW's grid); nearest."""
    interpolation: Interpolation = "bilinear"
    """Frame resizing: bilinear of OpenCV (DINO) or bicubic of PIL (DINOv3)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """RGB mean subtracted from frames in [0, 1] (ImageNet, all three)."""
    std: tuple[float, float, float] = (0.228, 0.224, 0.225)
    """RGB std frames are divided by; DINO's script has 0.228 where ImageNet has 0.229."""
    label_encoding: LabelEncoding = "nearest"
    """First mask to patch grid: nearest of PIL (DINO), nearest-exact (DINOv3), or bilinear one-hot (CRW)."""
    upsample: Upsample = "bilinear"
    """Scores from patch grid to pixels: bilinear (DINO, CRW) or nearest (DINOv3)."""
    upsample_to: UpsampleTo = "frame"
    """Where the argmax is taken: at the resized frame (DINO) or at the original size (CRW, DINOv3)."""
    normalise: Normalise = "minmax"
    """Scale each channel to [0, 1] over the frame before the argmax: minmax (DINO, DINOv3) or none (CRW)."""

    def __post_init__(self) -> None:
        for name, smallest in (("context_frames", 0), ("radius", 0), ("top_k", 1), ("short_side", 1)):
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"{name} is {value}: expected {smallest} or more")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}: expected a number above 0")
        for name, allowed in _CHOICES.items():
            _check_choice(name, getattr(self, name), allowed)
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name} is {getattr(self, name)}: expected three numbers, R, G and B")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}: expected numbers above 0")

    def neighbourhood(self) -> Neighbourhood:
        """The constants of the search itself."""
        unrestricted = 1 if self.window_on == "recent" else 0
        return Neighbourhood(self.radius, self.window, self.top_k, self.keep_ties, self.temperature, unrestricted)


_CHOICES: dict[str, tuple[str, ...]] = {
    "window": get_args(Window),
    "window_on": ("all", "recent"),
    "rounding": get_args(Rounding),
    "interpolation": get_args(Interpolation),
    "label_encoding": get_args(LabelEncoding),
    "upsample": get_args(Upsample),
    "upsample_to": get_args(UpsampleTo),
    "normalise": get_args(Normalise),
}


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}: expected one of {', '.join(allowed)}")


# ---- frames and labels in, masks out


def frame_size(
    height: int, width: int, *, short_side: int | None, rounding: Rounding, patch_size: int
) -> tuple[int, int]:
    """Size (h, w) in pixels, multiples of ``patch_size``, to which a frame and its labels are resized.

    ``floor64`` is DINO's rule: the short side is ``short_side``, the long side is floored to a multiple of
    64. Where 64 or ``short_side`` is no multiple of the patch size (patch 14), each side then goes down to
    the next that is. (DINO's script swaps the sides of a square frame for its labels only; here frame and
    labels have one size.) ``ceil`` rounds the short side up to a multiple of the patch size, scales the other
    with it and rounds that up (DINOv3's notebook); ``nearest`` rounds both to the nearest multiple (DINOv3's
    paper, App. D.5).

    Raises:
        ValueError: a side becomes 0.
    """
    _check_choice("rounding", rounding, get_args(Rounding))
    native_short, native_long = sorted((height, width))
    short = short_side or native_short
    if rounding == "floor64":
        long = short * native_long // native_short // _DINO_MULTIPLE * _DINO_MULTIPLE
        short, long = (side // patch_size * patch_size for side in (short, long))
    else:
        round_up = math.ceil if rounding == "ceil" else _round_half_up
        short = round_up(short / patch_size) * patch_size
        long = round_up(short * native_long / native_short / patch_size) * patch_size
    if not short or not long:
        raise ValueError(
            f"a frame {height} high and {width} wide, by short_side {short_side} and rounding {rounding!r}, "
            f"becomes {short}x{long}: raise short_side (patch size {patch_size}) or choose rounding 'ceil'"
        )
    # In a square frame DINO's script shortens the width.
    return (short, long) if height <= width else (long, short)


def _round_half_up(value: float) -> int:
    return math.floor(value + 0.5)


def resize_frame(
    frame: npt.NDArray[np.uint8], size: tuple[int, int], interpolation: Interpolation = "bilinear"
) -> npt.NDArray[np.uint8]:
    """Frame uint8 RGB [H, W, 3] at ``size`` (h, w).

    The 8-bit picture is resized, as the references do: by OpenCV for bilinear, by PIL (antialiased) for
    bicubic.
    """
    _check_choice("interpolation", interpolation, get_args(Interpolation))
    width_height = size[1], size[0]
    if interpolation == "bilinear":
        return np.asarray(cv2.resize(frame, width_height, interpolation=cv2.INTER_LINEAR), np.uint8)
    return np.array(Image.fromarray(frame).resize(width_height, Image.Resampling.BICUBIC))


def to_float(frames: Tensor) -> Tensor:
    """Frames uint8 [..., H, W, 3] as float32 [..., 3, H, W] in [0, 1]."""
    return frames.movedim(-1, -3).float() / 255


def encode_labels(
    ids: npt.NDArray[np.uint8], grid: tuple[int, int], num_objects: int, method: LabelEncoding = "nearest"
) -> Tensor:
    """Ids uint8 [H, W] as soft labels float32 [C, h, w] on the patch grid, C = num_objects + 1.

    There are always C channels: an object that vanishes on the patch grid keeps a channel of zeros, so that
    ids stay what they are (DINO's script drops the channel if the object has the highest id).
    """
    _check_choice("label_encoding", method, get_args(LabelEncoding))
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
    normalise: Normalise = "minmax",
    upsample_to: UpsampleTo = "frame",
) -> npt.NDArray[np.uint8]:
    """Soft labels [C, h, w] as ids uint8 [H, W] at ``size`` (H, W).

    Scores are upsampled to the resized frame (h, w times ``patch_size``) or at once to ``size``, normalised,
    and the channel of the highest score is the id; from the resized frame the ids go to ``size`` by nearest
    neighbour (PIL).
    """
    _check_choice("upsample", upsample, get_args(Upsample))
    _check_choice("normalise", normalise, get_args(Normalise))
    _check_choice("upsample_to", upsample_to, get_args(UpsampleTo))
    _, h, w = scores.shape
    pixels = (h * patch_size, w * patch_size) if upsample_to == "frame" else size
    align = {"align_corners": False} if upsample == "bilinear" else {}
    dense = F.interpolate(scores[None].float(), pixels, mode=upsample, **align)[0]
    if normalise == "minmax":
        dense = _scale_channels(dense)
    ids = dense.max(dim=0).indices.to(torch.uint8).cpu().numpy()  # argmax over so few channels is 30 times slower
    return np.array(Image.fromarray(ids).resize((size[1], size[0]), Image.Resampling.NEAREST))


def _scale_channels(scores: Tensor) -> Tensor:
    """Each channel of [C, H, W] scaled to [0, 1]; a constant one stays as it is (0 / 0 in the references)."""
    lowest, highest = scores.amin((1, 2), keepdim=True), scores.amax((1, 2), keepdim=True)
    span = highest - lowest
    return (scores - torch.where(span > 0, lowest, 0)) / torch.where(span > 0, span, 1)


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
