"""One module a speed claim: what the obvious implementation of the published method takes, and what ours takes.

`python -m benchmarks` runs all of them and prints one table; `python -m benchmarks.propagation` runs one.
"""
