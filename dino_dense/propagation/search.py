"""The search of label propagation: the most similar patches in a window of the context, for each patch.

Shapes: D features, C label channels, h x w patch grid, n context frames. A tile is Q queries; their windows together
cover K positions of the grid in each context frame. The n*h*w x h*w affinity of the published scripts is never built:
only the Q x n*K block of a tile.

Top-k search of a tile. All windowed frames share the window, so the similarities [Q, n, K] are first reduced to the
best frame at each position, [Q, K]; then positions outside the window are masked, and the best positions are chosen.
The `top_k` best patches lie at the `top_k` best positions: if a position's best patch is not among the top k, none
of its patches is. So only the patches at these positions are compared. One more position is examined to detect a tie
for the last rank. A query with such a tie keeps every tied patch, by a comparison of all its similarities.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_dense.propagation.protocol import PropagationProtocol, Window

_SMALLEST_TILE = 8  # patches; below this the matrix products are too small to be fast
_BYTES_PER_PAIR = 13  # float32 similarity; for ties a masked copy and weights; the mask


@dataclass(frozen=True)
class Neighborhood:
    """The context patches that a query is compared with, and their weights."""

    radius: int
    """Half-width of the window in patches; 0 for no window."""
    window: Window
    """square: |dy|, |dx| <= radius; circle: distance <= radius; open_circle: distance < radius."""
    top_k: int
    """Number of patches kept, over all context frames together."""
    keep_ties: bool
    """Keep also all patches tied with the last kept, or exactly `top_k`."""
    temperature: float
    """Weights are exp(cosine / temperature), divided by their sum."""
    unrestricted: int = 0
    """Number of leading context frames without a window."""

    def reach(self, queries: slice, length: int) -> slice:
        """The rows (or columns) of a grid of `length` that the windows around `queries` cover."""
        if not self.radius:
            return slice(0, length)
        return slice(max(queries.start - self.radius, 0), min(queries.stop + self.radius, length))

    def outside(self, queries: "Area", near: "Area", device: torch.device) -> Tensor | None:
        """Bool [Q, K]: whether a position of `near` is outside a query's window; None if none can be."""
        if not self.radius:
            return None
        dy, dx = (
            (torch.arange(a.start, a.stop, device=device)[:, None] - torch.arange(b.start, b.stop, device=device)).abs()
            for a, b in zip(queries, near, strict=True)
        )  # [query rows, near rows], [query columns, near columns]
        dy, dx = dy[:, None, :, None], dx[None, :, None, :]
        if self.window == "square":
            inside = torch.maximum(dy, dx) <= self.radius
        elif self.window == "circle":
            inside = dy**2 + dx**2 <= self.radius**2
        else:
            inside = dy**2 + dx**2 < self.radius**2
        return ~inside.flatten(2).flatten(0, 1)


def neighborhood_of(protocol: PropagationProtocol) -> Neighborhood:
    """The protocol's constants of the search."""
    unrestricted = 1 if protocol.window_on == "recent" else 0
    return Neighborhood(
        protocol.radius, protocol.window, protocol.top_k, protocol.keep_ties, protocol.temperature, unrestricted
    )


Area = tuple[slice, slice]  # rows and columns of the patch grid


class Tile(NamedTuple):
    """A rectangle of queries, and the part of the grid that their windows cover."""

    queries: Area
    near: Area
    outside: Tensor | None
    """[Q, K], see `Neighborhood.outside`."""


class _Part(NamedTuple):
    """The similarities of one tile to frames that all have the window, or all lack it."""

    similarity: Tensor
    """[Q, n, K]."""
    outside: Tensor | None
    """[Q, K]."""
    first_frame: int
    area: Area


