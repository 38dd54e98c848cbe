"""Label propagation of one frame: tile by tile within the window, against the dense affinity matrix.

The plain form is the published one (dino/eval_video_segmentation.py): the affinities of all patches of all context
frames at once, exponentials, the window, top-k along the sources, division by the column sum.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench import Row, device, in_new_process, in_turn, publish
from dino_dense import load_backbone
from dino_dense.propagation.protocol import PropagationProtocol
from dino_dense.propagation.search import ContextFrames, Neighborhood, unit_features
from dino_dense.propagation.stream import DEFAULT_MAX_BYTES, LabelPropagator

HEIGHT, WIDTH = 480, 832  # a DAVIS frame as DINO resizes it
CONTEXT, RADIUS, TOP_K, TEMPERATURE = 8, 12, 5, 0.1  # DINO's
DIM = 384
SHARE = 0.15  # largest time of propagation, as a share of the features' time
MEMORY_LIMIT = 300 * 1e6 / 2**20  # MiB
LARGEST_DIFFERENCE = 1e-5


@dataclass(frozen=True)
class Problem:
    """A frame and its context, with random features."""

    patch_size: int
    channels: int = 2

    @property
    def grid(self) -> tuple[int, int]:
        return HEIGHT // self.patch_size, WIDTH // self.patch_size

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        h, w = self.grid
        target = torch.randn(h * w, DIM, generator=generator)
        sources = torch.randn(CONTEXT, DIM, h * w, generator=generator)
        labels = torch.rand(CONTEXT, self.channels, h, w, generator=generator)
        return target.to(device()), sources.to(device()), labels.to(device())


def window_mask(grid: tuple[int, int]) -> Tensor:
    """float [h*w, h*w]: 1 if two patches are at most RADIUS apart in rows and columns."""
    ys, xs = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, grid), indexing="ij"))
    return (torch.maximum((ys[:, None] - ys).abs(), (xs[:, None] - xs).abs()) <= RADIUS).float().to(device())


def dense(target: Tensor, sources: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """target [h*w, D], sources [n, D, h*w], labels [n, C, h, w] -> [C, h, w]."""
    affinity = torch.exp(F.normalize(target, dim=1) @ F.normalize(sources, dim=1) / TEMPERATURE)  # [n, target, source]
    affinity = (affinity.transpose(1, 2) * mask).flatten(0, 1)  # [n*source, target]
    last_kept = affinity.topk(TOP_K, dim=0).values[-1]
    affinity[affinity < last_kept] = 0
    affinity = affinity / affinity.sum(0, keepdim=True)
    return (labels.transpose(0, 1).flatten(1) @ affinity).unflatten(1, labels.shape[2:])


def run_dense(problem: Problem) -> Tensor:
    return dense(*problem.tensors(), window_mask(problem.grid)).cpu()


def run_tiled(problem: Problem) -> Tensor:
    return run_tiled_on(problem, problem.tensors()).cpu()


def speed_and_memory(problem: Problem) -> list[Row]:
    h, w = problem.grid
    work = f"one frame, {h}x{w} patches, {CONTEXT} context frames, {device().type}"
    runs = [in_new_process(call, problem) for call in (run_dense, run_tiled)]
    difference = (runs[0].result - runs[1].result).abs().max().item()
    if difference > LARGEST_DIFFERENCE:
        raise AssertionError(f"{work}: labels differ by {difference}")
    check = f"labels differ by {difference:.0e}"
    tensors, mask = problem.tensors(), window_mask(problem.grid)
    repeats = 5 if problem.patch_size == 16 else 1
    plain, ours = in_turn(lambda: dense(*tensors, mask), lambda: run_tiled_on(problem, tensors), repeats)
    limit = MEMORY_LIMIT if problem.patch_size == 8 else None
    return [
        Row("propagation", work, plain, ours, "s", check=check),
        Row("propagation", work, runs[0].mib, runs[1].mib, "MiB", limit=limit, check=check, note="inputs included"),
    ]


def run_tiled_on(problem: Problem, tensors: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    target, sources, labels = tensors
    neighborhood = Neighborhood(RADIUS, "square", TOP_K, True, TEMPERATURE)
    shape = DIM, *problem.grid
    context = ContextFrames(shape, problem.channels, CONTEXT, neighborhood, DEFAULT_MAX_BYTES, target.device)
    for features, label in zip(sources, labels, strict=True):
        context.add(unit_features(features.unflatten(1, problem.grid), problem.grid), label)
    return context.propagate(unit_features(target.T.unflatten(1, problem.grid), problem.grid))


def share_of_features(patch_size: int, frames: int) -> Row:
    """Time of propagation against the features of the same frame, ViT-S in fp32: medians with a full context."""
    backbone = load_backbone(f"random:vit_small_patch{patch_size}_224").to(device())
    image = torch.rand(1, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    patches = backbone.extract(image).patches
    tokens = patches[0]
    labels = F.one_hot(torch.randint(0, 2, tokens.shape[1:]), 2).permute(2, 0, 1).float().to(device())
    noise = iter([tokens + 0.1 * torch.randn_like(tokens) for _ in range(CONTEXT + frames)])  # no two are equal
    propagator = LabelPropagator(PropagationProtocol())
    propagator.step(next(noise), labels)
    for _ in range(CONTEXT - 1):
        propagator.step(next(noise))
    features, ours = in_turn(lambda: backbone.extract(image), lambda: propagator.step(next(noise)), frames - 1)
    return Row(
        "propagation",
        f"features of a frame (plain) and its propagation (ours), ViT-S/{patch_size} fp32, {device().type}",
        features,
        ours,
        "s",
        target=1 / SHARE,
        check=f"share {ours / features:.3f}, to be at most {SHARE}",
    )


def main() -> list[Row]:
    rows = [row for patch_size in (16, 8) for row in speed_and_memory(Problem(patch_size))]
    rows += [share_of_features(16, 6), share_of_features(8, 3)]
    publish(rows)
    return rows


if __name__ == "__main__":
    main()
