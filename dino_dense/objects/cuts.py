"""Normalized cuts of the patch graph: TokenCut and MaskCut.

Shapes: an image has h x w patches, N = h*w, in rows; features are [C, h, w], masks bool [h, w].
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_dense.arrays import Floats, Mask
from dino_dense.objects.lanczos import leading_pairs
from dino_dense.objects.segment import UNCUT, Segment, check_finite, component

SMALLEST_GRAPH = 3  # patches; fewer have no third eigenvalue


LANCZOS_FROM = 512  # patches; below, the reference's own dense call is fast, and breaks ties as the reference does


COSINE_BLOCKS = 8  # rows of blocks of the cosines on a CPU; more save little, and their products are less efficient


LARGEST_RESIDUAL = 1e-9  # of an eigenvector of length 1


TIE = 1e-9  # share of the eigenvector's largest value; smaller differences from its mean are rounding


MASKCUT_CORNERS = 3  # maskcut.py: this many image corners in the foreground, and it is the background


MASKCUT_OVERLAP = 0.5  # maskcut.py: IoU with the mask before, above which a mask is dropped


MASKCUT_AREA = 0.01  # maskcut.py: share of the image up to which a mask is dropped


class Graph(NamedTuple):
    """A graph of patches with edge weights 1 (adjacent) and eps (all others)."""

    adjacency: Tensor
    """[N, N], float32 zeros and ones, symmetric."""
    eps: float

    def weights(self) -> Floats:
        """[N, N]."""
        return np.where(self.adjacency.cpu().numpy() > 0, 1.0, self.eps)

    def links(self, side: Tensor) -> Tensor:
        """The sum of weights from each patch to the patches of `side` (bool [N]), float64 [N]."""
        counts = self.adjacency @ side.to(self.adjacency)  # whole numbers, exact
        return (1 - self.eps) * counts.double() + self.eps * side.sum()


class SecondEigenpair(NamedTuple):
    """The eigenpair of (D - A) y = value D y with the second smallest value."""

    vector: Floats
    """[N]."""
    value: float
    gap: float
    """The third smallest eigenvalue minus the second."""


# --- Normalized cut: TokenCut, MaskCut ---------------------------------------------------------------------


def patch_graph(features: Tensor, tau: float, eps: float) -> Graph:
    """The graph with edges between patches whose features [C, h, w] have a cosine above tau."""
    products = _cosines(F.normalize(features.flatten(1).T.float(), dim=1))
    return Graph(torch.gt(products, tau, out=products), eps)


def _cosines(unit: Tensor) -> Tensor:
    """unit @ unit.T of [N, C]. On a CPU, blocks below the diagonal are copied from above it: half the work."""
    if unit.device.type != "cpu" or len(unit) < LANCZOS_FROM:
        return unit @ unit.T
    products = unit.new_empty(len(unit), len(unit))
    side = math.ceil(len(unit) / COSINE_BLOCKS)
    for first in range(0, len(unit), side):
        rows = slice(first, first + side)
        torch.mm(unit[rows], unit[first:].T, out=products[rows, first:])
        products[first + side :, rows] = products[rows, first + side :].T
    return products


def second_eigenvector(graph: Graph, start: Floats | None = None) -> SecondEigenpair:
    """The relaxed normalized cut of a graph with N >= 3 patches (Shi and Malik 2000).

    Large graphs: with z = D^1/2 y, (D - A) y = v D y becomes M z = (1 - v) z for the symmetric M = D^-1/2 A D^-1/2,
    with the largest eigenvalue 1 at z0 = D^1/2 1. The next largest are computed without a factorization.

    Args:
        start: [N], an approximate solution, such as the previous frame's; it only saves time.
    """
    eigenpairs = by_lanczos([graph], start) if len(graph.adjacency) >= LANCZOS_FROM else None
    if eigenpairs is not None:
        return eigenpairs[0]
    return _densely(graph)


def second_eigenvectors(graphs: Sequence[Graph], starts: Sequence[Floats] | None = None) -> list[SecondEigenpair]:
    """`second_eigenvector` of each graph, all of one size N >= 3. Large graphs are solved at once.

    A device computes a step of all in nearly the time of a single graph, and waits for the host once. The steps go on
    until all have converged, so a vector may be more exact than alone.

    Args:
        starts: for each graph, [N] approximate solutions.
    """
    if len(graphs) > 1 and len(graphs[0].adjacency) >= LANCZOS_FROM:
        pairs = by_lanczos(graphs, None if starts is None else np.stack(starts))
        if pairs is not None:
            return pairs
    if starts is None:
        return [second_eigenvector(graph) for graph in graphs]
    return [second_eigenvector(graph, start) for graph, start in zip(graphs, starts, strict=True)]


def _densely(graph: Graph) -> SecondEigenpair:
    weights = graph.weights()
    degree = np.diag(weights.sum(axis=1))
    values, vectors = scipy.linalg.eigh(degree - weights, degree, subset_by_index=[1, 2])
    return SecondEigenpair(vectors[:, 0], float(values[0]), float(values[1] - values[0]))


def by_lanczos(graphs: Sequence[Graph], start: Floats | None = None) -> list[SecondEigenpair] | None:
    """The second eigenpair of each graph of one size; None if Lanczos does not converge for all.

    Args:
        start: [N] or [n, N], an approximate solution for all or for each.
    """
    alone = len(graphs) == 1  # a large graph takes most of the memory: it is not copied
    adjacency = graphs[0].adjacency[None] if alone else torch.stack([graph.adjacency for graph in graphs])
    everywhere = torch.ones(adjacency.shape[1], device=adjacency.device, dtype=torch.bool)
    degree = torch.stack([graph.links(everywhere) for graph in graphs])  # [n, N]
    root = degree.sqrt()
    first = None if start is None else torch.from_numpy(start).to(root) * root
    pairs = leading_pairs(adjacency, degree, graphs[0].eps, tolerance=LARGEST_RESIDUAL, start=first)
    if pairs is None:
        return None
    values = (1 - pairs.values).cpu().numpy()
    vectors = (pairs.vectors[:, 0] / root).cpu().numpy()
    return [
        SecondEigenpair(vector, float(second), float(third - second))
        for vector, (second, third) in zip(vectors, values, strict=True)
    ]


def tokencut(features: Tensor, tau: float = 0.2, eps: float = 1e-5) -> Segment:
    """The object is the side of the normalized cut with the extreme patch (Wang et al. 2022, object_discovery.py).

    The eigenvector is thresholded at its mean. The seed is the patch of largest absolute value, the foreground is its
    side, and the mask is the 4-connected component of the seed. The mask is empty for fewer than three patches, and if
    all edges have the same weight (such a graph has no unique second eigenvector).

    Args:
        features: [C, h, w].

    Returns:
        A segment with the eigengap as confidence, third minus second eigenvalue: near 0 if several cuts are equally
        good.
    """
    return tokencuts(features[None], tau, eps)[0]


def tokencuts(features: Tensor, tau: float = 0.2, eps: float = 1e-5) -> list[Segment]:
    """`tokencut` of each image of one size, features [B, C, h, w]; the eigenvectors are computed at once."""
    return _cuts(features, tau, eps, corners=False)


def maskcut(features: Tensor, tau: float = 0.2, eps: float = 1e-5, masks: int = 3) -> list[Segment]:
    """Up to `masks` objects: cut, remove the object's patches from the features, cut again (CutLER's maskcut.py).

    The sides are swapped if the foreground has three or more image corners. A later mask is dropped if it is at most
    1 % of the image, or has an IoU above 0.5 with the previous mask. Nothing is then taken out, so that the next cut is
    the same, and its overlap is with nothing: a mask that was dropped for its overlap alone comes back one round later,
    as in the reference. Patches of earlier masks are excluded from later masks. The differences to the reference are
    listed in configs/protocols/discovery_maskcut.yaml.

    Args:
        features: [C, h, w].
    """
    return maskcuts(features[None], tau, eps, masks)[0]


def maskcuts(features: Tensor, tau: float = 0.2, eps: float = 1e-5, masks: int = 3) -> list[list[Segment]]:
    """`maskcut` of each image of one size, features [B, C, h, w]; the eigenvectors of a round are computed at once."""
    images = [
        _Rounds(image, segment)
        for image, segment in zip(features, _cuts(features, tau, eps, corners=True), strict=True)
    ]
    for _ in range(masks - 1):
        changed = [image for image in images if image.before.any()]  # the others would be cut as before
        if changed:
            left = torch.stack([image.without_objects() for image in changed])
            starts = [image.new.eigenvector for image in changed]
            for image, new in zip(changed, _cuts(left, tau, eps, corners=True, starts=starts), strict=True):
                image.new = new
        for image in images:
            image.judge()
    return [image.segments for image in images]


class _Rounds:
    """The objects of an image, round by round."""

    def __init__(self, features: Tensor, first: Segment) -> None:
        self.left, self.new = features, first
        self.segments = [first]
        self.taken = self.before = first.mask
        """[h, w]: patches of all masks, and of the mask of the round before."""

    def without_objects(self) -> Tensor:
        """The features [C, h, w] from now on, 0 at the patches of all masks."""
        self.left = self.left * torch.from_numpy(~self.taken).to(self.left)
        return self.left

    def judge(self) -> None:
        """Keep the new mask, or drop it."""
        mask = self.new.mask
        if mask.mean() <= MASKCUT_AREA or _overlap(mask, self.before) > MASKCUT_OVERLAP:
            self.before = np.zeros_like(mask)
            return
        self.before, own = mask, mask & ~self.taken
        self.taken = self.taken | mask
        if own.any():
            self.segments.append(self.new._replace(mask=own))


def _cuts(
    features: Tensor,
    tau: float,
    eps: float,
    *,
    corners: bool,
    starts: Sequence[Floats | None] | None = None,
) -> list[Segment]:
    """A normalized cut of each image of one size, features [B, C, h, w]; see `tokencut` and `maskcut` (`corners`).

    Args:
        starts: for each image, [h, w] approximate eigenvectors; None for an image without a cut.
    """
    check_finite(features)
    graphs = [patch_graph(image, tau, eps) for image in features]
    sides = [index for index, graph in enumerate(graphs) if _has_sides(graph)]
    known = [start.ravel() for index in sides if starts is not None and (start := starts[index]) is not None]
    solved = second_eigenvectors([graphs[index] for index in sides], known or None) if sides else []
    pairs = dict(zip(sides, solved, strict=True))
    size = (features.shape[-2], features.shape[-1])
    return [_segment(graph, pairs.get(index), size, corners=corners) for index, graph in enumerate(graphs)]


def _has_sides(graph: Graph) -> bool:
    """Whether there is a unique second eigenvector to cut by."""
    if len(graph.adjacency) < SMALLEST_GRAPH:
        return False
    lowest, highest = graph.adjacency.aminmax()
    return bool(lowest != highest)


def _segment(graph: Graph, pair: SecondEigenpair | None, size: tuple[int, int], *, corners: bool) -> Segment:
    """The object side of the cut of a graph of size (h, w) patches; empty without an eigenpair."""
    if pair is None:
        return Segment(np.zeros(size, bool), 0.0, ncut=UNCUT)
    values = pair.vector
    extreme = values[np.abs(values).argmax()]
    values = values * np.sign(extreme)
    foreground = values - values.mean() > TIE * abs(extreme)
    if corners and foreground.reshape(size)[[0, 0, -1, -1], [0, -1, 0, -1]].sum() >= MASKCUT_CORNERS:
        values, foreground = -values, ~foreground
    seed = int(values.argmax())
    mask = component(foreground.reshape(size), seed)
    return Segment(mask, min(1.0, pair.gap), seed, _normalized_cut(graph, foreground), values.reshape(size))


def _normalized_cut(graph: Graph, side: Mask) -> float:
    """The normalized cut of a partition [N]: the sum over both sides of cut / volume (Shi and Malik 2000)."""
    inside = torch.from_numpy(side).to(graph.adjacency.device)
    volume = graph.links(torch.ones_like(inside))
    cut = graph.links(inside)[~inside].sum()
    return float(cut / volume[inside].sum() + cut / volume[~inside].sum())


def _overlap(one: Mask, other: Mask) -> float:
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 0.0
