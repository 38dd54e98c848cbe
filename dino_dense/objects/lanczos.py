"""Leading eigenvectors of large two-valued graphs by block Lanczos, on CPU and GPU, many graphs at once.

Shapes: n graphs of N nodes; vectors are rows, [n, vectors, N].
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 2  # vectors of a block: they share a pass over the graph, and separate two equal eigenvalues
LARGEST_BASIS = 256  # vectors; a graph that needs more is nearly disconnected
SETTLED = 1e-6  # residual of a pair needed for its eigenvalue only, which has the error residual^2 / next gap
SMALLEST = 2.0**-500  # smaller values count as 0, so that no unit underflows
PIECES = 4  # integer vectors that a vector is split into, in float32
WHOLE_FLOAT32 = 24  # bits: whole numbers up to 2^24, and their sums, are exact in float32
BYTES, BYTES_BITS = 7, 54  # the same in int8: signed digits to the base 256 of integers up to 2^54
HALVES = sum(128 << 8 * digit for digit in range(BYTES))  # half the base in each digit


class Eigenpairs(NamedTuple):
    """The two largest non-trivial eigenvalues of n matrices, with eigenvectors."""

    values: Tensor
    """[n, 2], largest first, float64."""
    vectors: Tensor
    """[n, 2, N], of length 1, float64."""


def leading_pairs(
    adjacency: Tensor, degree: Tensor, eps: float, *, tolerance: float, start: Tensor | None = None
) -> Eigenpairs | None:
    """The two largest eigenvalues, except the trivial 1, of M = D^-1/2 A D^-1/2 of graphs with two weights.

    A is 1 for adjacent nodes and eps for all others: A v = (1 - eps) adjacency v + eps sum(v), so that A is never
    stored.

    Block Lanczos with full reorthogonalization (Golub and Underwood 1977): the basis is extended by M times its last
    block, and the eigenpairs of M on the basis give values, vectors and residuals. The trivial vector, D^1/2 1, is
    excluded from the basis.

    Args:
        adjacency: [n, N, N], float32 zeros and ones, symmetric.
        degree: [n, N], row sums of A, float64.
        eps: weight between nodes that are not adjacent.
        tolerance: stops at this residual |M x - value x| of the first pair, and SETTLED of the second.
        start: [n, N], approximate first eigenvectors, such as the previous frame's, or None.

    Returns:
        None if a graph needs a basis larger than LARGEST_BASIS.
    """
    root = degree.sqrt()[:, None]  # [n, 1, N]
    if adjacency.device.type == "cpu" and fast_integers():
        adjacency = adjacency.to(torch.int8)

    def apply(rows: Tensor) -> Tensor:
        scaled = rows / root
        return ((1 - eps) * exact_product(scaled, adjacency) + eps * scaled.sum(2, keepdim=True)) / root

    basis = root / root.norm(dim=2, keepdim=True)  # the trivial vector, then the blocks
    block = _orthonormal(_first_block(root, start), basis)
    rayleigh = root.new_zeros(len(root), 0, 0)
    for _ in range(min(LARGEST_BASIS, root.shape[2] - 1) // BLOCK):
        basis = torch.cat([basis, block], dim=1)
        image = apply(block)
        rayleigh = _bordered(rayleigh, basis[:, 1:] @ image.mT)
        following = _orthonormal(image, basis)
        values, mix = torch.linalg.eigh(rayleigh)  # ascending; mix: [n, basis, pairs]
        # M maps only the last block of the basis out of it, and only to the following block.
        outside = (following @ image.mT @ mix[:, -BLOCK:, -2:]).norm(dim=1)  # residuals [n, 2], the first pair's last
        if bool((outside[:, 1] <= tolerance).all() and (outside[:, 0] <= SETTLED).all()):
            vectors = mix[:, :, -2:].mT.flip(1) @ basis[:, 1:]
            residual = (apply(vectors[:, :1]) - values[:, -1:, None] * vectors[:, :1]).norm(dim=2)
            # Rounding may add to the predicted residual, but no more than double it.
            return Eigenpairs(values[:, -2:].flip(1), vectors) if bool((residual <= 2 * tolerance).all()) else None
        block = following
    return None


@contextmanager
def full_float32() -> Iterator[None]:
    """A context in which float32 products keep all 24 bits: with --dtype tf32, CUDA would round the integers."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def fast_integers() -> bool:
    """Whether this CPU has instructions for products of 8-bit integers (VNNI), and PyTorch uses them."""
    supported = getattr(torch.cpu, "_is_vnni_supported", None)  # no public name, as `_int_mm`
    return supported is not None and hasattr(torch, "_int_mm") and bool(supported())


