"""The fast bilateral solver: aligns a coarse mask with the edges of the image.

Barron and Poole 2016 (arXiv 1511.03296), with the constants of TokenCut's saliency script. The pixels p of an image
are splatted (S, [vertices, pixels]) onto the occupied cells of a grid in position and color. For the target t with
confidence c, the solver minimizes over the grid values y

    lambda/2 * sum_ij W_ij (x_i - x_j)^2 + sum_i c_i (x_i - t_i)^2,   x = S' y,

which is the linear system (lambda (D_m - D_n B D_n) + diag(S c)) y = S (c t), eq. 7 to 9 of the paper: B blurs along
each axis of the grid, and the diagonal D_n makes D_n B D_n have the row sums D_m of the splat (its algorithm 1).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy.ndimage
import scipy.sparse
from scipy.sparse.linalg import cg

from dino_dense.arrays import Floats, Mask, Pixels

# TokenCut, unsupervised_saliency_detection/{get_saliency,bilateral_solver}.py.
SIGMA_SPATIAL = 16  # pixels a grid cell spans
SIGMA_LUMA = 16  # of 256
SIGMA_CHROMA = 8  # of 256
SMOOTHNESS = 256.0  # lambda
CONFIDENCE = 0.999  # of the target, everywhere
SMALLEST_DIAGONAL = 1e-5  # of the preconditioner
ITERATIONS, RELATIVE_TOLERANCE = 25, 1e-5  # of conjugate gradients
BISTOCHASTIC_STEPS = 10  # the paper's reference
# JPEG's (ITU-R BT.601, all 256 levels); a constant added to U and V would only shift the grid's cells.
RGB_TO_YUV = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
CHROMA_ZERO = 128.0


class Grid(NamedTuple):
    """The occupied cells of a bilateral grid."""

    splat: scipy.sparse.csr_matrix
    """[V, H*W], 1 where a pixel is in a cell."""
    blur: scipy.sparse.csr_matrix
    """[V, V]: 2 an axis on the diagonal, 1 between neighbors along an axis."""


def refine(image: Pixels, target: Floats) -> Floats:
    """Align a mask with the edges of the image.

    Args:
        image: RGB [H, W, 3].
        target: [H, W] in [0, 1].

    Returns:
        The solution [H, W], approximately within the range of the target (after 25 steps).

    Raises:
        ValueError: the sizes differ.
    """
    if image.shape[:2] != target.shape:
        raise ValueError(f"image {image.shape[:2]} and target {target.shape} (H, W) must have one size")
    grid = make_grid(image)
    matrix, right = system(grid, target.ravel())
    preconditioner = scipy.sparse.diags(1 / np.maximum(matrix.diagonal(), SMALLEST_DIAGONAL))
    start = right / (grid.splat @ np.full(target.size, CONFIDENCE))
    solution, _ = cg(matrix, right, x0=start, M=preconditioner, maxiter=ITERATIONS, rtol=RELATIVE_TOLERANCE)
    return (grid.splat.T @ solution).reshape(target.shape)


def binarise(solution: Floats, coarse: Mask) -> Mask:
    """A clean mask: above 0.5, holes filled, the largest 4-connected component; `coarse` if it is empty.

    The reference keeps the second largest component, with the background among them. This is the background if the
    object is larger, so it inverts masks with an IoU below 0.5 to the coarse mask. The largest component of the
    foreground avoids both steps.
    """
    pieces, count = scipy.ndimage.label(scipy.ndimage.binary_fill_holes(solution > 0.5))
    return pieces == 1 + np.bincount(pieces.ravel())[1:].argmax() if count else coarse


def make_grid(image: Pixels) -> Grid:
    """The cells of an RGB image [H, W, 3] by x, y, luma and two chroma values, and their neighbors."""
    height, width = image.shape[:2]
    yuv = image.reshape(-1, 3) @ RGB_TO_YUV.T + (0, CHROMA_ZERO, CHROMA_ZERO)
    rows, columns = np.divmod(np.arange(height * width), width)
    scales = (SIGMA_SPATIAL, SIGMA_SPATIAL, SIGMA_LUMA, SIGMA_CHROMA, SIGMA_CHROMA)
    cells = (np.column_stack([columns, rows, yuv]) / scales).astype(np.int64)  # [H*W, 5]
    shape = cells.max(axis=0) + 3  # a border: a step over the edge reaches no occupied cell
    steps = np.append(np.cumprod(shape[:0:-1])[::-1], 1)
    numbers, vertex = np.unique((cells + 1) @ steps, return_inverse=True)
    pixels = np.arange(len(cells))
    splat = scipy.sparse.csr_matrix((np.ones(len(cells)), (vertex, pixels)), shape=(len(numbers), len(cells)))
    return Grid(splat, _blur(numbers, steps))


def system(grid: Grid, target: Floats) -> tuple[scipy.sparse.csr_matrix, Floats]:
    """The matrix [V, V] and the right side [V] for a target [H*W]."""
    counts = grid.splat @ np.ones(len(target))
    scale = np.ones(len(counts))
    for _ in range(BISTOCHASTIC_STEPS):
        scale = np.sqrt(scale * counts / (grid.blur @ scale))
    # Row sums of the final blur, so that a constant has a smoothness cost of exactly 0.
    sums = scale * (grid.blur @ scale)
    between = scipy.sparse.diags(scale) @ grid.blur @ scipy.sparse.diags(scale)
    roughness = scipy.sparse.diags(sums) - between
    data = scipy.sparse.diags(CONFIDENCE * counts)
    return scipy.sparse.csr_matrix(SMOOTHNESS * roughness + data), CONFIDENCE * (grid.splat @ target)


def _blur(numbers: npt.NDArray[np.int64], steps: npt.NDArray[np.int64]) -> scipy.sparse.csr_matrix:
    """The blur matrix of sorted cell numbers [V]; `steps` [axes] is the number offset of the next cell on each axis."""
    count = len(numbers)
    blur = 2 * len(steps) * scipy.sparse.identity(count, format="csr")
    for step in steps:
        places = np.searchsorted(numbers, numbers + step)
        here = np.flatnonzero(numbers[np.minimum(places, count - 1)] == numbers + step)
        link = scipy.sparse.csr_matrix((np.ones(len(here)), (here, places[here])), shape=(count, count))
        blur = blur + link + link.T
    return blur
