"""Curves drawn by Pillow: a hundred times faster than Matplotlib, without its slow import."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dino_dense.arrays import Pixels

WIDTH, PANEL, LEGEND, LINE = 540, 150, 24, 12  # pixels: of the picture, of a panel, of a row of the legend, of text
LEFT, RIGHT, GAP, BOTTOM = 52, 12, 10, 34  # pixels around the panels
SMOOTH = 2  # drawn this many times larger, then reduced, for antialiasing
INK, GRID, PAPER = (60, 60, 60), (215, 215, 215), (255, 255, 255)
TICKS = (0, 25, 50, 75, 100)  # percent
MARGIN = 3.0  # percent, below 0 and above 100
MOST_TICKS = 8  # below a panel
COLUMNS = 5  # of the legend

Color = tuple[int, int, int]
Curves = Mapping[str, Sequence[float]]


def percent_curves(panels: Mapping[str, Curves], colors: Mapping[str, Color], x_label: str) -> Pixels:
    """RGB [H, 540, 3]: stacked panels with curves in percent over 1, 2, 3, ..., and a legend.

    Args:
        panels: label of a panel -> name of a curve -> its values, 0 to 100; NaN leaves a gap.
        colors: name of a curve -> RGB.
    """
    rows = -(-len(colors) // COLUMNS)
    height = LEGEND * rows + len(panels) * (PANEL + GAP) - GAP + BOTTOM
    canvas = _Canvas(height)
    for number, (name, color) in enumerate(colors.items()):
        row, column = divmod(number, COLUMNS)
        x, y = LEFT + column * (WIDTH - LEFT - RIGHT) / COLUMNS, (row + 0.5) * LEGEND
        canvas.line([(x, y), (x + 16, y)], color, 2)
        canvas.text((x + 21, y), name, "lm")
    length = max((len(values) for curves in panels.values() for values in curves.values()), default=1)
    for number, (label, curves) in enumerate(panels.items()):
        top = LEGEND * rows + number * (PANEL + GAP)
        _draw_panel(canvas, top, label, length, last=number == len(panels) - 1)
        for name, values in curves.items():
            _draw_curve(canvas, top, values, colors[name], length)
    canvas.text(((LEFT + WIDTH - RIGHT) / 2, height - 8), x_label, "mm")
    return canvas.pixels()


class _Canvas:
    """A white picture, drawn at larger size; coordinates refer to the final picture."""

    def __init__(self, height: int) -> None:
        self.image = Image.new("RGB", (SMOOTH * WIDTH, SMOOTH * height), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.font = ImageFont.load_default(SMOOTH * LINE)

    def line(self, points: Sequence[tuple[float, float]], color: Color, width: float) -> None:
        scaled = [(SMOOTH * x, SMOOTH * y) for x, y in points]
        self.draw.line(scaled, color, round(SMOOTH * width), joint="curve")

    def text(self, point: tuple[float, float], text: str, anchor: str) -> None:
        self.draw.text((SMOOTH * point[0], SMOOTH * point[1]), text, INK, self.font, anchor)

    def pixels(self) -> Pixels:
        return np.asarray(self.image.reduce(SMOOTH), np.uint8)


def _x(position: float, length: int) -> float:
    """The x coordinate of position 1, 2, ... of a curve, pixels."""
    inset = 8
    return LEFT + inset + (position - 1) / max(length - 1, 1) * (WIDTH - LEFT - RIGHT - 2 * inset)


def _y(value: float, top: float) -> float:
    return top + PANEL - (value + MARGIN) / (100 + 2 * MARGIN) * PANEL


def _draw_panel(canvas: _Canvas, top: float, label: str, length: int, *, last: bool) -> None:
    """Draw frame, grid and numbers; for the last panel also the numbers of the x axis."""
    left, right, bottom = LEFT, WIDTH - RIGHT, top + PANEL
    for tick in TICKS:
        canvas.line([(left, _y(tick, top)), (right, _y(tick, top))], GRID, 1)
        canvas.text((left - 5, _y(tick, top)), str(tick), "rm")
    for position in _ticks(length):
        canvas.line([(_x(position, length), top), (_x(position, length), bottom)], GRID, 1)
        if last:
            canvas.text((_x(position, length), bottom + 4), str(position), "mt")
    canvas.line([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], INK, 1)
    canvas.text((4, top + PANEL / 2), label, "lm")


def _draw_curve(canvas: _Canvas, top: float, values: Sequence[float], color: Color, length: int) -> None:
    points = [(_x(position, length), _y(value, top)) for position, value in enumerate(values, 1)]
    run: list[tuple[float, float]] = []
    for point, value in zip([*points, (0.0, 0.0)], [*values, float("nan")], strict=True):
        if not np.isnan(value):
            run.append(point)
            continue
        if len(run) == 1:  # a dot
            run.append((run[0][0] + 1.5, run[0][1]))
        if run:
            canvas.line(run, color, 1.5)
        run = []


def _ticks(length: int) -> list[int]:
    """Positions of ticks: 1, and multiples of the smallest round step with at most `MOST_TICKS` ticks."""
    steps = (base * 10**power for power in range(7) for base in (1, 2, 5))
    step = next(step for step in steps if length // step <= MOST_TICKS)
    return [1, *(position for position in range(step, length + 1, step) if position > 1)]