class ContextFrames:
    """The context frames with their labels. Frame 0 stays; a new frame replaces the oldest other frame.

    Args:
        shape: D, h, w.
        channels: C.
        slots: largest number of frames, with frame 0.
        neighborhood: the constants of the search.
        max_bytes: memory for one tile; changes the result by rounding only. A tile has at least one query.
        device: device of features and labels.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        channels: int,
        slots: int,
        neighborhood: Neighborhood,
        max_bytes: int,
        device: torch.device,
    ) -> None:
        dim, self.height, self.width = shape
        self.neighborhood = neighborhood
        self.features = torch.empty(slots, self.height, self.width, dim, device=device)
        self.labels = torch.empty(slots, self.height * self.width, channels, device=device)
        self.used, self.oldest = 0, 1
        sides = tile_sides(shape, slots, neighborhood, max_bytes, on_cpu=device.type == "cpu")
        self.tiles = list(self._cut(sides, device))

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Store a frame: unit features [h, w, D] and soft labels [C, h, w]. The first frame is never replaced."""
        slot = self.used
        if slot == len(self.features):
            if slot == 1:
                return  # no context but frame 0
            slot = self.oldest
            self.oldest = slot % (len(self.features) - 1) + 1
        else:
            self.used += 1
        self.features[slot] = features
        self.labels[slot] = labels.flatten(1).T

    def propagate(self, target: Tensor) -> Tensor:
        """Soft labels [C, h, w] of a frame with unit features [h, w, D]."""
        out = self.labels.new_empty(self.height, self.width, self.labels.shape[-1])
        for tile in self.tiles:
            queries = target[tile.queries]
            out[tile.queries] = self._propagate_tile(queries.flatten(0, 1), tile).unflatten(0, queries.shape[:2])
        return out.permute(2, 0, 1).contiguous()

    def _cut(self, sides: tuple[int, int], device: torch.device) -> Iterator[Tile]:
        for rows in _pieces(self.height, sides[0]):
            for columns in _pieces(self.width, sides[1]):
                near = self.neighborhood.reach(rows, self.height), self.neighborhood.reach(columns, self.width)
                yield Tile((rows, columns), near, self.neighborhood.outside((rows, columns), near, device))

    def _propagate_tile(self, queries: Tensor, tile: Tile) -> Tensor:
        """[Q, D] -> [Q, C]"""
        top_k, parts = self.neighborhood.top_k, list(self._compare(queries, tile))
        candidates = [self._candidates(part, top_k + 1) for part in parts]
        values, patches = (torch.cat(pieces, dim=1) for pieces in zip(*candidates, strict=True))
        values, order = values.topk(min(top_k + 1, values.shape[1]), dim=1)
        patches = patches.gather(1, order)
        weights = (values[:, :top_k] / self.neighborhood.temperature).softmax(dim=1)  # [Q, top_k]
        labels = self.labels.flatten(0, 1)[patches[:, :top_k]]  # [Q, top_k, C]
        out = (weights[:, None] @ labels)[:, 0]
        if self.neighborhood.keep_ties and values.shape[1] > top_k:
            tied = ((values[:, top_k - 1] == values[:, top_k]) & values[:, top_k].isfinite()).nonzero()[:, 0]
            if len(tied):
                out[tied] = self._with_ties(parts, tied, values[tied, top_k - 1])
        return out

    def _compare(self, queries: Tensor, tile: Tile) -> Iterator[_Part]:
        """Cosines of a tile's queries to the frames without a window, and to the frames with a window."""
        everywhere = slice(0, self.height), slice(0, self.width)
        split = min(self.neighborhood.unrestricted, self.used)
        for first, last, area, outside in (
            (0, split, everywhere, None),
            (split, self.used, tile.near, tile.outside),
        ):
            if first == last:
                continue
            keys = self.features[first:last, *area].flatten(0, 2)  # [n*K, D]
            similarity = (queries @ keys.T).unflatten(1, (last - first, -1))  # [Q, n, K]
            yield _Part(similarity, outside, first, area)

    def _candidates(self, part: _Part, count: int) -> tuple[Tensor, Tensor]:
        """Similarities and patches (indices into slots*h*w) at the `count` best positions: [Q, count*n] each.

        If the window has too few positions, positions outside it fill up with similarity -inf.
        """
        best = part.similarity.amax(dim=1)  # [Q, K]
        if part.outside is not None:
            best.masked_fill_(part.outside, -math.inf)
        best, places = best.topk(min(count, best.shape[1]), dim=1)  # [Q, count]
        n = part.similarity.shape[1]
        values = part.similarity.gather(2, places[:, None].expand(-1, n, -1))  # [Q, n, count]
        values = values.masked_fill(best[:, None] == -math.inf, -math.inf)
        patches = self._frames(part)[:, None] * (self.height * self.width) + self._on_grid(places, part.area)[:, None]
        return values.flatten(1), patches.flatten(1)

    def _frames(self, part: _Part) -> Tensor:
        return torch.arange(part.similarity.shape[1], device=part.similarity.device) + part.first_frame

    def _on_grid(self, places: Tensor, area: Area) -> Tensor:
        """Index into an area -> index into the h*w grid."""
        rows, columns = area
        wide = columns.stop - columns.start
        return (rows.start + places // wide) * self.width + columns.start + places % wide

    def _with_ties(self, parts: Sequence[_Part], tied: Tensor, last_kept: Tensor) -> Tensor:
        """Labels [R, C] of the queries `tied` [R], from all patches at least as similar as `last_kept` [R]."""
        seen, labels = [], []
        for part in parts:
            similarity = part.similarity[tied]  # a copy, [R, n, K]
            if part.outside is not None:
                similarity.masked_fill_(part.outside[tied, None], -math.inf)
            seen.append(similarity.flatten(1))
            grid = self.labels.unflatten(1, (self.height, self.width))
            frames = slice(part.first_frame, part.first_frame + part.similarity.shape[1])
            labels.append(grid[frames, *part.area].flatten(0, 2))
        similarity = torch.cat(seen, dim=1) if len(seen) > 1 else seen[0]
        similarity.masked_fill_(similarity < last_kept[:, None], -math.inf)
        return similarity.div_(self.neighborhood.temperature).softmax(dim=1) @ torch.cat(labels)


def unit_features(features: Tensor, hw: Sequence[int]) -> Tensor:
    """Features [D, h, w] as float32 [h, w, D] of unit length along D.

    Raises:
        ValueError: their grid is not `hw`.
    """
    if features.ndim != 3 or tuple(features.shape[1:]) != tuple(hw):
        raise ValueError(f"features are {tuple(features.shape)}: expected [D, {hw[0]}, {hw[1]}], the labels' grid")
    return F.normalize(features.permute(1, 2, 0).float(), dim=-1)


def context_bytes(shape: tuple[int, int, int], channels: int, slots: int) -> int:
    """Memory of a context and a target frame: float32 features [D, h, w] and labels."""
    dim, h, w = shape
    return 4 * (slots + 1) * h * w * (dim + channels)


def tile_bytes(sides: tuple[int, int], shape: tuple[int, int, int], slots: int, neighborhood: Neighborhood) -> int:
    """Memory of one tile of queries: keys, similarities, and the copies that ties need."""
    dim, *hw = shape
    queries = math.prod(min(side, length) for side, length in zip(sides, hw, strict=True))
    radius = neighborhood.radius
    near = math.prod(
        min(side + 2 * radius, length) if radius else length for side, length in zip(sides, hw, strict=True)
    )
    seen = max(slots - neighborhood.unrestricted, 0) * near
    seen += min(slots, neighborhood.unrestricted) * math.prod(hw)
    return 4 * seen * dim + _BYTES_PER_PAIR * queries * seen


def tile_sides(
    shape: tuple[int, int, int], slots: int, neighborhood: Neighborhood, max_bytes: int, *, on_cpu: bool
) -> tuple[int, int]:
    """Rows and columns of a tile: even shares of the grid, halved until a tile fits into `max_bytes`.

    On a CPU, sides of about the radius are fastest: larger tiles compare more patches outside the windows, smaller
    tiles copy more keys for each query. A GPU prefers few large products.
    """
    _, h, w = shape
    largest = max(neighborhood.radius, _SMALLEST_TILE) if neighborhood.radius and on_cpu else max(h, w)
    sides = tuple(math.ceil(length / max(1, round(length / largest))) for length in (h, w))
    while max(sides) > 1 and tile_bytes((sides[0], sides[1]), shape, slots, neighborhood) > max_bytes:
        longest = sides.index(max(sides))
        sides = tuple(math.ceil(side / 2) if axis == longest else side for axis, side in enumerate(sides))
    return sides[0], sides[1]


def _pieces(length: int, side: int) -> Iterator[slice]:
    for start in range(0, length, side):
        yield slice(start, min(start + side, length))
