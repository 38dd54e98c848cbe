"""The leading eigenvectors of large two-valued graphs, by block Lanczos: one code for CPU and GPU, many graphs at once.

Shapes: n graphs of N nodes; vectors are rows, [n, vectors, N].
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 2  # vectors that grow together: a pass over the graph serves them all, and two equal eigenvalues are both found
PIECES = 4  # of whole numbers, that a vector is split into
LARGEST_BASIS = 256  # vectors; a graph that needs more is nearly in pieces
SETTLED = 1e-6  # residual of a pair whose value alone is wanted: its error is the residual's square, over the next gap
SMALLEST = 2.0**-500  # what is below counts as zero: no unit may become 0
WHOLE_FLOAT32 = 24  # bits: whole numbers up to 2^24, and their sums, are exact in float32


class Eigenpairs(NamedTuple):
    """Of n matrices, the two largest eigenvalues but for the trivial one."""

    values: Tensor
    """[n, 2], largest first, float64."""
    vectors: Tensor
    """[n, 2, N], of length 1, float64."""


def leading_pairs(
    joined: Tensor, degree: Tensor, eps: float, *, tolerance: float, start: Tensor | None = None
) -> Eigenpairs | None:
    """The two largest eigenvalues, but for the trivial 1, of M = D^-1/2 A D^-1/2 of graphs with two weights.

    A is 1 where nodes are joined and eps elsewhere: A v = (1 - eps) joined v + eps sum(v), so that A itself is never
    stored.

    Block Lanczos with full reorthogonalisation (Golub and Underwood 1977): the basis grows by what M makes of its
    last block, and the eigenpairs of M on the basis give values, vectors and residuals. The trivial vector, D^1/2 1,
    is kept out of the basis.

    Args:
        joined: [n, N, N], float32 zeros and ones, symmetric.
        degree: [n, N], row sums of A, float64.
        eps: weight between nodes that are not joined.
        tolerance: residual |M x - value x| of the first pair at which it is done; of the second, SETTLED.
        start: [n, N], what the first eigenvectors are like, if known, such as those of the frame before.

    Returns:
        None where some graph's pairs are not found in a basis of LARGEST_BASIS.
    """
    root = degree.sqrt()[:, None]  # [n, 1, N]

    def apply(rows: Tensor) -> Tensor:
        scaled = rows / root
        return ((1 - eps) * exact_product(scaled, joined) + eps * scaled.sum(2, keepdim=True)) / root

    basis = root / root.norm(dim=2, keepdim=True)  # the trivial vector, then the blocks
    block = _orthonormal(_first_block(root, start), basis)
    rayleigh = root.new_zeros(len(root), 0, 0)
    for _ in range(min(LARGEST_BASIS, root.shape[2] - 1) // BLOCK):
        basis = torch.cat([basis, block], dim=1)
        image = apply(block)
        rayleigh = _bordered(rayleigh, basis[:, 1:] @ image.mT)
        following = _orthonormal(image, basis)
        values, mix = torch.linalg.eigh(rayleigh)  # ascending; mix: [n, basis, pairs]
        # M on the basis leaves it only by the last block, and only towards the following one.
        outside = (following @ image.mT @ mix[:, -BLOCK:, -2:]).norm(dim=1)  # residuals [n, 2], the first pair's last
        if bool((outside[:, 1] <= tolerance).all() and (outside[:, 0] <= SETTLED).all()):
            vectors = mix[:, :, -2:].mT.flip(1) @ basis[:, 1:]
            residual = (apply(vectors[:, :1]) - values[:, -1:, None] * vectors[:, :1]).norm(dim=2)
            # Rounding adds to what was predicted; no more than as much again is right.
            return Eigenpairs(values[:, -2:].flip(1), vectors) if bool((residual <= 2 * tolerance).all()) else None
        block = following
    return None


def exact_product(rows: Tensor, joined: Tensor) -> Tensor:
    """rows @ joined in the accuracy of float64, for half its bytes, and whatever the order of summation.

    Whole numbers whose sum is below 2^24 are added exactly in float32. So each row is split into PIECES of whole
    numbers of few bits (times a power of two each), all of them are multiplied at once, and put together again. What
    is left out is below 2^-(PIECES * bits) of the row's largest value.

    Args:
        rows: [n, b, N], float64.
        joined: [n, N, N], float32 zeros and ones.
    """
    bits = WHOLE_FLOAT32 - math.ceil(math.log2(rows.shape[2]))
    largest = rows.abs().amax(2, keepdim=True).clamp(min=SMALLEST)
    unit = torch.exp2(largest.log2().ceil() - bits)  # [n, b, 1]
    pieces, units, rest = [], [], rows
    for _ in range(PIECES):
        piece = (rest / unit).round()
        rest = rest - piece * unit
        pieces.append(piece)
        units.append(unit)
        unit = unit * 2.0**-bits
    products = torch.cat(pieces, dim=1).float() @ joined  # [n, PIECES * b, N]
    parts = zip(products.double().chunk(PIECES, dim=1), units, strict=True)
    return torch.stack([product * unit for product, unit in parts]).sum(0)


def _first_block(root: Tensor, start: Tensor | None) -> Tensor:
    """[n, BLOCK, N]: directions of their own make the result the same every time."""
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(BLOCK, root.shape[2], generator=generator, dtype=torch.float64).to(root.device)
    block = block.expand(len(root), -1, -1)
    return block if start is None else torch.cat([start.to(root)[:, None], block[:, 1:]], dim=1)


def _orthonormal(rows: Tensor, basis: Tensor) -> Tensor:
    """What is new in rows [n, b, N] beside an orthonormal basis [n, m, N]: orthonormal."""
    for _ in range(2):  # twice is enough (Parlett 1980, 6.9)
        rows = rows - rows @ basis.mT @ basis
        rows = torch.linalg.qr(rows.mT).Q.mT
    return rows


def _bordered(rayleigh: Tensor, border: Tensor) -> Tensor:
    """A symmetric [n, m, m] with new last columns [n, m + b, b], and rows like them."""
    size = rayleigh.shape[1]
    grown = torch.cat([torch.cat([rayleigh, border[:, :size].mT], dim=1), border], dim=2)
    return (grown + grown.mT) / 2
