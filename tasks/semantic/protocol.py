"""The constants of in-context segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Triple = tuple[float, float, float]
DISTANCES = ("cosine", "l2")


@dataclass(frozen=True)
class IncontextProtocol:
    """Memory and votes of patches (defaults: Hummingbird, arXiv 2306.01667, as open-hummingbird-eval runs it)"""

    size: int = 512
    """Side of the square that images are stretched to, pixels, cut to whole patches: 504 for patch 14."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """Resampling of images; masks are resized to the nearest pixel."""
    mean: Triple | None = (0.485, 0.456, 0.406)
    """RGB mean subtracted from images in [0, 1]; null for mean and std: those of the network."""
    std: Triple | None = (0.229, 0.224, 0.255)
    """RGB std images are divided by; open-hummingbird has 0.255 where ImageNet has 0.225."""
    augment: bool = True
    """Whether training images are cropped and their colors changed at random."""
    epochs: int = 2
    """Turns over the training images, each with new crops."""
    memory_size: int = 10_240_000
    """Largest number of patches in the memory (published: 1024 x 10^2, 10^3 or 10^4); 0: every patch. Each image gives
    the same number; patches of rare classes are more likely to be taken."""
    fraction: int = 1
    """Use a part of the training images: 8 means 1/8 (published: 8, 64, 128)."""
    draws: tuple[int, ...] = (42,)
    """Seeds, with a run for each; the score is the mean of the runs. A seed draws the part of the training images, the
    crops and the patches of the memory (published for the parts: 42, 400, 783, 1293, 4019)."""
    readout: Literal["soft", "vote"] = "soft"
    """How neighbors label a patch. soft: the mean of their shares of classes, weighted by a softmax of the cosines, and
    upsampled bilinearly to pixels; vote: for each pixel of the patch, the most frequent label (CAPI)."""
    void: Literal["background", "dropped"] = "background"
    """Treatment of pixels without a class in the memory. background: they become class 0. dropped: they are not
    counted, and a patch leaves the memory if it has no other pixel (with readout vote: if its most frequent label is
    not scored)."""
    standardize: bool = False
    """Whether each feature gets mean 0 and standard deviation 1 over the memory."""
    neighbors: tuple[int, ...] = (30,)
    """Number of patches that vote. If there are several numbers, a tenth of the training images chooses between
    them."""
    distance: tuple[str, ...] = ("cosine",)
    """cosine or l2. If both are given, a tenth of the training images chooses between them."""
    temperature: float = 0.02
    """With readout soft, a neighbor weighs exp(cosine / temperature)."""
    matching: Literal["own", "hungarian"] = "hungarian"
    """own: a prediction keeps its class; hungarian: predicted classes are matched to true ones so that mIoU is largest
    (open-hummingbird's default)."""
    absent: Literal["zero", "left out"] = "zero"
    """Treatment of a class that no pixel has and none is predicted to have. zero: its IoU counts as 0 in the mean; left
    out: it is not counted."""

    def __post_init__(self) -> None:
        for name in ("size", "epochs", "fraction"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 1 or more")
        if self.memory_size < 0 or self.temperature <= 0:
            raise ValueError(
                f"memory_size is {self.memory_size} and temperature {self.temperature}: expected 0 or more, and above 0"
            )
        if not self.neighbors or min(self.neighbors) < 1 or not self.draws:
            raise ValueError(
                f"neighbors {self.neighbors} and draws {self.draws}: expected numbers, neighbors of 1 or more"
            )
        if not self.distance or not set(self.distance) <= set(DISTANCES):
            raise ValueError(f"distance is {self.distance}: expected {' or '.join(DISTANCES)}, or both")
        if self.readout == "soft" and self.distance != ("cosine",):
            raise ValueError("readout soft weighs cosines: another --distance needs --readout vote")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")

    @property
    def choices(self) -> list[tuple[int, str]]:
        """Every (neighbors, distance), in CAPI's order."""
        return [(count, distance) for count in self.neighbors for distance in self.distance]
