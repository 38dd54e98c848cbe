"""The search in blocks against the whole product, sorted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dino_dense.neighbors import exact
from dino_dense.neighbors.exact import grouped_topk, nearest


def naive(queries: torch.Tensor, database: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """All products, sorted; the first of equals leads."""
    found = (queries @ database.T).sort(dim=1, descending=True, stable=True)
    return found.values[:, :k], found.indices[:, :k]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(1, 400), st.integers(1, 40), st.integers(1, 40_000), st.integers(0, 1000))
def test_blocks_of_any_size_find_what_the_whole_product_has(q: int, n: int, k: int, max_bytes: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    k = min(k, n)
    # Whole numbers, so that products are exact and many are equal.
    queries, database = (torch.randint(-3, 4, (count, 6), generator=generator).float() for count in (q, n))
    found, (values, _) = nearest(queries, database, k, max_bytes=max_bytes), naive(queries, database, k)
    assert torch.equal(found.values, values)
    assert torch.equal((queries @ database.T).gather(1, found.indices), values)
    assert all(len(set(row)) == k for row in found.indices.tolist()), "a row is found once"
    falls = values[:, 1:] < values[:, :-1]
    assert bool((falls | (found.indices[:, 1:] > found.indices[:, :-1])).all()), "of equals the first leads"


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 700), st.integers(1, 30), st.integers(0, 1000))
def test_the_largest_by_groups_are_those_of_topk(q: int, n: int, k: int, seed: int):
    similarity = torch.randn(q, n, generator=torch.Generator().manual_seed(seed))
    values, columns = grouped_topk(similarity, min(k, n))
    expected = similarity.topk(min(k, n), dim=1)
    assert torch.equal(values, expected.values)
    assert torch.equal(columns, expected.indices)


def test_groups_are_used_where_there_are_many_columns(monkeypatch: pytest.MonkeyPatch):
    similarity = torch.randn(2, 64 * exact.GROUP + 3, generator=torch.Generator().manual_seed(0))
    similarity[0, -1] = 9  # among the columns that no group holds
    sizes = []
    original = torch.Tensor.topk
    monkeypatch.setattr(
        torch.Tensor, "topk", lambda self, *a, **b: sizes.append(self.shape[1]) or original(self, *a, **b)
    )
    assert int(grouped_topk(similarity, 5)[1][0, 0]) == 64 * exact.GROUP + 2
    assert max(sizes) < similarity.shape[1] / 8


@pytest.mark.parametrize("k", [0, 4])
def test_impossible_numbers_of_neighbors_are_refused(k: int):
    with pytest.raises(ValueError, match=f"k is {k}: expected 1 to 3"):
        nearest(torch.eye(3), torch.eye(3), k)
