"""The constants of semantic correspondence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Rules = Literal["probe3d", "dift", "geoaware"]
ALPHAS = (0.05, 0.1, 0.15, 0.2)
"""Distances within which a match is right, in the longer side of the object's box."""


@dataclass(frozen=True)
class MatchProtocol:
    """Constants of the matching of points; the defaults are Probe3D's (preset `probe3d`)."""

    rules: Rules = "probe3d"
    """probe3d: padded with white on the right and below, bilinear query, nearest cell; dift: stretched, features at
    every pixel; geoaware: centered on black, the patch that holds the point, nearest patch."""
    image_size: int = 800
    """Side of the square network input, pixels, rounded to whole patches (Probe3D 800, DIFT 768, GeoAware 840)."""
    soft: bool = False
    """Only with rules geoaware: predict the mean of the cells around the best cell, weighted by a softmax of
    cosines."""

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}: expected 1 or more")
        if self.soft and self.rules != "geoaware":
            raise ValueError(f"soft is an option of the rules geoaware, not of {self.rules}: leave it out")
