"""Eigenvectors of two-valued graphs against the dense solver."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dino_dense.objects import lanczos
from dino_dense.objects.lanczos import exact_product, fast_integers, leading_pairs

EPS = 1e-5
TYPES = [torch.float32, *([torch.int8] if fast_integers() else [])]
"""Of the adjacency, that this CPU multiplies."""


def graph(nodes: int, seed: int, groups: int = 4, noise: float = 1.0) -> torch.Tensor:
    """[N, N] zeros and ones: groups of nodes that are mostly adjacent."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(groups, 16, generator=generator)[torch.arange(nodes) % groups]
    features = torch.nn.functional.normalize(features + noise * torch.randn(nodes, 16, generator=generator), dim=1)
    return (features @ features.T > 0.2).float()


def degrees(adjacency: torch.Tensor) -> torch.Tensor:
    return (1 - EPS) * adjacency.sum(-1).double() + EPS * adjacency.shape[-1]


def dense(adjacency: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """All eigenvalues and vectors of D^-1/2 A D^-1/2, from its definition, largest first."""
    weights = np.where(adjacency.numpy() > 0, 1.0, EPS)
    root = np.sqrt(weights.sum(1))
    values, vectors = np.linalg.eigh(weights / root[:, None] / root)
    return values[::-1], vectors[:, ::-1]


@settings(deadline=None, max_examples=20)
@given(st.integers(40, 120), st.integers(0, 1000), st.integers(2, 5))
def test_pairs_are_those_of_the_dense_solver(nodes: int, seed: int, groups: int):
    adjacency = graph(nodes, seed, groups)
    found = leading_pairs(adjacency[None], degrees(adjacency)[None], EPS, tolerance=1e-10)
    values, vectors = dense(adjacency)
    assert found is not None
    np.testing.assert_allclose(found.values[0], values[1:3], rtol=0, atol=1e-10)
    if values[1] - values[2] > 1e-3:
        assert abs(float(found.vectors[0, 0] @ torch.from_numpy(vectors[:, 1].copy()))) == pytest.approx(1, abs=1e-12)


def test_two_equal_eigenvalues_are_both_found():
    """Three groups of one size, without edges between them: the second eigenvalue is also the third."""
    adjacency = torch.block_diag(*[torch.ones(40, 40)] * 3)
    found = leading_pairs(adjacency[None], degrees(adjacency)[None], EPS, tolerance=1e-9)
    assert found is not None
    np.testing.assert_allclose(found.values[0], dense(adjacency)[0][1:3], rtol=0, atol=1e-10)
    assert float(found.values[0, 0] - found.values[0, 1]) == pytest.approx(0, abs=1e-10)


def test_many_graphs_at_once_are_each_alone_and_a_start_changes_only_the_time():
    adjacency = torch.stack([graph(90, seed) for seed in range(3)])
    together = leading_pairs(adjacency, degrees(adjacency), EPS, tolerance=1e-10)
    assert together is not None
    for index in range(3):
        one, start = adjacency[index : index + 1], together.vectors[index : index + 1, 0]
        for guess in (None, start, torch.zeros_like(start)):
            alone = leading_pairs(one, degrees(one), EPS, tolerance=1e-10, start=guess)
            assert alone is not None
            torch.testing.assert_close(alone.values[0], together.values[index], rtol=0, atol=1e-11)
            overlap = (alone.vectors[0, 0] * together.vectors[index, 0]).sum().abs()
            assert float(overlap) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("dtype", TYPES)
@settings(deadline=None, max_examples=30)
@given(st.integers(2, 300), st.integers(0, 1000), st.integers(-200, 200))
def test_products_in_pieces_are_those_of_float64(dtype: torch.dtype, nodes: int, seed: int, power: int):
    adjacency, generator = graph(nodes, seed), torch.Generator().manual_seed(seed)
    rows = torch.randn(3, nodes, generator=generator, dtype=torch.float64)
    rows = rows * torch.tensor([1.0, 2.0**power, 0.0], dtype=torch.float64)[:, None]
    found = exact_product(rows[None], adjacency[None].to(dtype))[0]
    expected = np.array([[math.fsum(row[column > 0]) for column in adjacency.numpy()] for row in rows.numpy()])
    largest = rows.abs().amax(1, keepdim=True).numpy()
    assert (np.abs(found.numpy() - expected) <= 1e-12 * nodes * largest).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_products_of_the_largest_pieces_are_exact(dtype: torch.dtype):
    """Rows of powers of two, and of the numbers just below, of both signs: digits at the ends of their range."""
    ends = torch.tensor([1.0, -1.0, 2 - 2.0**-52, -2 + 2.0**-52, 0.5, -(2.0**-40)], dtype=torch.float64)
    rows = ends[:, None].expand(-1, 64).clone()
    found = exact_product(rows[None], torch.ones(1, 64, 64, dtype=dtype))[0]
    assert torch.equal(found, 64 * rows)


def test_a_cpu_with_and_without_integer_instructions_finds_the_same(monkeypatch: pytest.MonkeyPatch):
    adjacency = graph(200, 0)[None]
    pairs = []
    for fast in (False, fast_integers()):
        monkeypatch.setattr(lanczos, "fast_integers", lambda fast=fast: fast)
        pairs.append(leading_pairs(adjacency, degrees(adjacency), EPS, tolerance=1e-10))
    assert pairs[0] is not None
    assert pairs[1] is not None
    torch.testing.assert_close(pairs[0].values, pairs[1].values, rtol=0, atol=1e-13)
    torch.testing.assert_close(pairs[0].vectors[:, 0], pairs[1].vectors[:, 0], rtol=0, atol=1e-9)