def exact_product(rows: Tensor, adjacency: Tensor) -> Tensor:
    """rows @ adjacency with float64 accuracy at less memory, independent of the order of summation.

    Each row is split into rows of small integers, each times a power of two. Sums of their products with zeros and ones
    are exact, and are then recombined. The omitted remainder is below 2^-52 of the row's largest value.

    Args:
        rows: [n, b, N], float64.
        adjacency: [n, N, N], zeros and ones, symmetric; float32, or int8 on a CPU (a quarter of the memory to read).
    """
    return _in_bytes(rows, adjacency) if adjacency.dtype == torch.int8 else _in_floats(rows, adjacency)


def _unit(rows: Tensor, bits: int) -> Tensor:
    """[n, b, 1]: a power of two for each row, at least 2^-bits of its largest value."""
    largest = rows.abs().amax(2, keepdim=True).clamp(min=SMALLEST)
    return torch.exp2(largest.log2().ceil() - bits)


def _in_floats(rows: Tensor, adjacency: Tensor) -> Tensor:
    """`exact_product` in float32, which adds integers exactly while the sum is below 2^24."""
    bits = WHOLE_FLOAT32 - math.ceil(math.log2(rows.shape[2]))
    unit = _unit(rows, bits)
    pieces, units, rest = [], [], rows
    for _ in range(PIECES):
        piece = (rest / unit).round()
        rest = rest - piece * unit
        pieces.append(piece)
        units.append(unit)
        unit = unit * 2.0**-bits
    with full_float32():
        products = torch.cat(pieces, dim=1).float() @ adjacency  # [n, PIECES * b, N]
    parts = zip(products.double().chunk(PIECES, dim=1), units, strict=True)
    return torch.stack([product * unit for product, unit in parts]).sum(0)


def _in_bytes(rows: Tensor, adjacency: Tensor) -> Tensor:
    """`exact_product` in int8, with sums in int32: the digits, from -128 to 127, of integers are the bytes.

    An integer plus 128 in each digit is not negative, so its bytes are the digits plus 128. The exclusive or with 128
    makes each byte the digit as a signed byte.
    """
    unit = _unit(rows, BYTES_BITS)
    whole = (rows / unit).round().long()
    digits = ((whole + HALVES) ^ HALVES).view(torch.int8).unflatten(2, (-1, 8))[..., :BYTES]  # lowest first
    digits = digits.permute(0, 3, 1, 2).flatten(1, 2).contiguous()  # [n, BYTES * b, N]
    sums = torch.stack([torch._int_mm(*graph) for graph in zip(digits, adjacency, strict=True)])
    base = 256.0 ** torch.arange(BYTES, dtype=torch.float64)
    return (sums.double().unflatten(1, (BYTES, -1)) * base[:, None, None]).sum(1) * unit


def _first_block(root: Tensor, start: Tensor | None) -> Tensor:
    """The first block [n, BLOCK, N]; fixed random directions make the result reproducible."""
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(BLOCK, root.shape[2], generator=generator, dtype=torch.float64).to(root.device)
    block = block.expand(len(root), -1, -1)
    return block if start is None else torch.cat([start.to(root)[:, None], block[:, 1:]], dim=1)


def _orthonormal(rows: Tensor, basis: Tensor) -> Tensor:
    """The part of rows [n, b, N] orthogonal to an orthonormal basis [n, m, N], orthonormalized."""
    for _ in range(2):  # twice is enough (Parlett 1980, 6.9)
        rows = rows - rows @ basis.mT @ basis
        rows = torch.linalg.qr(rows.mT).Q.mT
    return rows


def _bordered(rayleigh: Tensor, border: Tensor) -> Tensor:
    """A symmetric matrix [n, m, m] extended by last columns [n, m + b, b] and the same rows."""
    size = rayleigh.shape[1]
    grown = torch.cat([torch.cat([rayleigh, border[:, :size].mT], dim=1), border], dim=2)
    return (grown + grown.mT) / 2
