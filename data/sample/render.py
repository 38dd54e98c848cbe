"""Draws the pictures of the embedded data set: textured, deforming sprites on textured grounds.

All random quantities come from the given generator, so a seed determines a picture.
Color does not depend on the kind of an object: hue and lightness are random everywhere, and the ground often has the
object's own colors. Only surface pattern and outline distinguish kinds.

Shapes: canvas [H, W, 3] float32 RGB in [0, 1]; fields (textures, coordinates) [H, W] float32;
masks [H, W] bool. Lengths are pixels, angles radians, time runs from 0 to 1 over a sequence.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from data.arrays import Mask

Field = npt.NDArray[np.floating]
Canvas = npt.NDArray[np.float32]
Affine = npt.NDArray[np.float64]
Palette = npt.NDArray[np.float32]
"""[2, 3] CIE Lab: the dark and the light color of one surface."""

TAU = 2 * np.pi


# --- Surface patterns: period 1 in (u, v), above 0 = light color, below 0 = dark color ------------------


def _stripes(u: Field, v: Field, rng: np.random.Generator) -> Field:
    return np.sin(TAU * u)


def _checker(u: Field, v: Field, rng: np.random.Generator) -> Field:
    return 2 * np.sin(np.pi * u * 1.4) * np.sin(np.pi * v * 1.4)


def _spots(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Dots on a hexagonal grid: three plane waves 120 degrees apart."""
    waves = [np.cos(TAU * (u * np.cos(angle) + v * np.sin(angle))) for angle in (0, TAU / 3, 2 * TAU / 3)]
    return np.sum(waves, axis=0) - 0.5


def _rings(u: Field, v: Field, rng: np.random.Generator) -> Field:
    return np.cos(TAU * np.hypot(u, v))


def _zigzag(u: Field, v: Field, rng: np.random.Generator) -> Field:
    return np.sin(TAU * (u + np.abs(np.mod(0.5 * v, 1) - 0.5) * 2))


