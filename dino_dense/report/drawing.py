"""Line charts as parts of an SVG, which the page's template writes."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Line:
    """A line of a chart; a y that is NaN leaves a gap."""

    name: str
    x: Numbers
    y: Numbers
    low: Numbers = ()
    high: Numbers = ()
    """Ends of the error bars, as long as y, or ()."""


@dataclass(frozen=True)
class Chart:
    """Lines over one x axis."""

    title: str
    x_label: str
    lines: tuple[Line, ...]
    from_zero: bool = False
    """Whether the y axis includes 0."""


@dataclass(frozen=True)
class Curves:
    """A section of charts."""

    title: str
    text: str
    charts: tuple[Chart, ...]


# Geometry, in the units of the drawing: WIDTH x HEIGHT, y downwards.
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 36
COLORS = 8
STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)
DOTS = 40  # points of a line that are drawn as dots


@dataclass(frozen=True)
class Tick:
    """A tick of an axis: its position and number."""

    at: float
    text: str


@dataclass(frozen=True)
class DrawnLine:
    """A line as paths of an SVG."""

    name: str
    color: int
    path: str
    band: str
    """The area between the error bars; "" if there are none."""
    dots: tuple[tuple[float, float, str], ...]
    """x, y and text of each point; () for many points."""


@dataclass(frozen=True)
class Drawing:
    """A chart as parts of an SVG."""

    chart: Chart
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[DrawnLine, ...]
    said: str
    """The chart in words."""


def draw(chart: Chart) -> Drawing:
    """The drawing of a chart with at least one finite point on each axis; a chart without has no ticks."""
    xs = [x for line in chart.lines for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x) and _finite(y)]
    ys = [y for line in chart.lines for y in (*line.y, *line.low, *line.high) if _finite(y)]
    if not xs:
        return Drawing(chart, (), (), (), f"{chart.title}: no numbers")
    ys += [0.0] if chart.from_zero else []
    x_ends, y_ends = _widened(min(xs), max(xs), 0.03), _widened(min(ys), max(ys), 0.06)
    lines = tuple(_drawn(line, place, x_ends, y_ends) for place, line in enumerate(chart.lines))
    x_ticks = tuple(Tick(_x(value, x_ends), f"{value:g}") for value in ticks(*x_ends) if value == int(value))
    y_ticks = tuple(Tick(_y(value, y_ends), f"{value:g}".replace("-", "−")) for value in ticks(*y_ends))
    return Drawing(chart, x_ticks, y_ticks, lines, f"{chart.title} by {chart.x_label}: {_in_words(chart)}")


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers in a range: multiples of 1, 2, 2.5 or 5 times a power of ten, `most` + 1 at most."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(step * power for step in STEPS if (high - low) / (step * power) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 10) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _finite(value: float) -> bool:
    return math.isfinite(value)


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
    room = (high - low) * share or abs(high) * share or 1.0
    return low - room, high + room


def _x(value: float, ends: tuple[float, float]) -> float:
    return round(LEFT + (value - ends[0]) / (ends[1] - ends[0]) * (WIDTH - LEFT - RIGHT), 1)


def _y(value: float, ends: tuple[float, float]) -> float:
    return round(HEIGHT - BOTTOM - (value - ends[0]) / (ends[1] - ends[0]) * (HEIGHT - TOP - BOTTOM), 1)


def _drawn(line: Line, place: int, x_ends: tuple[float, float], y_ends: tuple[float, float]) -> DrawnLine:
    points = [(_x(x, x_ends), _y(y, y_ends) if _finite(y) else None) for x, y in zip(line.x, line.y, strict=True)]
    words = []
    for before, (x, y) in itertools.pairwise([(0.0, None), *points]):
        if y is not None:
            words.append(f"{'L' if before[1] is not None else 'M'}{x} {y}")
    dots: tuple[tuple[float, float, str], ...] = ()
    if len(points) <= DOTS:
        texts = [f"{line.name}, {x:g}: {y:.4g}" for x, y in zip(line.x, line.y, strict=True)]
        dots = tuple((x, y, text) for (x, y), text in zip(points, texts, strict=True) if y is not None)
    return DrawnLine(line.name, place % COLORS, "".join(words), _band(line, x_ends, y_ends), dots)


def _band(line: Line, x_ends: tuple[float, float], y_ends: tuple[float, float]) -> str:
    known = [ends for ends in zip(line.x, line.low, line.high, strict=False) if all(map(_finite, ends))]
    if len(known) < 2:
        return ""
    upper = [f"{_x(x, x_ends)} {_y(high, y_ends)}" for x, _, high in known]
    lower = [f"{_x(x, x_ends)} {_y(low, y_ends)}" for x, low, _ in reversed(known)]
    return f"M{'L'.join([*upper, *lower])}Z"


def _in_words(chart: Chart) -> str:
    words = []
    for line in chart.lines:
        known = [y for y in line.y if _finite(y)]
        if known:
            words.append(f"{line.name} from {known[0]:.4g} to {known[-1]:.4g}".strip())
    return "; ".join(words)
