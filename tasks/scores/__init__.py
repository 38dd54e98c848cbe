"""Scores that are more than one line: each file is one published metric, on arrays, without a backbone."""
