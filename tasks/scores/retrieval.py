"""Average precision and related scores of ranked lists, as in the revisited Oxford and Paris protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dino_dense import Metric

if TYPE_CHECKING:
    from torch import Tensor

Indices = npt.NDArray[np.int64]

PLACES = (1, 5, 10)  # k of mP@k (eval_image_retrieval.py) and of recall@k
METRICS = tuple(Metric(name) for name in ("mAP", *(f"{name}@{k}" for name in ("mP", "recall") for k in PLACES)))
RANKING_BYTES = 256 * 2**20  # memory for similarities and their order; does not change the result
BYTES_PER_PAIR = 16  # a similarity, its sorted copy (4 each) and its index (8)


def rankings(queries: Tensor, database: Tensor, *, top: int | None = None) -> Iterator[Indices]:
    """Rank the database for each query by falling cosine similarity; ties in the order of the database.

    Args:
        queries: [Q, C].
        database: [N, C], on the same device; both not necessarily normalized.
        top: number of first results.

    Yields:
        Indices into the database: [N], or [min(top, N)].

    Raises:
        ValueError: a feature is not finite.
    """
    import torch
    import torch.nn.functional as F

    from dino_dense.neighbors.exact import nearest

    for what, features in (("queries", queries), ("database", database)):
        if not torch.isfinite(features).all():
            raise ValueError(f"features of the {what} are not finite: expected numbers. Check the checkpoint.")
    queries, database = F.normalize(queries, dim=1), F.normalize(database, dim=1)
    places = min(top or len(database), len(database))
    if places < len(database):
        yield from nearest(queries, database, places, max_bytes=RANKING_BYTES).indices.cpu().numpy()
        return
    for part in queries.split(max(1, RANKING_BYTES // (BYTES_PER_PAIR * len(database)))):
        yield from (part @ database.T).argsort(dim=1, descending=True, stable=True).cpu().numpy()


def positive_ranks(order: Indices, positive: Indices, junk: Indices, count: int) -> Indices:
    """Ascending 0-based ranks of the positives in `order` without junk.

    Args:
        order: indices into a database of `count` images, most similar first.
        positive, junk: indices into the database; an index in both is a positive.
    """
    is_junk, is_positive = np.zeros(count, bool), np.zeros(count, bool)
    is_junk[junk], is_positive[positive] = True, True
    kept = order[~is_junk[order] | is_positive[order]]
    return np.flatnonzero(is_positive[kept])


def average_precision(ranks: Indices, total: int) -> float:
    """Area under the precision-recall curve by trapezoids, 0 to 1 (Philbin et al. 2007; eval_copy_detection.py).

    With n positives before rank r (0-based), precision goes from n / r to (n + 1) / (r + 1) over a step of
    1 / total in recall; an empty list has precision 1.

    Args:
        ranks: ascending ranks of the retrieved positives.
        total: number of positives in the database, at least 1.

    Raises:
        ValueError: more ranks than positives, or no positive.
    """
    if total < 1 or len(ranks) > total:
        raise ValueError(f"{len(ranks)} ranks of {total} positives: expected 1 positive or more, and no more ranks.")
    earlier = np.arange(len(ranks))  # positives before each rank
    before = np.where(ranks == 0, 1.0, earlier / np.maximum(ranks, 1))
    after = (earlier + 1) / (ranks + 1)
    return float((before + after).sum() / (2 * total))


def precision_at(ranks: Indices, k: int) -> float:
    """Share of positives among the first k, 0 to 1; up to the last positive if it comes earlier."""
    places = min(int(ranks[-1]) + 1, k) if len(ranks) else k
    return float((ranks < places).sum() / places)


def query_scores(ranks: Indices, total: int) -> dict[str, float]:
    """`METRICS` of one query, percent; NaN for a query without positives, which means ignore.

    recall@k is 100 if a positive is among the first k, else 0.
    """
    if total == 0:
        return {metric.name: float("nan") for metric in METRICS}
    precision = {f"mP@{k}": 100 * precision_at(ranks, k) for k in PLACES}
    recall = {f"recall@{k}": 100.0 * bool((ranks < k).any()) for k in PLACES}
    return {"mAP": 100 * average_precision(ranks, total), **precision, **recall}


def first_relatives(positives: Sequence[Indices], count: int) -> list[int]:
    """The first query of each query's group. Queries that share a positive are in a group, also through other queries.

    Args:
        positives: for each query, indices into a database of `count` images.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    queries = len(positives)
    rows = np.repeat(np.arange(queries), [len(own_positives) for own_positives in positives])
    columns = queries + np.concatenate([np.zeros(0, np.int64), *positives]).astype(np.int64)
    size = queries + count
    graph = coo_matrix((np.ones(len(rows), bool), (rows, columns)), shape=(size, size))
    groups = connected_components(graph, directed=False)[1][:queries]
    _, firsts, group_of = np.unique(groups, return_index=True, return_inverse=True)
    return [int(first) for first in firsts[group_of]]
