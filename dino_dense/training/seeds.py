"""Random numbers as a function of a key: a resumed or a split run draws the same ones."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

ORDER = 0
"""First number of the key of `plan.Plan`'s order. Every loop numbers its other streams from 1."""


def derive_seed(*key: int) -> int:
    """A seed in [0, 2^63) that depends on every number of `key`, and is the same on every machine."""
    digest = hashlib.blake2b(",".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*key: int) -> torch.Generator:
    """A generator on the CPU that begins at the seed of `key`."""
    return torch.Generator().manual_seed(derive_seed(*key))


def uniform(shape: tuple[int, ...], *key: int) -> Tensor:
    """Numbers in [0, 1) of this shape, on the CPU, drawn from `key` alone."""
    return torch.rand(shape, generator=generator(*key))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and PyTorch's (CPU) generators begin at `seed` inside, and go on as before after it.

    For libraries that draw from all three, as timm's augmentations do.
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
