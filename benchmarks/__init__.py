"""Benchmarks: a module for each speed claim compares the plain published implementation with ours.

`python -m benchmarks` runs all of them and prints one table; `python -m benchmarks.propagation` runs one.
"""
