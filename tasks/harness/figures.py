"""Pictures for reports."""

from __future__ import annotations

import io
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from data.masks import PALETTE
from dino_dense.arrays import Pixels
from dino_dense.files import write_bytes
from tasks.harness import plots

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

STRIP_FRAMES = 5
STRIP_HEIGHT = 180  # pixels
WIDEST = 8  # times its height
FRAME_WIDTH = 6  # pixels
MATCH_HEIGHT = 300  # pixels of a pair's images
GRID_TILE = 320  # pixels: the longer side of a tile
CAPTION_HEIGHT = 22  # pixels
RIGHT, WRONG, PLAIN = (0, 158, 115), (213, 94, 0), (255, 255, 255)  # distinguishable for color-blind people


def overlay(frame: Pixels, ids: Pixels, opacity: float = 0.5) -> Pixels:
    """Overlay masks: frame RGB [H, W, 3], ids [H, W] -> RGB [H, W, 3], each object tinted and outlined."""
    tinted = frame.copy()
    objects = ids > 0
    tinted[objects] = (opacity * PALETTE[ids[objects]] + (1 - opacity) * frame[objects]).astype(np.uint8)
    for identity in np.unique(ids[objects]):
        contours, _ = cv2.findContours((ids == identity).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tinted, contours, -1, (255, 255, 255), 1)
    return tinted


def evenly_spaced(items: Sequence[int], most: int = STRIP_FRAMES) -> list[int]:
    """At most `most` of the items, evenly spaced, including the first and last."""
    indices = np.unique(np.linspace(0, len(items) - 1, most).round().astype(int))
    return [items[index] for index in indices]


def worst_and_best_first(values: pd.Series) -> list[Hashable]:
    """Index labels by value: lowest, highest, second lowest, and so on to the middle."""
    ranked = list(values.sort_values(kind="stable").index)
    pairs = zip(ranked, reversed(ranked), strict=True)
    return list(dict.fromkeys(label for pair in pairs for label in pair))


def mask_strip(path: Path, pairs: Sequence[tuple[Pixels, Pixels]]) -> None:
    """Write frames RGB [H, W, 3] with their masks (ids [H, W]), side by side, as one JPEG."""
    strip(path, [overlay(frame, ids) for frame, ids in pairs])


def strip(path: Path, tiles: Sequence[Pixels]) -> None:
    """Write pictures RGB [H, W, 3] of one size side by side, as one JPEG."""
    width = _strip_width(tiles[0])
    small = [cv2.resize(tile, (width, STRIP_HEIGHT), interpolation=cv2.INTER_AREA) for tile in tiles]
    save(path, np.hstack(small))


def _strip_width(image: Pixels) -> int:
    """Width of an image in a strip by its aspect ratio, which is limited so that extreme images stay visible."""
    return min(max(1, round(image.shape[1] * STRIP_HEIGHT / image.shape[0])), WIDEST * STRIP_HEIGHT)


def curves(path: Path, values: pd.DataFrame, x: str) -> None:
    """Plot each column over the index in its own panel, as one PNG."""
    figure = _blank_figure(6, 2.2 * len(values.columns))
    panels = figure.subplots(len(values.columns), 1, sharex=True, squeeze=False)[:, 0]
    for panel, name in zip(panels, values.columns, strict=True):
        panel.plot(values.index, values[name], marker="." if len(values) < 30 else None)
        panel.set_ylabel(name)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel(x)
    _write_figure(path, figure, 120)


def sweep_lines(path: Path, table: pd.DataFrame, metrics: Sequence[str]) -> None:
    """Plot each metric of a sweep in its own panel, as one PNG, with bands of one standard error.

    Args:
        table: columns layer and size, and for each metric its values and, if known, "METRIC stderr". The x axis is the
            layer, with a line for each size; if there is one layer, the x axis is the size.
    """
    over_layers = table["layer"].nunique() > 1 or table["size"].isna().all()
    x, lines = ("layer", "size") if over_layers else ("size", "layer")
    figure = _blank_figure(7, 0.4 + 2.2 * len(metrics))
    panels = figure.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0]
    for panel, metric in zip(panels, metrics, strict=True):
        for name, rows in table.groupby(lines, dropna=False, sort=False):
            places, values = rows[x].astype(float), rows[metric].astype(float)
            label = f"{name} px" if over_layers else f"layer {name}"
            (line,) = panel.plot(places, values, marker=".", label=label)
            if (stderr := rows.get(f"{metric} stderr")) is not None:
                panel.fill_between(places, values - stderr, values + stderr, color=line.get_color(), alpha=0.15)
        panel.set_ylabel(metric)
        panel.grid(alpha=0.3)
    panels[-1].set_xlabel("layer" if over_layers else "size, pixels")
    panels[-1].set_xticks(sorted(set(table[x].astype(float))))
    if table[lines].nunique() > 1:
        panels[0].legend(ncols=4, fontsize="small")
    _write_figure(path, figure, 120)


