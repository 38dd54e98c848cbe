"""Every draw is a function of the seed and of the place in the run, so that a resumed run makes the same ones."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

ORDER, AUGMENTATION, MIXING, DROP_PATH, HEAD = range(5)
"""First number of a seed's key (`derive_seed`), so that no two kinds of draws share random numbers."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and PyTorch's (CPU) generators begin at `seed` inside, and go on as before after it.

    timm's augmentations draw from all three.
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
