"""Normalized cuts of the patch graph: TokenCut and MaskCut.

Shapes: an image has h x w patches, N = h*w, in rows; features are [C, h, w], masks bool [h, w].
"""

from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_dense.arrays import Floats, Mask
from dino_dense.objects.lanczos import leading_pairs
from dino_dense.objects.segment import Segment, check_finite, component

SMALLEST_GRAPH = 3  # patches; fewer have no third eigenvalue


LANCZOS_FROM = 512  # patches; below, the reference's own dense call is fast, and breaks ties as the reference does


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
    unit = F.normalize(features.flatten(1).T.float(), dim=1)
    products = unit @ unit.T
    return Graph(torch.gt(products, tau, out=products), eps)


def second_eigenvector(graph: Graph, start: Floats | None = None) -> SecondEigenpair:
    """The relaxed normalized cut of a graph with N >= 3 patches (Shi and Malik 2000).

    Large graphs: with z = D^1/2 y, (D - A) y = v D y becomes M z = (1 - v) z for the symmetric M = D^-1/2 A D^-1/2,
    with the largest eigenvalue 1 at z0 = D^1/2 1. The next largest are computed without a factorization.

    Args:
        start: [N], an approximate solution, such as the previous frame's; it only saves time.
    """
    eigenpairs = by_lanczos(graph, start) if len(graph.adjacency) >= LANCZOS_FROM else None
    if eigenpairs is None:
        weights = graph.weights()
        degree = np.diag(weights.sum(axis=1))
        eigenpairs = scipy.linalg.eigh(degree - weights, degree, subset_by_index=[1, 2])
    values, vectors = eigenpairs
    return SecondEigenpair(vectors[:, 0], float(values[0]), float(values[1] - values[0]))


def by_lanczos(graph: Graph, start: Floats | None = None) -> tuple[Floats, Floats] | None:
    """The second and third eigenvalue [2] and their vectors [N, 2]; None if Lanczos does not converge."""
    degree = graph.links(torch.ones(len(graph.adjacency), device=graph.adjacency.device, dtype=torch.bool))
    root = degree.sqrt()
    first = None if start is None else torch.from_numpy(start).to(root) * root
    pairs = leading_pairs(
        graph.adjacency[None],
        degree[None],
        graph.eps,
        tolerance=LARGEST_RESIDUAL,
        start=None if first is None else first[None],
    )
    if pairs is None:
        return None
    return (1 - pairs.values[0]).cpu().numpy(), (pairs.vectors[0] / root).T.cpu().numpy()


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
    return _cut(features, tau, eps, corners=False)


def maskcut(features: Tensor, tau: float = 0.2, eps: float = 1e-5, masks: int = 3) -> list[Segment]:
    """Up to `masks` objects: cut, remove the object's patches from the features, cut again (CutLER's maskcut.py).

    The sides are swapped if the foreground has three or more image corners. A later mask is dropped if it is at most
    1 % of the image, or has an IoU above 0.5 with the previous mask. Nothing is then taken out, so that the next cut is
    the same, and its overlap is with nothing: a mask that was dropped for its overlap alone comes back one round later,
    as in the reference. Patches of earlier masks are excluded from later masks. The differences to the reference are
    listed in configs/protocols/discovery_maskcut.yaml.
    """
    segments = [_cut(features, tau, eps, corners=True)]
    taken, before, left, new = segments[0].mask, segments[0].mask, features, segments[0]
    for _ in range(masks - 1):
        if before.any():
            left = left * torch.from_numpy(~taken).to(left)
            new = _cut(left, tau, eps, corners=True, start=new.eigenvector)
        if new.mask.mean() <= MASKCUT_AREA or _overlap(new.mask, before) > MASKCUT_OVERLAP:
            before = np.zeros_like(new.mask)
            continue
        before, own = new.mask, new.mask & ~taken
        taken = taken | new.mask
        if own.any():
            segments.append(new._replace(mask=own))
    return segments


def _cut(features: Tensor, tau: float, eps: float, *, corners: bool, start: Floats | None = None) -> Segment:
    """One normalized cut of features [C, h, w]; see `tokencut`, `maskcut` (`corners`) and `second_eigenvector`."""
    check_finite(features)
    height, width = features.shape[-2:]
    graph = patch_graph(features, tau, eps)
    if len(graph.adjacency) < SMALLEST_GRAPH or graph.adjacency.min() == graph.adjacency.max():
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
    return Segment(mask, min(1.0, pair.gap), seed, _normalized_cut(graph, foreground), vector)


def _normalized_cut(graph: Graph, side: Mask) -> float:
    """The normalized cut of a partition [N]: the sum over both sides of cut / volume (Shi and Malik 2000)."""
    inside = torch.from_numpy(side).to(graph.adjacency.device)
    volume = graph.links(torch.ones_like(inside))
    cut = graph.links(inside)[~inside].sum()
    return float(cut / volume[inside].sum() + cut / volume[~inside].sum())


def _overlap(one: Mask, other: Mask) -> float:
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 0.0
