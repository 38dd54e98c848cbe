"""Streams of random numbers: the first number of a seed's key (`training.seeds.derive_seed`).

No two kinds of draws share random numbers, nor does one with the plan's order (`seeds.ORDER`).
"""

CROPS, DROP_PATH, SUBSTITUTES, MASKS = 1, 2, 3, 4
