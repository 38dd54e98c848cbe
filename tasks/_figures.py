"""Pictures that go beside the numbers."""

from collections.abc import Hashable, Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from data.davis import PALETTE

Pixels = npt.NDArray[np.uint8]
STRIP_FRAMES = 5
STRIP_HEIGHT = 180  # pixels
FRAME_WIDTH = 6  # pixels
RIGHT, WRONG, PLAIN = (0, 158, 115), (213, 94, 0), (255, 255, 255)  # green and red that the colour-blind tell apart


def overlay(frame: Pixels, ids: Pixels, opacity: float = 0.5) -> Pixels:
    """Masks over a frame: frame RGB [H, W, 3], ids [H, W] -> RGB [H, W, 3], each object tinted and outlined."""
    tinted = frame.copy()
    objects = ids > 0
    tinted[objects] = (opacity * PALETTE[ids[objects]] + (1 - opacity) * frame[objects]).astype(np.uint8)
    for identity in np.unique(ids[objects]):
        contours, _ = cv2.findContours((ids == identity).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tinted, contours, -1, (255, 255, 255), 1)
    return tinted


def spread(items: Sequence[int], most: int = STRIP_FRAMES) -> list[int]:
    """At most `most` of the items, evenly spaced, first and last among them."""
    places = np.unique(np.linspace(0, len(items) - 1, most).round().astype(int))
    return [items[place] for place in places]


def worst_and_best_first(values: pd.Series) -> list[Hashable]:
    """Index labels by value: the lowest, the highest, the second lowest, and so on to the middle."""
    ranked = list(values.sort_values(kind="stable").index)
    pairs = zip(ranked, reversed(ranked), strict=True)
    return list(dict.fromkeys(label for pair in pairs for label in pair))


def mask_strip(path: Path, pairs: Sequence[tuple[Pixels, Pixels]]) -> None:
    """Write frames RGB [H, W, 3] with their masks (ids [H, W]), side by side, as one JPEG."""
    tiles = [overlay(frame, ids) for frame, ids in pairs]
    width = round(tiles[0].shape[1] * STRIP_HEIGHT / tiles[0].shape[0])
    strip = np.hstack([cv2.resize(tile, (width, STRIP_HEIGHT), interpolation=cv2.INTER_AREA) for tile in tiles])
    cv2.imwrite(str(path), cv2.cvtColor(strip, cv2.COLOR_RGB2BGR))


def curves(path: Path, values: pd.DataFrame, x: str) -> None:
    """Write columns over the index as one PNG: a panel a column, one above the other."""
    figure = Figure(figsize=(6, 2.2 * len(values.columns)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(values.columns), 1, sharex=True, squeeze=False)[:, 0]
    for panel, name in zip(panels, values.columns, strict=True):
        panel.plot(values.index, values[name], marker="." if len(values) < 30 else None)
        panel.set_ylabel(name)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel(x)
    figure.savefig(path, dpi=120)


def result_strip(path: Path, query: Pixels, results: Sequence[Pixels], right: Sequence[bool]) -> None:
    """Write a query and what was found for it, nearest first, side by side, as one JPEG.

    Images are RGB [H, W, 3] of any size; right ones have a green frame, wrong ones a red one.
    """
    colours = [PLAIN, *(RIGHT if answer else WRONG for answer in right)]
    tiles = []
    for image, colour in zip([query, *results], colours, strict=True):
        width = max(1, round(image.shape[1] * STRIP_HEIGHT / image.shape[0]))
        tile = cv2.resize(image, (width, STRIP_HEIGHT), interpolation=cv2.INTER_AREA)
        framed = np.full((STRIP_HEIGHT + 2 * FRAME_WIDTH, width + 2 * FRAME_WIDTH, 3), colour, np.uint8)
        framed[FRAME_WIDTH:-FRAME_WIDTH, FRAME_WIDTH:-FRAME_WIDTH] = tile
        tiles.append(framed)
    cv2.imwrite(str(path), cv2.cvtColor(np.hstack(tiles), cv2.COLOR_RGB2BGR))
