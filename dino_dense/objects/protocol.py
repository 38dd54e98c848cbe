"""The constants of object discovery in an image."""

from dataclasses import dataclass
from typing import Literal

CONFIDENCE = {
    "tokencut": "eigen-gap of the cut",
    "maskcut": "eigen-gap of the first cut",
    "lost": "share of patches unlike the seed",
    "attention": "concentration of the attention",
}
"""Meaning of a segment's confidence, by method."""


@dataclass(frozen=True)
class SegmentProtocol:
    """The constants of the methods"""

    features: Literal["keys", "patches"] = "keys"
    """Features that TokenCut, LOST and MaskCut compare: attention keys of the last block (their papers), or patch
    tokens (DINOv3, App. D.4). Networks without keys use their last map, as in LOST."""
    tau: float = 0.2
    """Two patches with a cosine above this are adjacent (TokenCut, MaskCut)."""
    eps: float = 1e-5
    """Weight between patches that are not adjacent (TokenCut, MaskCut)."""
    lost_k: int = 100
    """Patches of lowest degree among which LOST's seed expands (main_lost.py --k_patches)."""
    mass: float = 0.6
    """Share of the attention that its mask keeps (DINO: 0.6 in Fig. 4 and the text, 0.8 in App. D, both
    with the same numbers)."""
    short_side: int | None = None
    """Resize the image's short side to this first, pixels; default: the native size (the papers)."""
    squash: int | None = None
    """Resize both sides to this instead, pixels; changes the aspect ratio (visualize_attention.py, maskcut.py: 480)."""

    def __post_init__(self) -> None:
        if self.short_side is not None and self.squash is not None:
            raise ValueError(f"short_side is {self.short_side} and squash {self.squash}: expected one of them at most")
        for name in ("short_side", "squash"):
            if (pixels := getattr(self, name)) is not None and pixels < 1:
                raise ValueError(f"{name} is {pixels}: expected 1 pixel or more, or none for the native size")
        limits = {"tau": (-1, 1), "eps": (0, 1), "mass": (0, 1)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            inside = low < value < high or (name == "mass" and value == high)
            if not inside:
                raise ValueError(f"{name} is {value}: expected a number between {low} and {high}")
        if self.lost_k < 1:
            raise ValueError(f"lost_k is {self.lost_k}: expected 1 patch or more")
