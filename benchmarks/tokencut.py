"""TokenCut's eigenvector and its whole cut, against the dense generalized solver of the published code.

Features are the keys of a ViT-S with random weights on the first frames of videos (a DAVIS-2016 tree, or the embedded
set) at 480x832: 30 x 52 patches of 16 pixels, 60 x 104 of 8; and smooth features of 30 x 52, a harder case for Lanczos.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench import Row, device, in_new_process, in_turn, publish
from benchmarks.scoring import tree
from data.davis import load_davis
from dino_dense import load_backbone
from dino_dense.objects.cuts import Graph, patch_graph, second_eigenvector, tokencut
from dino_dense.objects.protocol import SegmentProtocol
from dino_dense.objects.segment import patch_features, to_tensor

TAU, EPS = 0.2, 1e-5
SIZE = (480, 832)  # pixels
IMAGES = 5
COARSE = (4, 6)  # cells of random features before upsampling
MEMORY_LIMIT = 2048  # MiB, at 6,240 patches
FLOAT64 = 8  # bytes


def keys(patch_size: int, images: int) -> list[Tensor]:
    """Features [C, h, w] of the first frames of videos."""
    backbone = load_backbone(f"random:vit_small_patch{patch_size}_224").to(device())
    frames = [to_tensor(sequence.read_frame(0), SIZE) for sequence in load_davis(*tree())[:images]]
    return [patch_features(backbone, frame[None], SegmentProtocol())[0] for frame in frames]


def smooth_features(shape: tuple[int, ...], seed: int) -> Tensor:
    """Features [C, h, w] that vary slowly over the image: only near patches are adjacent.

    Lanczos needs more steps, since eigenvalues are closer; the dense solver's time does not change.
    """
    coarse = torch.randn(1, shape[0], *COARSE, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=shape[1:], mode="bicubic", align_corners=True)[0].to(device())


# --- The published code's steps (object_discovery.py of TokenCut) -------------------------------------------


def plain_weights(features: Tensor) -> np.ndarray:
    unit = F.normalize(features.flatten(1).T, dim=1)
    products = (unit @ unit.T).cpu().numpy() > TAU
    return np.where(products.astype(float) == 0, EPS, products)


def plain_eigenvector(weights: np.ndarray) -> np.ndarray:
    degree = np.diag(weights.sum(axis=0))
    _, vectors = scipy.linalg.eigh(degree - weights, degree, subset_by_index=[1, 2])
    return vectors[:, 0]


def plain_mask(features: Tensor) -> np.ndarray:
    values = plain_eigenvector(plain_weights(features))
    foreground = values > values.mean()
    seed = np.abs(values).argmax()
    if not foreground[seed]:
        foreground = ~foreground
    pieces, _ = scipy.ndimage.label(foreground.reshape(features.shape[1:]))
    return pieces == pieces.flat[seed]


# --- Rows ---------------------------------------------------------------------------------------------------


def main() -> list[Row]:
    features = keys(16, IMAGES)
    masks = [(plain_mask(each), tokencut(each, TAU, EPS).mask) for each in features]
    smooth = [smooth_features(features[0].shape, seed) for seed in range(IMAGES)]
    masks += [(plain_mask(each), tokencut(each, TAU, EPS).mask) for each in smooth]
    if not all(np.array_equal(plain, ours) for plain, ours in masks):
        raise AssertionError("the masks of the dense solver and of ours differ")
    patches = features[0][0].numel()
    weights = [plain_weights(each) for each in features]
    graphs = [patch_graph(each, TAU, EPS) for each in features]
    hard = [plain_weights(each) for each in smooth], [patch_graph(each, TAU, EPS) for each in smooth]
    rows = [
        _time(f"eigenvector, {patches:,} patches", plain_eigenvector, weights, second_eigenvector, graphs, 10),
        _time(
            f"eigenvector, {patches:,} patches of smooth features",
            plain_eigenvector,
            hard[0],
            second_eigenvector,
            hard[1],
        ),
        _time(f"whole cut, {patches:,} patches", plain_mask, features, tokencut, features),
        _memory(),
    ]
    publish(rows)
    return rows


def _time(
    work: str,
    plain: Callable[[Any], Any],
    plain_inputs: list[Any],
    ours: Callable[[Any], Any],
    our_inputs: list[Any],
    target: float | None = None,
) -> Row:
    plain_s, ours_s = in_turn(
        lambda: [plain(each) for each in plain_inputs], lambda: [ours(each) for each in our_inputs]
    )
    count = len(plain_inputs)
    work, check = f"{work}, {device().type}", f"masks of {count} images equal"
    return Row("tokencut", work, plain_s / count, ours_s / count, "s", target=target, check=check)


def _memory() -> Row:
    """Peak memory of the cut at 6,240 patches; the dense solver's is computed, since it takes more than a minute."""
    features = keys(8, 1)[0]
    patches = features[0].numel()
    measured = in_new_process(_cut, features.cpu())
    # Weights, degrees, their difference, and LAPACK's copies of two of them.
    dense = 5 * FLOAT64 * patches**2 / 2**20
    if measured.mib > MEMORY_LIMIT:
        raise AssertionError(f"{measured.mib:.0f} MiB at {patches} patches: expected at most {MEMORY_LIMIT}")
    return Row(
        "tokencut",
        f"peak memory of the cut, {patches:,} patches (plain computed)",
        dense,
        measured.mib,
        "MiB",
        limit=MEMORY_LIMIT,
        check=f"residual {_residual(features, measured.result):.0e}",
        note=f"plain was not run: five float64 matrices of {patches} x {patches}; ours took {measured.seconds:.2f} s",
    )


def _cut(features: Tensor) -> np.ndarray:
    vector = tokencut(features.to(device()), TAU, EPS).eigenvector
    assert vector is not None
    return vector.ravel()


def _residual(features: Tensor, vector: np.ndarray) -> float:
    """|(D - A) y - v D y| of z = D^1/2 y of length 1, in float64, a block of rows at a time."""
    graph: Graph = patch_graph(features, TAU, EPS)
    y = torch.from_numpy(vector).to(graph.adjacency.device)
    rows = zip(graph.adjacency.split(512), y.split(512), strict=True)
    parts = [(1 - EPS) * (part.double() @ y) + EPS * y.sum() for part, _ in rows]
    degree = graph.links(torch.ones_like(y, dtype=torch.bool))
    root = degree.sqrt()
    z, image = root * y, torch.cat(parts) / root
    return float((image - z * (z @ image) / (z @ z)).norm() / z.norm())


if __name__ == "__main__":
    main()
