"""Objects in one image from its frozen patch features, without training: DINO's attention, LOST, TokenCut, MaskCut.

Shapes: an image has h x w patches, N = h*w, in rows; features are [C, h, w], masks bool [h, w].
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import scipy.linalg
import scipy.ndimage
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from dino_dense import Backbone, distributed
from tasks._lanczos import leading_pairs
from tasks._pipeline import in_batches, read_ahead

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Box = tuple[float, float, float, float]
Item = TypeVar("Item")
Given = TypeVar("Given")

SMALLEST_GRAPH = 3  # patches; fewer have no third eigenvalue
LANCZOS_FROM = 512  # patches; below, the reference's own dense call is fast, and breaks ties as the reference does
LARGEST_RESIDUAL = 1e-9  # of an eigenvector of length 1
TIE = 1e-9  # of the eigenvector's largest value: not above its mean but for rounding
GPU_BATCH = 8  # images of one size extracted at once
READERS = 2  # threads that read images
MASKCUT_CORNERS = 3  # maskcut.py: this many image corners in the foreground, and it is the background
MASKCUT_OVERLAP = 0.5  # maskcut.py: IoU with the mask before, above which a mask is dropped
MASKCUT_AREA = 0.01  # maskcut.py: share of the image up to which a mask is dropped

CONFIDENCE = {
    "tokencut": "eigen-gap of the cut",
    "maskcut": "eigen-gap of the first cut",
    "lost": "share of patches unlike the seed",
    "attention": "concentration of the attention",
}
"""What a segment's confidence is under each method, in a few words."""


