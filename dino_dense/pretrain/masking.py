"""Block masks over the patches of a crop (BEiT, arXiv 2106.08254, alg. 1), as in iBOT, DINOv2 and DINOv3.

Shapes: a crop has h x w patches; n crops in the whole batch.
"""

import math
import random
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dino_dense.pretrain import streams
from dino_dense.training.seeds import derive_seed, generator

Mask = npt.NDArray[np.bool_]

ASPECT = (0.3, 1 / 0.3)
"""Height / width of a block, drawn uniformly on a logarithmic scale (all three)."""
TRIES = 10
"""Failed blocks in a row before the mask is accepted as it is (all three)."""
SMALLEST = 4
"""Patches of the smallest block, before rounding (DINOv2, DINOv3)."""


def block_mask(
    grid: tuple[int, int], count: float, rng: random.Random, *, smallest: int = SMALLEST, largest: float = math.inf
) -> Mask:
    """Blocks, until `count` patches are masked or `TRIES` blocks in a row add none: bool [h, w], at most `count` true.

    Args:
        grid: (h, w).
        count: patches to mask.
        rng: source of random numbers.
        smallest, largest: patches of a block before its sides are rounded. iBOT: (min(h, w) // 3)² and no limit.
    """
    mask = np.zeros(grid, dtype=bool)
    left = count
    while left > 0:
        added = _add_block(mask, min(left, largest), smallest, rng)
        if not added:
            break
        left -= added
    return mask


def _add_block(mask: Mask, most: float, smallest: int, rng: random.Random) -> int:
    """Mask a block that adds 1 to `most` patches. Returns their number; 0 after `TRIES` blocks that do not fit."""
    h, w = mask.shape
    for _ in range(TRIES):
        area = rng.uniform(smallest, most)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height >= h or width >= w:
            continue
        top, left = rng.randint(0, h - height), rng.randint(0, w - width)
        block = mask[top : top + height, left : left + width]
        added = block.size - int(block.sum())
        if 0 < added <= most:
            block[:] = True
            return added
    return 0


def fill_up(mask: Mask, count: int, rng: random.Random) -> Mask:
    """The mask, with random patches added up to `count` (DINOv3)."""
    flat = mask.flatten()
    free = np.flatnonzero(~flat).tolist()
    flat[rng.sample(free, max(0, count - int(flat.sum())))] = True
    return flat.reshape(mask.shape)


def random_mask(grid: tuple[int, int], count: int, rng: random.Random) -> Mask:
    """`count` random patches: bool [h, w] (iBOT, --pred_shape rand)."""
    return fill_up(np.zeros(grid, dtype=bool), count, rng)


@dataclass(frozen=True)
class BatchMasks:
    """The masks of all global crops of a step: a function of (seed, step), independent of the split of the batch.

    A random share of the crops is masked. The range of ratios is divided into equal strata, one for each masked crop
    (DINOv2, data/collate.py).
    """

    grid: tuple[int, int]
    n_crops: int
    share: float
    """Share of the crops that are masked."""
    ratios: tuple[float, float]
    """Range of the share of masked patches in a masked crop."""
    style: Literal["dinov2", "dinov3"]
    """dinov2: a uniform ratio within the stratum, blocks only; dinov3: the upper end of the stratum, blocks filled up
    with random patches."""
    seed: int

    def counts(self, step: int) -> list[int]:
        """Number of patches to mask in each crop; 0 for an unmasked crop."""
        masked, patches = int(self.n_crops * self.share), math.prod(self.grid)
        edges = np.linspace(*self.ratios, masked + 1)
        rng = random.Random(derive_seed(streams.MASKS, self.seed, step))
        if self.style == "dinov2":
            ratios = [rng.uniform(low, high) for low, high in pairwise(edges)]
        else:
            ratios = edges[1:].tolist()
        counts = [int(patches * ratio) for ratio in ratios] + [0] * (self.n_crops - masked)
        order = torch.randperm(self.n_crops, generator=generator(streams.MASKS, self.seed, step))
        return [counts[number] for number in order.tolist()]

    def draw(self, step: int, crops: list[int]) -> Tensor:
        """The masks of these crops (indices in [0, n)): bool [len(crops), h * w]."""
        counts = self.counts(step)
        masks = [self._mask(counts[crop], step, crop) for crop in crops]
        return torch.from_numpy(np.stack(masks)).flatten(1)

    def _mask(self, count: int, step: int, crop: int) -> Mask:
        rng = random.Random(derive_seed(streams.MASKS, self.seed, step, crop))
        largest = math.prod(self.grid) * self.ratios[1]
        mask = block_mask(self.grid, count, rng, largest=largest)
        return fill_up(mask, count, rng) if self.style == "dinov3" else mask
