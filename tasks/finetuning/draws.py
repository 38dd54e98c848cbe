"""The streams of random numbers: each draw is a function of the seed and of its moment in the run."""

AUGMENTATION, MIXING, DROP_PATH, HEAD = 1, 2, 3, 4
"""First number of a seed's key (`derive_seed`), so that no two kinds of draws share random numbers, nor one with the
plan's order (`seeds.ORDER`)."""
