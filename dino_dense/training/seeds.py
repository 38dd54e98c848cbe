"""Random numbers as a function of a key: a resumed or split run draws the same numbers."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

ORDER = 0
"""First number of the key for the order of `plan.Plan`. Every loop numbers its other streams from 1."""


def derive_seed(*key: int) -> int:
    """A seed in [0, 2^63) from all numbers of `key`, equal on every machine."""
    digest = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*key: int) -> torch.Generator:
    """A CPU generator with the seed of `key`."""
    return torch.Generator().manual_seed(derive_seed(*key))


def uniform(shape: tuple[int, ...], *key: int) -> Tensor:
    """Uniform numbers in [0, 1) of this shape, on the CPU, from `key` only."""
    return torch.rand(shape, generator=generator(*key))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and PyTorch's (CPU) generators in the block, and restore their states after it.

    For libraries that draw from all three, such as timm's augmentations.
    """
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
