"""Label propagation: tiles of queries against what is in their reach, beside the dense affinity matrix.

Runs each once, in a process of its own, on random features of one frame and its context, and prints seconds,
peak memory above what the process had before, the ratios, and the largest difference of the labels.

    python benchmarks/propagation.py --patch_size 8          # a DAVIS frame at 832x480
"""

import multiprocessing
import resource
import sys
import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor

from tasks._propagation import propagate_labels


@dataclass(frozen=True)
class Problem:
    """Sizes of one frame's propagation; the defaults are DINO ViT-S on a DAVIS frame."""

    height: int = 480
    width: int = 832
    patch_size: int = 16
    dim: int = 384
    context: int = 8
    channels: int = 3
    radius: int = 12
    top_k: int = 5
    temperature: float = 0.1
    threads: int = 1


def grid_of(problem: Problem) -> tuple[int, int]:
    return problem.height // problem.patch_size, problem.width // problem.patch_size


def dense(target: Tensor, sources: Tensor, labels: Tensor, problem: Problem) -> Tensor:
    """The reference's formulation: all affinities [n*h*w, h*w] at once, then the window, then the top k."""
    h, w = grid_of(problem)
    affinity = torch.exp(F.normalize(target, dim=1) @ F.normalize(sources, dim=1) / problem.temperature).transpose(
        1, 2
    )  # [n, sources, queries]
    ys, xs = (axis.flatten() for axis in torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij"))
    dy, dx = (ys[:, None] - ys).abs(), (xs[:, None] - xs).abs()
    affinity = (affinity * (torch.maximum(dy, dx) <= problem.radius)).flatten(0, 1)
    last_kept = affinity.topk(problem.top_k, dim=0).values[-1]
    affinity[affinity < last_kept] = 0
    affinity = affinity / affinity.sum(0, keepdim=True)
    return (labels.transpose(0, 1).flatten(1) @ affinity).unflatten(1, grid_of(problem))


def tiled(target: Tensor, sources: Tensor, labels: Tensor, problem: Problem) -> Tensor:
    return propagate_labels(
        target,
        sources,
        labels,
        hw=grid_of(problem),
        radius=problem.radius,
        top_k=problem.top_k,
        temperature=problem.temperature,
    )


def measure(name: str, problem: Problem) -> tuple[float, float, np.ndarray]:
    """Seconds, MiB above the start, and labels of one run."""
    torch.set_num_threads(problem.threads)
    generator = torch.Generator().manual_seed(0)
    h, w = grid_of(problem)
    target = torch.randn(h * w, problem.dim, generator=generator)
    sources = torch.randn(problem.context, problem.dim, h * w, generator=generator)
    labels = torch.rand(problem.context, problem.channels, h, w, generator=generator)
    before, start = peak_mib(), time.perf_counter()
    result = {"dense": dense, "tiled": tiled}[name](target, sources, labels, problem)
    return time.perf_counter() - start, peak_mib() - before, result.numpy()


def peak_mib() -> float:
    """Highest resident memory of this process so far (ru_maxrss counts bytes on macOS, KiB elsewhere)."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main(problem: Problem) -> None:
    h, w = grid_of(problem)
    print(f"{h}x{w} patches, {problem.context} context frames, {problem.threads} thread(s)")
    results = {}
    for name in ("dense", "tiled"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            results[name] = pool.apply(measure, (name, problem))
        print(f"{name}: {results[name][0]:.2f} s, {results[name][1]:.0f} MiB")
    (dense_s, dense_mib, expected), (tiled_s, tiled_mib, ours) = results["dense"], results["tiled"]
    print(f"dense / tiled: time {dense_s / tiled_s:.1f}, memory {dense_mib / tiled_mib:.1f}")
    print(f"largest difference: {np.abs(ours - expected).max():.1e}")


if __name__ == "__main__":
    main(auto_cli(Problem, as_positional=False))