def object_curves(path: Path, values: pd.DataFrame) -> None:
    """Write J and F of each object over the frames of one sequence as one PNG.

    Args:
        values: columns object, J and F, with a row for each frame and object, in the order of the frames.
    """
    objects = {f"object {identity}": rows for identity, rows in values.groupby("object")}
    tints = {name: PALETTE[int(name.split()[1])] for name in objects}
    colors = {name: (int(tint[0]), int(tint[1]), int(tint[2])) for name, tint in tints.items()}
    panels = {name: {label: (100 * rows[name]).tolist() for label, rows in objects.items()} for name in ("J", "F")}
    save(path, plots.percent_curves({f"{name} (%)": curves for name, curves in panels.items()}, colors, "frame"))


def result_strip(path: Path, query: Pixels, results: Sequence[Pixels], right: Sequence[bool]) -> None:
    """Write a query and its results, nearest first, side by side, as one JPEG.

    Images are RGB [H, W, 3] of any size. Correct results have a green frame, wrong results a red frame.
    """
    colors = [PLAIN, *(RIGHT if answer else WRONG for answer in right)]
    tiles = []
    for image, color in zip([query, *results], colors, strict=True):
        width = _strip_width(image)
        tile = cv2.resize(image, (width, STRIP_HEIGHT), interpolation=cv2.INTER_AREA)
        framed = np.full((STRIP_HEIGHT + 2 * FRAME_WIDTH, width + 2 * FRAME_WIDTH, 3), color, np.uint8)
        framed[FRAME_WIDTH:-FRAME_WIDTH, FRAME_WIDTH:-FRAME_WIDTH] = tile
        tiles.append(framed)
    save(path, np.hstack(tiles))


def match_strip(
    path: Path, source: Pixels, target: Pixels, points: npt.NDArray, predicted: npt.NDArray, right: npt.NDArray | None
) -> None:
    """Write two images side by side with a line from each point to where it was found, as one JPEG.

    Args:
        source, target: RGB [H, W, 3] of any size.
        points, predicted: (x, y) in pixels [P, 2] of the source and of the target.
        right: [P], green or red; None draws each point in a color of its own.
    """
    height = MATCH_HEIGHT
    scales = [height / image.shape[0] for image in (source, target)]
    tiles = [
        cv2.resize(image, (max(1, round(image.shape[1] * scale)), height), interpolation=cv2.INTER_AREA)
        for image, scale in zip((source, target), scales, strict=True)
    ]
    canvas = np.ascontiguousarray(np.hstack(tiles))
    for number, (start, end) in enumerate(zip(points, predicted, strict=True)):
        color = point_color(number) if right is None else RIGHT if right[number] else WRONG
        a = (round(start[0] * scales[0]), round(start[1] * scales[0]))
        b = (round(end[0] * scales[1]) + tiles[0].shape[1], round(end[1] * scales[1]))
        cv2.line(canvas, a, b, color, 1, cv2.LINE_AA)
        for point in (a, b):
            cv2.circle(canvas, point, 4, color, -1, cv2.LINE_AA)
            cv2.circle(canvas, point, 4, PLAIN, 1, cv2.LINE_AA)
    save(path, np.asarray(canvas, np.uint8))


def tracks_over(
    rgb: Pixels, trails: npt.NDArray, colors: Sequence[tuple[int, int, int]], hidden: npt.NDArray
) -> Pixels:
    """A frame RGB [H, W, 3] with the way of each point up to it.

    Args:
        trails: (x, y) in pixels [Q, t, 2]; the last is where the point is now.
        colors: RGB of each.
        hidden: [Q], drawn as a ring.
    """
    canvas = rgb.copy()
    for trail, color, ring in zip(np.round(trails).astype(int), colors, hidden, strict=True):
        cv2.polylines(canvas, [trail.reshape(-1, 1, 2)], isClosed=False, color=color, thickness=1, lineType=cv2.LINE_AA)
        center = (int(trail[-1, 0]), int(trail[-1, 1]))
        cv2.circle(canvas, center, 4, color, 1 if ring else -1, cv2.LINE_AA)
    return canvas


