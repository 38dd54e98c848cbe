"""The constants of point tracking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SIDE = 256
"""Pixels of the square frames in which points are given, and distances measured (TAP-Vid)."""


@dataclass(frozen=True)
class TrackingProtocol:
    """Constants of point tracking; the defaults are those of zero-shot tracking (preset `first`)."""

    mode: Literal["first", "strided"] = "first"
    """first: each point from the first frame that shows it, scored in later frames; strided: from every fifth frame,
    scored in all others."""
    grid: int = 32
    """Patches on a side of a frame; the network input has as many patches (arXiv 2408.13575: 32)."""
    occlusion: Literal["cycle", "cosine"] = "cycle"
    """Rule that calls a point hidden, for the scores named (rule); no source has one. cycle: the most similar patch of
    the query's frame lies farther than `cycle_radius` from the query; cosine: the cosine is below `min_cosine`."""
    cycle_radius: float = 24.0
    """Largest distance of a visible point with occlusion cycle, pixels of the 256 x 256 frame."""
    min_cosine: float = 0.6
    """Smallest cosine of a visible point with occlusion cosine."""

    def __post_init__(self) -> None:
        if self.grid < 1:
            raise ValueError(f"grid is {self.grid}: expected 1 or more")
        if self.cycle_radius <= 0:
            raise ValueError(f"cycle_radius is {self.cycle_radius}: expected more than 0")
        if not -1 <= self.min_cosine <= 1:
            raise ValueError(f"min_cosine is {self.min_cosine}: expected a number from -1 to 1")