@dataclass(frozen=True)
class SegmentProtocol:
    """The constants of the methods"""

    features: Literal["keys", "patches"] = "keys"
    """What TokenCut, LOST and MaskCut compare: attention keys of the last block (their papers), or the patch tokens
    (DINOv3, App. D.4). Networks without keys are compared by their last map, as in LOST."""
    tau: float = 0.2
    """Cosine above which two patches are joined (TokenCut, MaskCut)."""
    eps: float = 1e-5
    """Weight between patches that are not joined (TokenCut, MaskCut)."""
    lost_k: int = 100
    """Patches of lowest degree among which LOST's seed expands (main_lost.py --k_patches)."""
    mass: float = 0.6
    """Share of the attention that its mask keeps (DINO: 0.6 in Fig. 4 and the text, 0.8 in App. D, both
    with the same numbers)."""
    short_side: int | None = None
    """Short side the image is resized to first, pixels; without it, the native size (the papers)."""
    squash: int | None = None
    """Resize both sides to this instead, pixels, whatever the shape (visualize_attention.py, maskcut.py: 480)."""

    def __post_init__(self) -> None:
        if self.short_side is not None and self.squash is not None:
            raise ValueError(f"short_side is {self.short_side} and squash {self.squash}: expected one of them at most")
        for name in ("short_side", "squash"):
            if (pixels := getattr(self, name)) is not None and pixels < 1:
                raise ValueError(f"{name} is {pixels}: expected 1 pixel or more, or none for the native size")
        limits = {"tau": (-1, 1), "eps": (0, 1), "mass": (0, 1)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            inside = low < value < high or (name == "mass" and value == high)
            if not inside:
                raise ValueError(f"{name} is {value}: expected a number between {low} and {high}")
        if self.lost_k < 1:
            raise ValueError(f"lost_k is {self.lost_k}: expected 1 patch or more")


class Segment(NamedTuple):
    """One object found in an image."""

    mask: Mask
    """[h, w]; all False where nothing was found."""
    confidence: float
    """0 to 1, comparable among images under one method (each says what it is)."""
    seed: int = -1
    """Patch the object grew from; -1 where there is none."""
    ncut: float = np.nan
    """Normalised cut of the partition, 0 (two separate pieces) to 1 (no structure) or more; NaN for other methods."""
    eigenvector: Floats | None = None
    """[h, w], the partition's relaxed solution, larger on the object; up to a factor."""


class Graph(NamedTuple):
    """Patches, and the weights between them: 1 where they are joined, else eps."""

    joined: Tensor
    """[N, N], float32 zeros and ones, symmetric."""
    eps: float

    def weights(self) -> Floats:
        """[N, N]."""
        return np.where(self.joined.cpu().numpy() > 0, 1.0, self.eps)

    def links(self, side: Tensor) -> Tensor:
        """Sums of each patch's weights to the patches [N] that are True, [N], float64."""
        counts = self.joined @ side.to(self.joined)  # whole numbers, exact
        return (1 - self.eps) * counts.double() + self.eps * side.sum()


class SecondEigenpair(NamedTuple):
    """Of (D - A) y = value D y, the second smallest."""

    vector: Floats
    """[N]."""
    value: float
    gap: float
    """How much larger the third smallest eigenvalue is."""


# --- Normalised cut: TokenCut, MaskCut ---------------------------------------------------------------------


def patch_graph(features: Tensor, tau: float, eps: float) -> Graph:
    """Patches are joined where the cosine of their features [C, h, w] is above tau."""
    unit = F.normalize(features.flatten(1).T.float(), dim=1)
    products = unit @ unit.T
    return Graph(torch.gt(products, tau, out=products), eps)


def second_eigenvector(graph: Graph, start: Floats | None = None) -> SecondEigenpair:
    """The relaxed normalised cut of a graph with N >= 3 patches (Shi and Malik 2000).

    Large graphs: with z = D^1/2 y, (D - A) y = v D y becomes M z = (1 - v) z for the symmetric M = D^-1/2 A D^-1/2,
    whose largest eigenvalue 1 belongs to z0 = D^1/2 1. What is largest beside it is found without a factorisation.

    Args:
        start: [N], a vector that is probably like this one, such as that of the frame before: it only saves time.
    """
    found = _by_lanczos(graph, start) if len(graph.joined) >= LANCZOS_FROM else None
    if found is None:
        weights = graph.weights()
        degree = np.diag(weights.sum(axis=1))
        found = scipy.linalg.eigh(degree - weights, degree, subset_by_index=[1, 2])
    values, vectors = found
    return SecondEigenpair(vectors[:, 0], float(values[0]), float(values[1] - values[0]))


def _by_lanczos(graph: Graph, start: Floats | None = None) -> tuple[Floats, Floats] | None:
    """The second and third eigenvalue [2] and their vectors [N, 2]; None where Lanczos does not get there."""
    degree = graph.links(torch.ones(len(graph.joined), device=graph.joined.device, dtype=torch.bool))
    root = degree.sqrt()
    first = None if start is None else torch.from_numpy(start).to(root) * root
    pairs = leading_pairs(
        graph.joined[None],
        degree[None],
        graph.eps,
        tolerance=LARGEST_RESIDUAL,
        start=None if first is None else first[None],
    )
    if pairs is None:
        return None
    return (1 - pairs.values[0]).cpu().numpy(), (pairs.vectors[0] / root).T.cpu().numpy()


def tokencut(features: Tensor, tau: float = 0.2, eps: float = 1e-5) -> Segment:
    """The object as the side of the normalised cut with the extreme patch (Wang et al. 2022, object_discovery.py).

    The eigenvector is cut at its mean; the seed is the patch of largest absolute value, its side the foreground, the
    mask the 4-connected component of the seed. Nothing is found where all patches are joined alike (such a graph
    has no second eigenvector of its own), or are fewer than three.

    Args:
        features: [C, h, w].

    Returns:
        Its confidence is the eigen-gap, third minus second eigenvalue: near 0 where no cut, or more than one, is
        as good as another.
    """
    return _cut(features, tau, eps, corners=False)


def maskcut(features: Tensor, tau: float = 0.2, eps: float = 1e-5, masks: int = 3) -> list[Segment]:
    """Up to `masks` objects: cut, take the object's patches out of the features, cut again (CutLER's maskcut.py).

    A foreground with three image corners or more is the background, and the sides change. A later mask that is at most
    1 % of the image, or overlaps the one before by more than half (IoU), is dropped and ends the search. What an
    earlier mask holds is not in a later one. The reference then refines each mask by a dense CRF; there is none here.
    """
    found = [_cut(features, tau, eps, corners=True)]
    taken, before, left, new = found[0].mask, found[0].mask, features, found[0]
    for _ in range(masks - 1):
        left = left * torch.from_numpy(~taken).to(left)
        new = _cut(left, tau, eps, corners=True, start=new.eigenvector)
        if new.mask.mean() <= MASKCUT_AREA or _overlap(new.mask, before) > MASKCUT_OVERLAP:
            break
        before, own = new.mask, new.mask & ~taken
        taken = taken | new.mask
        if own.any():
            found.append(new._replace(mask=own))
    return found


def _cut(features: Tensor, tau: float, eps: float, *, corners: bool, start: Floats | None = None) -> Segment:
    """One normalised cut of features [C, h, w]; see `tokencut`, `maskcut` (`corners`) and `second_eigenvector`."""
    _check_finite(features)
    height, width = features.shape[-2:]
    graph = patch_graph(features, tau, eps)
    if len(graph.joined) < SMALLEST_GRAPH or graph.joined.min() == graph.joined.max():
        return Segment(np.zeros((height, width), bool), 0.0, ncut=1.0)
    pair = second_eigenvector(graph, None if start is None else start.ravel())
    values = pair.vector
    extreme = values[np.abs(values).argmax()]
    values = values * np.sign(extreme)
    foreground = values - values.mean() > TIE * abs(extreme)
    if corners and foreground.reshape(height, width)[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= MASKCUT_CORNERS:
        values, foreground = -values, ~foreground
    seed = int(values.argmax())
    mask = component(foreground.reshape(height, width), seed)
    vector = values.reshape(height, width)
    return Segment(mask, min(1.0, pair.gap), seed, _normalised_cut(graph, foreground), vector)


def _normalised_cut(graph: Graph, side: Mask) -> float:
    """cut / volume of one side + cut / volume of the other, of a partition [N] (Shi and Malik 2000)."""
    inside = torch.from_numpy(side).to(graph.joined.device)
    volume = graph.links(torch.ones_like(inside))
    cut = graph.links(inside)[~inside].sum()
    return float(cut / volume[inside].sum() + cut / volume[~inside].sum())


# --- LOST --------------------------------------------------------------------------------------------------


def lost(features: Tensor, k: int = 100) -> Segment:
    """The object around the patch that few others resemble (Siméoni et al. 2021, object_discovery.py).

    Patches are joined where the product of their features is positive. The seed has the fewest joined; among the k
    patches with fewest, those joined to it vote; the mask is where the sum of their products is positive, in the
    seed's 4-connected component. Nothing is found where the seed's feature is zero.

    Args:
        features: [C, h, w], not normalised.

    Returns:
        Its confidence is the share of the other patches that are not joined to the seed.
    """
    _check_finite(features)
    height, width = features.shape[-2:]
    tokens = features.flatten(1).T.float()  # [N, C]
    products = tokens @ tokens.T
    joined = ((products > 0).sum(1) - (products.diagonal() > 0).long()).cpu()
    # Many degrees are equal, and which of those comes first decides: the reference's call, on what it calls it with.
    order = torch.argsort(-joined.float(), descending=True)
    seed = int(order[0])
    voters = order[:k][products[seed, order[:k]] > 0]
    foreground = (products[voters].sum(0) > 0).reshape(height, width).cpu().numpy()
    mask = component(foreground, seed)
    others = max(1, len(tokens) - 1)
    return Segment(mask, 1 - int(joined[seed]) / others, seed) if mask.any() else Segment(mask, 0.0)


# --- Attention ---------------------------------------------------------------------------------------------


def attention_masks(attention: Tensor, mass: float = 0.6) -> npt.NDArray[np.bool_]:
    """Patches with most of the class token's attention (visualize_attention.py).

    Args:
        attention: [heads, h, w], values of at least 0.
        mass: share of a head's attention to patches that its mask keeps.

    Returns:
        [heads, h, w]: the fewest patches that hold at least `mass`.
    """
    _check_finite(attention)
    values, order = attention.flatten(1).sort(dim=1)
    cumulated = (values / values.sum(1, keepdim=True)).cumsum(1)
    kept = torch.zeros_like(order, dtype=torch.bool).scatter_(1, order, cumulated > 1 - mass)
    return kept.view(attention.shape).cpu().numpy()


def attention_segments(
    attention: Tensor, mass: float = 0.6, heads: Literal["mean", "best"] | int = "mean"
) -> list[Segment]:
    """The mask of the heads' mean, of one head (counted from 0), or, for "best", of each head.

    Args:
        attention: [heads, h, w].

    Returns:
        Their confidence is 1 - kept / mass, where kept is the mask's share of the patches: 0 for attention that is
        the same everywhere, near 1 for all of it in few patches.

    Raises:
        ValueError: there is no such head.
    """
    if isinstance(heads, int) and not 0 <= heads < len(attention):
        raise ValueError(f"head {heads}: this backbone has {len(attention)} attention heads, counted from 0")
    chosen = attention.mean(0, keepdim=True) if heads == "mean" else attention
    chosen = chosen[heads : heads + 1] if isinstance(heads, int) else chosen
    masks = attention_masks(chosen, mass)
    return [Segment(mask, max(0.0, 1 - float(mask.mean()) / mass)) for mask in masks]


# --- All methods -------------------------------------------------------------------------------------------


def patch_features(backbone: Backbone, images: Tensor, protocol: SegmentProtocol) -> Tensor:
    """What the methods but attention compare, [B, C, h, w], of images [B, 3, H, W] in [0, 1].

    A network without attention heads gives its last map, with a layer norm over all its values, as LOST does for
    ResNets: it ends with a ReLU, so that every product would be positive.
    """
    kind = feature_kind(backbone, protocol)
    features: Tensor = getattr(backbone.extract(images, {kind}), kind)
    return features if backbone.num_heads else F.layer_norm(features, features.shape[1:])


def feature_kind(backbone: Backbone, protocol: SegmentProtocol) -> Literal["keys", "patches"]:
    """What of the backbone is compared: `protocol.features`, or the patches where it has no keys."""
    return protocol.features if protocol.features in backbone.provides else "patches"


def feature_note(backbone: Backbone, protocol: SegmentProtocol) -> str:
    """What a reader must know of the features; "" where they are those asked for."""
    if feature_kind(backbone, protocol) == protocol.features:
        return ""
    return f"{backbone.name} has no keys: its last map was compared instead."


def attention_of(backbone: Backbone, images: Tensor) -> Tensor:
    """The class token's attention [B, heads, h, w] to images [B, 3, H, W] in [0, 1]; ValueError if it has none."""
    attention = backbone.extract(images, {"attention"}).attention
    assert attention is not None
    return attention


def compared_maps(backbone: Backbone, images: Tensor, protocol: SegmentProtocol, method: str) -> Tensor:
    """What a method looks at, of images [B, 3, H, W]: attention [B, heads, h, w], or features [B, C, h, w]."""
    if method == "attention":
        return attention_of(backbone, images)
    return patch_features(backbone, images, protocol)


def maps_ahead(
    items: Iterable[Item],
    read: Callable[[Item], Given],
    prepare: Callable[[Given], Tensor],
    extract: Callable[[Tensor], Tensor],
    batch_size: int,
) -> Iterator[tuple[Item, Given, Tensor]]:
    """Items in order with what was read of each and its maps: read ahead in threads, extracted in batches of one size.

    Args:
        read: what an item's files hold; runs in threads, so that it keeps off torch.
        prepare: that as an image [3, H, W].
        extract: images [B, 3, H, W] -> maps [B, ...].
        batch_size: images extracted at once, of consecutive ones of equal size.
    """

    def read_one(item: Item) -> tuple[Item, Given]:
        return item, read(item)

    with closing(read_ahead(read_one, items, ahead=2 * batch_size, workers=READERS)) as given:
        prepared = ((item, found, prepare(found)) for item, found in given)
        for batch in in_batches(prepared, lambda one: one[2].shape, batch_size):
            maps = extract(torch.stack([image for _, _, image in batch]))
            yield from ((item, found, one) for (item, found, _), one in zip(batch, maps, strict=True))


def default_batch(backbone: Backbone) -> int:
    """Images extracted at once where nobody says: a CPU gains nothing from more than one."""
    return 1 if backbone.device.type == "cpu" else GPU_BATCH


def component(mask: Mask, seed: int) -> Mask:
    """The 4-connected piece of a mask [h, w] with the patch `seed` in it; empty where that is not in the mask."""
    pieces, _ = scipy.ndimage.label(mask)
    return mask & (pieces == pieces.flat[seed])


def largest_component(mask: Mask) -> Mask:
    """The largest 4-connected piece of a mask, the first of equal ones; empty for an empty mask."""
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
    x1, y1 = ((int(found[-1]) + 1) * patch_size for found in (columns, rows))
    return float(columns[0] * patch_size), float(rows[0] * patch_size), float(min(x1, size[1])), float(min(y1, size[0]))


def working_size(size: tuple[int, int], protocol: SegmentProtocol) -> tuple[int, int]:
    """(H, W) in pixels that an image of `size` (H, W) is resized to, before its sides are fitted to the patches."""
    if protocol.squash is not None:
        return protocol.squash, protocol.squash
    if protocol.short_side is None:
        return size
    scale = protocol.short_side / min(size)
    return round(size[0] * scale), round(size[1] * scale)


def to_tensor(rgb: npt.NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """RGB [H, W, 3] -> float [3, *size] in [0, 1], resized with Pillow's LANCZOS where it has another size (h, w)."""
    if rgb.shape[:2] != size:
        rgb = np.asarray(Image.fromarray(rgb).resize(size[::-1], Image.Resampling.LANCZOS))
    return torch.from_numpy(rgb.copy()).permute(2, 0, 1).float() / 255


def encode_mask(mask: Mask) -> dict[str, Any]:
    """A mask [H, W] as COCO's compressed run lengths, as JSON takes them."""
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def decode_mask(encoded: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """The inverse of `encode_mask`, 0 and 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0.11 under NumPy 2
        return coco_mask.decode(encoded)


def share_of(items: Sequence[Item], world: distributed.World) -> list[tuple[int, Item]]:
    """This process's items, every size-th one, with their places."""
    return list(enumerate(items))[world.rank :: world.size]


def in_order(measured: list[tuple[int, Item]]) -> list[Item]:
    """What all processes measured, in the order of the items; each gives (place, result)."""
    return [result for _, result in sorted(distributed.gather_objects(measured), key=lambda pair: pair[0])]


def _overlap(one: Mask, other: Mask) -> float:
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 0.0


def _check_finite(values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        raise ValueError("the backbone gave features that are not finite numbers: check its weights, or use fp32")