def point_color(number: int) -> tuple[int, int, int]:
    """A color for the n-th point, from 0."""
    red, green, blue = (int(channel) for channel in PALETTE[1 + number % 254])
    return red, green, blue


def _blank_figure(width: float, height: float) -> Figure:
    """A figure of this size in inches, without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _write_figure(path: Path, figure: Figure, dpi: int) -> None:
    encoded = io.BytesIO()
    figure.savefig(encoded, dpi=dpi)
    write_bytes(path, encoded.getvalue())


def save(path: Path | str, rgb: Pixels) -> Path:
    """Write RGB [H, W, 3] or gray [H, W] in the format of the file's suffix, atomically; creates the folder.

    Returns:
        The path.

    Raises:
        ValueError: OpenCV has no format for the suffix, or the picture is too large for it.
        WriteError: the file cannot be written.
    """
    path = Path(path)
    if not cv2.haveImageWriter(str(path)):
        raise ValueError(f"{path}: {path.suffix or 'no ending'} is no format for pictures. Use .png or .jpg.")
    done, encoded = cv2.imencode(path.suffix, rgb if rgb.ndim == 2 else cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    if not done:
        raise ValueError(f"{path}: {rgb.shape[1]}x{rgb.shape[0]} pixels do not go into a {path.suffix}. Use .png.")
    write_bytes(path, encoded.tobytes())
    return path


def enlarge(tiles: Pixels, size: tuple[int, int]) -> Pixels:
    """A picture of patches [h, w, ...] enlarged to `size` (H, W) without interpolation: a flat tile for each patch."""
    return np.asarray(cv2.resize(tiles, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)


def shrink(rgb: Pixels, size: tuple[int, int]) -> Pixels:
    """RGB [H, W, 3] at another size (height, width)."""
    return np.asarray(cv2.resize(rgb, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def heat(values: npt.NDArray, size: tuple[int, int], low: float | None = None, high: float | None = None) -> Pixels:
    """Values [h, w] as colors RGB [H, W, 3], dark for the lowest, yellow for the highest.

    Args:
        low, high: limits of the scale; default: the range of the values.
    """
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    scaled = np.clip((values - low) / (high - low if high > low else 1.0), 0, 1)
    import matplotlib

    table = (255 * matplotlib.colormaps["inferno"](np.arange(256))[:, :3]).round().astype(np.uint8)
    return enlarge(table[(255 * scaled).round().astype(np.uint8)], size)


def heat_over(rgb: Pixels, values: npt.NDArray, low: float | None = None, high: float | None = None) -> Pixels:
    """`heat` blended with the image RGB [H, W, 3], half and half."""
    return cv2.addWeighted(rgb, 0.5, heat(values, (rgb.shape[0], rgb.shape[1]), low, high), 0.5, 0).astype(np.uint8)


def grid(tiles: Sequence[tuple[str, Pixels]], columns: int) -> Pixels:
    """Pictures of one size with captions, in rows of `columns`; missing pictures of the last row are white."""
    height, width = tiles[0][1].shape[:2]
    scale = min(1.0, GRID_TILE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    cells = []
    for caption, rgb in tiles:
        cell = np.full((size[1] + CAPTION_HEIGHT, size[0] + 4, 3), 255, np.uint8)
        cv2.putText(cell, caption, (2, CAPTION_HEIGHT - 7), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0), 1, cv2.LINE_AA)
        cell[CAPTION_HEIGHT:, 2:-2] = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        cells.append(cell)
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    return np.vstack([np.hstack(cells[start : start + columns]) for start in range(0, len(cells), columns)])


def with_cross(rgb: Pixels, point: tuple[int, int]) -> Pixels:
    """The image [H, W, 3] with a cross at a pixel (x, y)."""
    size = max(9, min(rgb.shape[:2]) // 16)
    out = rgb.copy()
    cv2.drawMarker(out, point, (0, 0, 0), cv2.MARKER_CROSS, size, 4)
    cv2.drawMarker(out, point, (255, 255, 255), cv2.MARKER_CROSS, size, 2)
    return out
