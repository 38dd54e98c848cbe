"""The constants of label propagation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Window = Literal["square", "circle", "open_circle"]


Rounding = Literal["floor64", "ceil", "nearest"]


Interpolation = Literal["bilinear", "bicubic"]


LabelEncoding = Literal["nearest", "bilinear", "nearest-exact"]


Upsample = Literal["bilinear", "nearest"]


UpsampleTo = Literal["frame", "original"]


Normalize = Literal["minmax", "none"]


@dataclass(frozen=True)
class PropagationProtocol:
    """All constants of a published label propagation; the defaults are DINO's (preset `dino`)."""

    context_frames: int = 7
    """Most recent frames used as context besides frame 0 (DINO and DINOv3 7, CRW 20)."""
    pad_context: bool = False
    """Repeat frame 0 until the recent context is full (CRW)."""
    radius: int = 12
    """Half-width of the window, in patches (DINO, DINOv3 and CRW: 12); 0: no window."""
    window: Window = "square"
    """Patches of a context frame that a patch is compared with. square: |dy| <= radius and |dx| <= radius (DINO);
    circle: distance <= radius (DINOv3); open_circle: distance < radius (CRW)."""
    window_on: Literal["all", "recent"] = "all"
    """Context frames to which the window applies. all (DINO, DINOv3); recent: all but frame 0, which is seen whole
    (CRW)."""
    top_k: int = 5
    """Most similar patches kept over the whole context (DINO and DINOv3 5, CRW 10)."""
    keep_ties: bool = True
    """Keep also all patches tied with the last kept (DINO, DINOv3), or exactly top_k (CRW)."""
    temperature: float = 0.1
    """Weights are exp(cosine / temperature) (DINO 0.1, CRW's README 0.05, DINOv3 0.2)."""
    short_side: int | None = 480
    """Pixels of the frame's shorter side; null: the frame's own size (DINO 480, DINOv3 960, CRW its own)."""
    rounding: Rounding = "floor64"
    """How the sides of a frame become multiples of the patch size. floor64: the long side is rounded down to a multiple
    of 64 pixels, then both sides down to whole patches (DINO); ceil: both sides are rounded up (DINOv3; CRW's grid);
    nearest: both sides to the nearest multiple."""
    interpolation: Interpolation = "bilinear"
    """Frame resizing: bilinear of OpenCV (DINO) or bicubic of PIL (DINOv3)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """RGB mean subtracted from frames in [0, 1] (ImageNet, all three)."""
    std: tuple[float, float, float] = (0.228, 0.224, 0.225)
    """RGB std that frames are divided by; DINO's script has 0.228, ImageNet 0.229."""
    label_encoding: LabelEncoding = "nearest"
    """First mask to patch grid: nearest of PIL (DINO), nearest-exact (DINOv3), or bilinear one-hot (CRW)."""
    upsample: Upsample = "bilinear"
    """Scores from patch grid to pixels: bilinear (DINO, CRW) or nearest (DINOv3)."""
    upsample_to: UpsampleTo = "frame"
    """Size at which the argmax is taken: the resized frame (DINO) or the original frame (CRW, DINOv3)."""
    normalize: Normalize = "minmax"
    """Scale each channel to [0, 1] over the frame before the argmax: minmax (DINO, DINOv3) or none (CRW)."""

    def __post_init__(self) -> None:
        for name, smallest in (("context_frames", 0), ("radius", 0), ("top_k", 1), ("short_side", 1)):
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise ValueError(f"{name} is {value}: expected {smallest} or more")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}: expected a number above 0")
        for name, allowed in _CHOICES.items():
            check_choice(name, getattr(self, name), allowed)
        for name in ("mean", "std"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name} is {getattr(self, name)}: expected three numbers, R, G and B")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}: expected numbers above 0")


_CHOICES: dict[str, tuple[str, ...]] = {
    "window": get_args(Window),
    "window_on": ("all", "recent"),
    "rounding": get_args(Rounding),
    "interpolation": get_args(Interpolation),
    "label_encoding": get_args(LabelEncoding),
    "upsample": get_args(Upsample),
    "upsample_to": get_args(UpsampleTo),
    "normalize": get_args(Normalize),
}


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}: expected one of {', '.join(allowed)}")


@dataclass(frozen=True)
class SquashedProtocol:
    """Label propagation as CRW does it on JHMDB and VIP: frames squashed to a square, frame 0 seen everywhere."""

    image_size: int = 320
    """Side of the square frames, pixels, rounded to whole patches (CRW: JHMDB 320, VIP 560)."""
    context_frames: int = 7
    """Most recent frames used as context besides frame 0, which fills it at first (CRW: JHMDB 7, VIP 4)."""
    radius: int = 12
    """Half-width of the round window in patches; 0 looks everywhere."""
    top_k: int = 10
    """Most similar patches kept over the whole context."""
    temperature: float = 0.05
    """Weights are exp(cosine / temperature)."""

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}: expected 1 or more")
        self.propagation()

    def propagation(self) -> PropagationProtocol:
        """All constants of the propagation itself; raises what they raise."""
        return PropagationProtocol(
            context_frames=self.context_frames,
            pad_context=True,
            radius=self.radius,
            window="open_circle",
            window_on="recent",
            top_k=self.top_k,
            keep_ties=False,
            temperature=self.temperature,
            std=(0.229, 0.224, 0.225),
        )