def _bricks(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Bricks of 2 x 1 in running bond; the joints are dark."""
    across = np.mod(u / 2 + 0.5 * np.mod(np.floor(v), 2), 1)
    along = np.mod(v, 1)
    to_joint = np.minimum(np.minimum(along, 1 - along), 2 * np.minimum(across, 1 - across))
    return 6 * (to_joint - 0.15)


def _scales(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Fish scales: discs of radius 1/2 in rows half a period apart, each row over the one before."""
    row = np.floor(2 * v)
    below = v - row / 2
    near = np.hypot(np.mod(u + 0.5 * np.mod(row, 2), 1) - 0.5, below)
    far = np.hypot(np.mod(u + 0.5 * np.mod(row + 1, 2), 1) - 0.5, below + 0.5)
    return 1.2 - 4 * np.where(near < 0.5, near, far - 0.25)


def _labyrinth(u: Field, v: Field, rng: np.random.Generator) -> Field:
    """Waves of one length from all sides: winding bands without a direction."""
    angles, phases = rng.uniform(0, np.pi, 9), rng.uniform(0, TAU, 9)
    pairs = zip(angles, phases, strict=True)
    waves = [np.cos(TAU * (u * np.cos(angle) + v * np.sin(angle)) + phase) for angle, phase in pairs]
    return np.sum(waves, axis=0) / 2


def _spokes(u: Field, v: Field, rng: np.random.Generator) -> Field:
    return 1.5 * np.sin(rng.integers(8, 12) * np.arctan2(v, u))


def _lattice(u: Field, v: Field, rng: np.random.Generator) -> Field:
    return 2 * (np.maximum(np.cos(TAU * u), np.cos(TAU * v)) - 0.55)


Pattern = Callable[[Field, Field, np.random.Generator], Field]
PATTERNS: dict[str, Pattern] = {
    "stripes": _stripes,
    "checker": _checker,
    "spots": _spots,
    "rings": _rings,
    "zigzag": _zigzag,
    "bricks": _bricks,
    "scales": _scales,
    "labyrinth": _labyrinth,
    "spokes": _spokes,
    "lattice": _lattice,
}
_CENTERED = ("rings", "spokes")  # patterns with a center, placed at the center of the object


# --- Outlines: radius over angle, at most about 1 ---------------------------------------------------------


def _polygon(angle: Field, corners: int) -> Field:
    return np.cos(np.pi / corners) / np.cos(np.mod(angle, TAU / corners) - np.pi / corners)


OUTLINES: dict[str, Callable[[Field], Field]] = {
    "disc": lambda a: np.full_like(a, 0.85),
    "square": lambda a: _polygon(a, 4),
    "triangle": lambda a: 1.15 * _polygon(a, 3),
    "star": lambda a: 0.6 + 0.8 * np.abs(np.mod(a * 5 / TAU, 1) - 0.5),
    "flower": lambda a: 0.78 + 0.2 * np.cos(6 * a),
    "gear": lambda a: 0.82 + 0.1 * np.tanh(3 * np.sin(9 * a)),
    "peanut": lambda a: 0.72 + 0.28 * np.cos(2 * a),
    "drop": lambda a: 0.58 + 0.42 * (0.5 + 0.5 * np.cos(a)) ** 3,
    "hexagon": lambda a: 0.98 * _polygon(a, 6),
    "cross": lambda a: 0.7 + 0.26 * np.cos(4 * a),
}

KINDS: dict[str, tuple[str, str]] = {
    f"{pattern}_{outline}": (pattern, outline)
    for pattern, outline in zip(
        PATTERNS,
        ("star", "square", "peanut", "flower", "drop", "hexagon", "triangle", "disc", "gear", "cross"),
        strict=True,
    )
}
"""Class name -> (surface pattern, outline)."""


# --- Color and ground ------------------------------------------------------------------------------------


def draw_palette(rng: np.random.Generator, near: Palette | None = None) -> Palette:
    """Two colors of random hue, 32 to 48 units of lightness apart; with `near`, colors close to that palette."""
    if near is not None:
        return near + rng.normal(0, (3, 6, 6), (2, 3)).astype(np.float32)
    lightness, contrast = rng.uniform(48, 60), rng.uniform(16, 24)
    hue = rng.uniform(0, TAU)
    hues = np.array([hue, hue + rng.uniform(-1.2, 1.2)])
    chroma = rng.uniform(8, 26, 2)
    colors = [[lightness - contrast, lightness + contrast], chroma * np.cos(hues), chroma * np.sin(hues)]
    return np.array(colors, np.float32).T


def paint(field: Field, palette: Palette) -> Canvas:
    """Field in [0, 1] -> RGB canvas between the two colors of the palette."""
    lab = palette[0] + field[..., None] * (palette[1] - palette[0])
    return np.clip(cv2.cvtColor(lab.astype(np.float32), cv2.COLOR_LAB2RGB), 0, 1)


def pattern_field(name: str, size: tuple[int, int], period: float, rng: np.random.Generator) -> Field:
    """Surface pattern on a (height, width) tile, in [0, 1], randomly shifted and rotated by a few degrees."""
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle = rng.uniform(-0.15, 0.15)
    shift = (0.0, 0.0) if name in _CENTERED else rng.uniform(0, 4, 2)
    x, y = (x - (width - 1) / 2) / period, (y - (height - 1) / 2) / period
    u = x * np.cos(angle) + y * np.sin(angle) + shift[0]
    v = y * np.cos(angle) - x * np.sin(angle) + shift[1]
    field = PATTERNS[name](u.astype(np.float32), v.astype(np.float32), rng)
    return (0.5 + 0.5 * np.tanh(1.8 * field)).astype(np.float32)


def ground_field(size: tuple[int, int], rng: np.random.Generator) -> Field:
    """Fractal noise, stretched along a random axis, in [0, 1], without any surface pattern of the objects."""
    height, width = size
    total = np.zeros(size, np.float32)
    stretch = np.exp(rng.uniform(-0.3, 0.3))
    for grain in (40, 20, 10, 5):  # pixels between the knots of an octave
        knots = (max(2, round(height / grain * stretch)), max(2, round(width / grain / stretch)))
        octave = rng.standard_normal(knots).astype(np.float32)
        total += cv2.resize(octave, (width, height), interpolation=cv2.INTER_CUBIC) * grain**0.25
    return (0.5 + 0.5 * np.tanh(total / (1.4 * total.std()))).astype(np.float32)


def relight(canvas: Canvas, gain: float, slope: tuple[float, float], warmth: float) -> Canvas:
    """Scale by `gain`, by a ramp across the picture and by a color temperature.

    `slope`: log of the gain at the right and at the lower edge. `warmth`: log of the gain of red and of 1 / blue.
    """
    height, width = canvas.shape[:2]
    ramp_x = np.linspace(-slope[0], slope[0], width, dtype=np.float32)
    ramp_y = np.linspace(-slope[1], slope[1], height, dtype=np.float32)
    light = gain * np.exp(ramp_x[None, :] + ramp_y[:, None])
    tint = np.exp(np.array([warmth, 0, -warmth], np.float32))
    return np.clip(canvas * light[..., None] * tint, 0, 1)


def to_bytes(canvas: Canvas, noise: float, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Canvas -> uint8 RGB with Gaussian sensor noise (standard deviation `noise`, in gray levels)."""
    grain = rng.standard_normal(canvas.shape, dtype=np.float32) * noise
    return np.clip(canvas * 255 + grain + 0.5, 0, 255).astype(np.uint8)


# --- Sprites ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sprite:
    """One object: its painted surface, and the deformation of its body over time."""

    surface: Canvas
    """[S, S, 3]: the texture of the body, with the same center."""
    outline: str
    radius: float
    lobes: tuple[float, float]
    """Relative swing of the radius in 2 and 3 lobes."""
    bend: float
    """Sideways swing of the body, pixels."""
    phase: float
    beats: float
    """Cycles of the deformation over a sequence."""


def make_sprite(
    kind: str, radius: float, period: float, palette: Palette, rng: np.random.Generator, bend: float = 0.09
) -> Sprite:
    """A sprite of one of `KINDS`; `radius` and the pattern's `period` in pixels, `bend` relative to the radius."""
    pattern, outline = KINDS[kind]
    side = int(3 * radius) | 1
    surface = paint(pattern_field(pattern, (side, side), period, rng), palette)
    lobes = (float(rng.uniform(0.03, 0.1)), float(rng.uniform(0.02, 0.07)))
    phase, beats = float(rng.uniform(0, TAU)), float(rng.uniform(0.8, 1.6))
    return Sprite(surface, outline, radius, lobes, bend * radius, phase, beats)


def pose(x: float, y: float, angle: float = 0.0, scale: float = 1.0) -> Affine:
    """3 x 3 map from body coordinates (origin in the body's middle) to the plane."""
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, x], [sin, cos, y], [0, 0, 1]])


