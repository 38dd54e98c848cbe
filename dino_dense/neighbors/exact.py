"""Exact search for the most similar rows of a large matrix, in blocks of bounded memory, on any device."""

from typing import NamedTuple

import torch
from torch import Tensor

SEARCH_BYTES = 128 * 2**20  # memory for similarities and candidates; does not change the result
BYTES_PER_PAIR = 8  # a similarity (4), and its share of group maxima, candidates and their indices
BLOCK_ROWS = 2**14  # database rows in a block: few enough that a thousand queries share it, as fast products want
GROUP = 8  # similarities represented by their maximum


class Nearest(NamedTuple):
    """The most similar rows for each query, by falling similarity."""

    values: Tensor
    """[Q, k], similarities."""
    indices: Tensor
    """[Q, k], rows of the database."""


@torch.no_grad()
def nearest(queries: Tensor, database: Tensor, k: int, *, max_bytes: int = SEARCH_BYTES) -> Nearest:
    """The k database rows with the largest product with each query. Ties are sorted by row.

    In a tie for the last rank, any of the tied rows may be returned.

    Args:
        queries: [Q, C]; the search runs on their device.
        database: [N, C], on any device (queries on a GPU may search a database in main memory). Each block is copied
            once.
        k: 1 to N.
        max_bytes: memory of the largest block of similarities with its candidates.

    Raises:
        ValueError: k is out of range.
    """
    if not 1 <= k <= len(database):
        raise ValueError(f"k is {k}: expected 1 to {len(database)}, the rows of the database")
    rows = min(BLOCK_ROWS, len(database), max(1, max_bytes // BYTES_PER_PAIR))
    at_once = max(1, max_bytes // (BYTES_PER_PAIR * rows))
    # One buffer for all products: new memory of this size comes from the system each time, a third slower.
    buffer = queries.new_empty(min(at_once, len(queries)) * rows)
    values = queries.new_full((len(queries), k), -torch.inf)
    indices = torch.zeros(len(queries), k, dtype=torch.long, device=queries.device)
    for first in range(0, len(database), rows):
        block = database[first : first + rows].to(queries.device).T
        for part in torch.arange(len(queries)).split(at_once):
            rows_here = slice(int(part[0]), int(part[-1]) + 1)
            similarity = buffer[: len(part) * block.shape[1]].view(len(part), -1)
            torch.mm(queries[rows_here], block, out=similarity)
            block_values, block_columns = grouped_topk(similarity, min(k, block.shape[1]))
            both = (
                torch.cat([values[rows_here], block_values], dim=1),
                torch.cat([indices[rows_here], block_columns + first], dim=1),
            )
            values[rows_here], order = both[0].topk(k, dim=1)
            indices[rows_here] = both[1].gather(1, order)
    return _ties_by_index(values, indices)


def grouped_topk(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row of [Q, N], and their columns, [Q, k], as `topk`.

    Each of them is in one of the k groups with the largest maxima: otherwise each of these k groups would have a larger
    value. So only members of these groups are compared. A maximum over GROUP values is much cheaper than sorting.
    """
    columns = similarity.shape[1]
    groups = columns // GROUP
    if groups < 2 * k:
        top = similarity.topk(k, dim=1)
        return top.values, top.indices
    # Members of a group are `groups` columns apart, so that maxima are taken over whole rows of memory.
    maxima = similarity[:, : groups * GROUP].unflatten(1, (GROUP, groups)).amax(1)
    best = maxima.topk(k, dim=1, sorted=False).indices
    steps = torch.arange(0, groups * GROUP, groups, device=best.device)
    left_over = torch.arange(groups * GROUP, columns, device=best.device).expand(len(best), -1)
    candidates = torch.cat([(best[:, None] + steps[:, None]).flatten(1), left_over], dim=1)
    values, chosen = similarity.gather(1, candidates).topk(k, dim=1)
    return values, candidates.gather(1, chosen)


def _ties_by_index(values: Tensor, indices: Tensor) -> Nearest:
    """Sort equal values by index, which `topk` does not guarantee."""
    indices, order = indices.sort(dim=1)
    values, by_value = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return Nearest(values, indices.gather(1, by_value))
