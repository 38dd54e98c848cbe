"""Streams of random numbers: each draw is a function of the seed and its position in the run."""

AUGMENTATION, MIXING, DROP_PATH, HEAD = 1, 2, 3, 4
"""First number of a seed's key (`derive_seed`), so that different kinds of draws, and the plan's order (`seeds.ORDER`),
use independent random numbers."""
