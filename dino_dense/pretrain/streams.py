"""Streams of random numbers: each has its own first number of the key of `training.seeds.derive_seed`.

So different kinds of draws, and the plan's order (`seeds.ORDER`), use independent random numbers.
"""

CROPS, DROP_PATH, SUBSTITUTES, MASKS, ROTARY = 1, 2, 3, 4, 5