def _body_coordinates(sprite: Sprite, placed: Affine, box: tuple[slice, slice], time: float) -> tuple[Field, Field]:
    """Coordinates of the box's pixels on the undeformed body."""
    inverse = np.linalg.inv(placed)
    y, x = np.mgrid[box].astype(np.float32)
    u = (inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]).astype(np.float32)
    v = (inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]).astype(np.float32)
    beat = sprite.phase + TAU * sprite.beats * time
    u = u + sprite.bend * np.sin(2.2 * v / sprite.radius + beat)
    v = v + 0.6 * sprite.bend * np.sin(2.6 * u / sprite.radius - beat)
    return u.astype(np.float32), v.astype(np.float32)


def body_points(sprite: Sprite, placed: Affine, points: npt.NDArray, time: float = 0.0) -> npt.NDArray[np.float64]:
    """Where points of the undeformed body [K, 2] lie in the plane, (x, y) [K, 2]: the inverse of what is drawn."""
    u, v = np.asarray(points, np.float64).T
    beat = sprite.phase + TAU * sprite.beats * time
    v = v - 0.6 * sprite.bend * np.sin(2.6 * u / sprite.radius - beat)
    u = u - sprite.bend * np.sin(2.2 * v / sprite.radius + beat)
    return np.asarray((placed[:2, :2] @ np.stack([u, v])).T + placed[:2, 2])


def marks(sprite: Sprite, count: int = 8, share: float = 0.6) -> npt.NDArray[np.float64]:
    """Points of the undeformed body [count + 1, 2]: its middle, and one in each direction within the outline.

    The same number is the same part of every sprite of a kind.
    """
    angles = TAU * np.arange(count) / count
    reach = share * sprite.radius * OUTLINES[sprite.outline](angles)
    return np.vstack([np.zeros((1, 2)), np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=1)])


def _bounding_box(shape: tuple[int, ...], placed: Affine, reach: float) -> tuple[slice, slice]:
    x, y = placed[:2, 2]
    reach *= float(np.hypot(placed[0, 0], placed[1, 0]))
    rows = slice(max(0, int(y - reach)), max(0, min(shape[0], int(y + reach) + 2)))
    columns = slice(max(0, int(x - reach)), max(0, min(shape[1], int(x + reach) + 2)))
    return rows, columns


def draw_sprite(canvas: Canvas, sprite: Sprite, placed: Affine, time: float = 0.0) -> Mask:
    """Draw the sprite into the canvas, in place, with a soft shadow. Returns its mask.

    The mask has the pixels whose center satisfies the outline's equation; only colors are antialiased.
    """
    mask = np.zeros(canvas.shape[:2], bool)
    box = _bounding_box(canvas.shape, placed, 1.6 * sprite.radius)
    if box[0].start >= box[0].stop or box[1].start >= box[1].stop:
        return mask
    u, v = _body_coordinates(sprite, placed, box, time)
    angle, distance = np.arctan2(v, u), np.hypot(u, v)
    beat = sprite.phase + TAU * sprite.beats * time
    swell = 1 + sprite.lobes[0] * np.cos(2 * angle + beat) + sprite.lobes[1] * np.cos(3 * angle - beat)
    inside = sprite.radius * OUTLINES[sprite.outline](angle) * swell - distance
    cover = np.clip(inside + 0.5, 0, 1).astype(np.float32)[..., None]
    middle = (sprite.surface.shape[0] - 1) / 2
    surface = cv2.remap(sprite.surface, u + middle, v + middle, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    shade = 0.72 + 0.28 * np.clip(inside / (0.45 * sprite.radius), 0, 1) ** 0.6
    shadow = cv2.GaussianBlur(cover, (0, 0), 0.08 * sprite.radius + 1)[..., None]
    ground = canvas[box] * (1 - 0.35 * shadow)
    canvas[box] = ground * (1 - cover) + surface * shade.astype(np.float32)[..., None] * cover
    mask[box] = inside >= 0
    return mask
