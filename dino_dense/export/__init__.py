"""Carry a backbone out: `python -m dino_dense.export`. A file for each form that other programs open."""
