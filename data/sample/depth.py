"""Rooms with a floor, a far wall and standing objects, and the depth of every pixel, exactly.

A pinhole camera at a height above a level floor looks straight ahead: a point at depth z on the floor is drawn
height * focal / z pixels below the horizon. Depths are along the optical axis, as depth cameras give them.

    <root>/images/{train,val}/*.jpg
    <root>/depth/{train,val}/*.png      16 bits, millimeters
"""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from data.arrays import Pixels
from data.sample import render, rendered_root, write_jpeg

Depths = npt.NDArray[np.uint16]
"""Millimeters, [H, W], as the file has them."""

SIZE = (180, 240)
"""(height, width), pixels."""
TILE = 512  # side of a texture, pixels
TEXELS = 64  # pixels of texture a meter of floor
VERSION = 1
"""Goes up whenever a pixel changes."""
TRAIN, VAL = 40, 20  # pairs
MARGIN = 16  # pixels at the border of a tile that no lookup reaches


def _surface(rng: np.random.Generator) -> render.Canvas:
    """A tile of ground, [TILE, TILE, 3]."""
    return render.paint(render.ground_field((TILE, TILE), rng), render.draw_palette(rng))


def _mirrored(coordinate: render.Field) -> npt.NDArray[np.float32]:
    """Coordinates on an endless floor as those of a tile, which is mirrored at its borders."""
    span = TILE - 2 * MARGIN
    return (MARGIN + np.abs(np.mod(coordinate, 2 * span) - span)).astype(np.float32)


def depth_pair(rng: np.random.Generator) -> tuple[Pixels, Depths]:
    """An image [H, W, 3] and its depth in millimeters [H, W]: two to four objects on a floor, a wall behind them."""
    height, width = SIZE
    focal = 0.9 * width
    horizon = height * rng.uniform(0.3, 0.45)
    nearest, wall = rng.uniform(0.9, 1.4), rng.uniform(5.5, 9.0)
    rise = nearest * (height - horizon)  # camera height times focal length: depth = rise / rows below the horizon
    y, x = np.mgrid[:height, :width].astype(np.float32)
    below = np.maximum(y + 0.5 - horizon, 1e-3)
    depth = np.minimum(rise / below, wall).astype(np.float32)
    on_floor = rise / below < wall
    across = (x - width / 2) * depth / focal
    along = np.where(on_floor, depth, (y - horizon) * depth / focal)
    canvas = np.where(
        on_floor[..., None],
        cv2.remap(_surface(rng), _mirrored(TEXELS * across), _mirrored(TEXELS * along), cv2.INTER_LINEAR),
        cv2.remap(_surface(rng), _mirrored(TEXELS * across), _mirrored(TEXELS * along), cv2.INTER_LINEAR),
    ).astype(np.float32)
    _stand_objects(canvas, depth, horizon, rise, focal, wall, rng)
    haze = np.exp(-depth / 12)[..., None]
    canvas = canvas * haze + 0.55 * (1 - haze)
    lit = render.relight(canvas.astype(np.float32), float(rng.uniform(0.8, 1.15)), (0.0, 0.0), 0.0)
    return render.to_bytes(lit, 2.0, rng), np.round(1000 * depth).astype(np.uint16)


def _stand_objects(
    canvas: render.Canvas,
    depth: npt.NDArray[np.float32],
    horizon: float,
    rise: float,
    focal: float,
    wall: float,
    rng: np.random.Generator,
) -> None:
    """Draw objects of 0.25 to 0.4 m radius at their depths, far ones first; canvas and depth are changed in place."""
    for distance in sorted(rng.uniform(1.6, 0.8 * wall, rng.integers(2, 5)), reverse=True):
        radius = float(rng.uniform(0.25, 0.4) * focal / distance)
        kind = str(rng.choice(list(render.KINDS)))
        sprite = render.make_sprite(kind, radius, max(4.0, 0.3 * radius), render.draw_palette(rng), rng)
        x = float(rng.uniform(0.1, 0.9) * canvas.shape[1])
        y = horizon + rise / distance - radius
        mask = render.draw_sprite(canvas, sprite, render.pose(x, y, float(rng.uniform(-0.3, 0.3))))
        depth[mask] = distance


def depth_root(cache: Path | None = None, seed: int = 0) -> Path:
    """Root of the embedded depth pairs, rendered on the first call; kept as `sample_root` keeps its data."""
    return rendered_root("depth", {"version": VERSION, "seed": seed}, lambda root: _render(root, seed), cache)


def _render(root: Path, seed: int) -> None:
    for split, count, first in (("train", TRAIN, 0), ("val", VAL, TRAIN)):
        images, depths = root / "images" / split, root / "depth" / split
        images.mkdir(parents=True)
        depths.mkdir(parents=True)
        for index in range(first, first + count):
            image, depth = depth_pair(np.random.default_rng([seed, index]))
            write_jpeg(images / f"{index:05d}.jpg", image)
            Image.fromarray(depth).save(depths / f"{index:05d}.png")
