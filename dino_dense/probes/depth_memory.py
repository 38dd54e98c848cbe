"""Depth without training: a patch gets the depths of the most similar patches of training images (Hummingbird).

Shapes: B images, H x W pixels, h x w patches, D channels, M rows of the memory.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dino_dense import Backbone, distributed
from dino_dense.neighbors.incontext import soft_labels
from dino_dense.probes.depth_training import PictureWithDepth, padding_of, training_batches
from dino_dense.probes.protocol import DepthProbe
from dino_dense.progress import tracked
from dino_dense.training.seeds import uniform

SAMPLED = 1  # stream of random numbers


class DepthMemory:
    """Tokens [B, D, h, w] -> meters [B, 1, h, w]: the depths of the nearest rows, weighted by their similarity.

    Args:
        features: [M, D] of length 1.
        meters: [M].

    Raises:
        ValueError: the memory is empty, or has fewer rows than neighbors.
    """

    def __init__(self, features: Tensor, meters: Tensor, config: DepthProbe) -> None:
        if len(features) < config.neighbors:
            raise ValueError(
                f"{config.neighbors} neighbors of a memory of {len(features)} patches: lower --neighbors, or give more "
                "training images with depth."
            )
        self.features, self.meters, self.config = features, meters, config

    def __call__(self, tokens: Tensor) -> Tensor:
        queries = rearrange(tokens, "b d h w -> (b h w) d")
        nearest = soft_labels(
            queries,
            self.features,
            self.meters[:, None],
            neighbors=self.config.neighbors,
            temperature=self.config.temperature,
        )
        return rearrange(nearest, "(b h w) c -> b c h w", b=len(tokens), h=tokens.shape[-2])

    def size(self) -> str:
        """How large it is, for a person."""
        rows, width = self.features.shape
        return f"{rows:,} patches of {width} values, {4 * rows * width / 2**20:.1f} MiB"


def read_memory(
    backbone: Backbone,
    config: DepthProbe,
    pairs: Sequence[PictureWithDepth],
    *,
    world: distributed.World,
    seed: int,
    workers: int,
) -> DepthMemory:
    """The memory of the training images: of each, the same number of patches, drawn at random.

    A patch has the mean depth of its pixels that have one; patches without any are left out.

    Raises:
        ValueError: see `DepthMemory`; `memory_size` is less than a patch of each image.
    """
    if config.memory_size and config.memory_size < len(pairs):
        raise ValueError(
            f"the memory is empty: memory_size {config.memory_size} is less than a patch of each of {len(pairs)} "
            f"images. Raise --memory-size to {len(pairs)} or more."
        )
    batches = training_batches(backbone, config, pairs, world, seed, workers)
    first, parts = world.rank * -(-len(pairs) // world.size), []
    count = config.memory_size // len(pairs)
    for tokens, meters in tracked(batches, unit="batch", desc="memory", disable=not world.is_main):
        parts.append(sampled(tokens, patch_depths(meters, backbone.patch_size), count, seed, first))
        first += len(tokens)
    features, meters = (distributed.all_gather(torch.cat(part))[: len(pairs)] for part in zip(*parts, strict=True))
    known = meters > 0
    return DepthMemory(features[known], meters[known], config)


def sampled(tokens: Tensor, depths: Tensor, count: int, seed: int, first: int) -> tuple[Tensor, Tensor]:
    """Some patches of each image, of length 1 [B, n, D], and their depths [B, n], 0 for none.

    Args:
        tokens: [B, D, h, w].
        depths: [B, h, w] of `patch_depths`; patches with a depth are taken first.
        count: n; 0 takes all.
        first: number of the first image among all: the draw depends on the seed and the image alone.
    """
    features, meters = F.normalize(rearrange(tokens, "b d h w -> b (h w) d"), dim=-1), depths.flatten(1)
    patches = meters.shape[1]
    if not 0 < count < patches:
        return features, meters
    draws = torch.stack([uniform((patches,), seed, SAMPLED, first + image) for image in range(len(meters))])
    last = draws.to(meters.device).masked_fill(meters <= 0, 2)
    chosen = last.topk(count, dim=1, largest=False).indices
    return features.gather(1, chosen[..., None].expand(-1, -1, features.shape[-1])), meters.gather(1, chosen)


def patch_depths(meters: Tensor, patch: int) -> Tensor:
    """Mean depth of each patch [B, h, w] over the pixels of [B, H, W] that have one; 0 without any.

    The images are padded to whole patches as their tokens are.
    """
    padded = F.pad(meters, padding_of((meters.shape[-2], meters.shape[-1]), patch))
    total, known = (F.avg_pool2d(part[:, None], patch)[:, 0] for part in (padded, (padded > 0).to(padded.dtype)))
    return torch.where(known > 0, total / known.clamp_min(1e-9), 0)
