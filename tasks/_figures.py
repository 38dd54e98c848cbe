"""Pictures that go beside the numbers."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from data.davis import PALETTE

Pixels = npt.NDArray[np.uint8]
STRIP_FRAMES = 5
STRIP_HEIGHT = 180  # pixels


def overlay(frame: Pixels, ids: Pixels, opacity: float = 0.5) -> Pixels:
    """Masks over a frame: frame RGB [H, W, 3], ids [H, W] -> RGB [H, W, 3], each object tinted and outlined."""
    tinted = frame.copy()
    objects = ids > 0
    tinted[objects] = (opacity * PALETTE[ids[objects]] + (1 - opacity) * frame[objects]).astype(np.uint8)
    for identity in np.unique(ids[objects]):
        contours, _ = cv2.findContours((ids == identity).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tinted, contours, -1, (255, 255, 255), 1)
    return tinted


def mask_strip(path: Path, read_frame: Callable[[int], Pixels], ids: Pixels) -> None:
    """Write evenly spaced frames of a video with their masks, side by side, as one JPEG.

    Args:
        read_frame: frame index -> RGB uint8 [H, W, 3].
        ids: object ids uint8 [T, H, W].
    """
    chosen = np.unique(np.linspace(0, len(ids) - 1, STRIP_FRAMES).round().astype(int))
    tiles = [overlay(read_frame(int(index)), ids[index]) for index in chosen]
    width = round(tiles[0].shape[1] * STRIP_HEIGHT / tiles[0].shape[0])
    strip = np.hstack([cv2.resize(tile, (width, STRIP_HEIGHT), interpolation=cv2.INTER_AREA) for tile in tiles])
    cv2.imwrite(str(path), cv2.cvtColor(strip, cv2.COLOR_RGB2BGR))
