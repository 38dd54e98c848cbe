"""k-means of patch features beside faiss's, at the size of over-clustering: 200,000 patches of 50 components, K = 500.

Ours is scikit-learn's with k-means++ starts. Needs `pip install "dino_dense[benchmarks]"` (faiss).
"""

import importlib.util
import sys
import time

import torch
from torch import Tensor

from benchmarks.bench import Row, publish
from dino_dense.clustering import cluster

POINTS, COMPONENTS, CLUSTERS = 200_000, 50, 500
STARTS, ITERATIONS = 5, 100
CENTERS = 800  # of the drawn points: more than the clusters, so that no solution is perfect
MAY_LOSE = 1.02  # largest objective, relative to faiss


def points() -> Tensor:
    """[POINTS, COMPONENTS], around centers of falling frequency."""
    generator = torch.Generator().manual_seed(0)
    centers = 3 * torch.randn(CENTERS, COMPONENTS, generator=generator)
    weights = 1 / torch.arange(1.0, CENTERS + 1)
    chosen = torch.multinomial(weights, POINTS, replacement=True, generator=generator)
    return centers[chosen] + torch.randn(POINTS, COMPONENTS, generator=generator)


def main() -> list[Row]:
    if importlib.util.find_spec("faiss") is None:
        print('clustering: faiss is not installed; pip install "dino_dense[benchmarks]"', file=sys.stderr)
        return []
    drawn = points()
    plain_s, plain = by_faiss(drawn)
    start = time.perf_counter()
    ours = cluster(drawn, CLUSTERS, 0, starts=STARTS, iterations=ITERATIONS).objective
    seconds = time.perf_counter() - start
    row = Row(
        "clustering",
        f"k-means of {POINTS:,} x {COMPONENTS}, K = {CLUSTERS}, {STARTS} starts of {ITERATIONS} iterations, cpu",
        plain_s,
        seconds,
        "s",
        check=f"objective {ours / plain:.4f} of faiss's",
        agrees=ours <= MAY_LOSE * plain,
        note="plain is faiss; ours is scikit-learn, whose starts are k-means++ and which stops when nothing changes",
    )
    publish([row])
    return [row]


def by_faiss(drawn: Tensor) -> tuple[float, float]:
    """Seconds, and the sum of squared distances."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    options = {"niter": ITERATIONS, "nredo": STARTS, "seed": 1, "max_points_per_centroid": POINTS}
    fitted = faiss.Kmeans(COMPONENTS, CLUSTERS, **options)
    start = time.perf_counter()
    fitted.train(drawn.numpy())
    seconds = time.perf_counter() - start
    distances, _ = fitted.index.search(drawn.numpy(), 1)
    return seconds, float(distances.astype("float64").sum())


if __name__ == "__main__":
    main()
