"""Scenes of the embedded data set: labeled stills, pairs of image and mask, and sequences.

Shapes: pictures [H, W, 3] uint8 RGB, label maps [H, W] uint8. Every picture has its own generator and seed, so it does
not depend on the number of other pictures.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from data.arrays import Pixels
from data.sample import render as render

Marks = Callable[[render.Sprite], npt.NDArray[np.float64]]

_DRAWS = 200  # layouts to try for a scene in which all objects stay visible
_MARGIN = 80  # pixels of ground beyond each edge of a frame, for the camera to move over
_SHARE_AT_FIRST = 0.02  # of frame 0 that each object covers: about 26 of the 1296 patches of 8 px
_SHARE_LATER = 0.006  # of the later frames that are checked: objects may be occluded, but not vanish


# --- Stills -----------------------------------------------------------------------------------------------


def two_palettes(rng: np.random.Generator) -> tuple[render.Palette, render.Palette]:
    """Palettes of object and ground: similar in two of three images, so that color does not identify the object."""
    surface = render.draw_palette(rng)
    return surface, render.draw_palette(rng, near=surface if rng.random() < 0.67 else None)


def exposed(canvas: render.Canvas, rng: np.random.Generator) -> Pixels:
    """Random light and sensor noise."""
    slope = (float(rng.uniform(-0.2, 0.2)), float(rng.uniform(-0.2, 0.2)))
    lit = render.relight(canvas, float(rng.uniform(0.75, 1.2)), slope, float(rng.normal(0, 0.06)))
    return render.to_bytes(lit, float(rng.uniform(1, 4)), rng)


def still(kind: str, side: int, rng: np.random.Generator) -> Pixels:
    """A labeled image [side, side, 3]: one object of the kind."""
    surface, ground = two_palettes(rng)
    canvas = render.paint(0.25 + 0.5 * render.ground_field((side, side), rng), ground)
    radius = side * rng.uniform(0.42, 0.54)
    sprite = render.make_sprite(kind, radius, side * rng.uniform(0.1, 0.14), surface, rng)
    x, y = side / 2 + rng.uniform(-0.06, 0.06, 2) * side
    render.draw_sprite(canvas, sprite, render.pose(x, y, rng.uniform(-0.35, 0.35)))
    return exposed(canvas, rng)


def saliency_pair(rng: np.random.Generator, size: tuple[int, int] = (180, 240)) -> tuple[Pixels, Pixels]:
    """An image [H, W, 3] of one or two objects and their mask [H, W], 0 or 255; `size` is (H, W), pixels."""
    height, width = size
    surface, ground = two_palettes(rng)
    canvas = render.paint(render.ground_field(size, rng), ground)
    mask = np.zeros(size, bool)
    for index in range(rng.integers(1, 3)):
        kind = str(rng.choice(list(render.KINDS)))
        sprite = render.make_sprite(kind, rng.uniform(35, 60), rng.uniform(9, 14), surface, rng)
        x, y = width * (0.35 + 0.3 * index) + rng.uniform(-20, 20), height / 2 + rng.uniform(-25, 25)
        mask |= render.draw_sprite(canvas, sprite, render.pose(x, y, rng.uniform(-0.6, 0.6)))
    return exposed(canvas, rng), mask.astype(np.uint8) * 255


# --- Sequences --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """The content of a sequence; positions, colors and paths come from the seed."""

    name: str
    objects: tuple[str, ...]
    """Kinds of the labeled objects; object 1 is drawn first, later objects are in front."""
    distractors: int = 1
    """Unlabeled objects in the colors of the scene, behind the labeled objects."""
    occluders: int = 0
    """Unlabeled objects in front of everything."""
    pan: float = 30.0
    """Distance that the camera travels, pixels."""
    zoom: float = 1.1
    """Magnification of the last frame relative to the first."""
    turn: float = 0.06
    """Rotation of the camera, radians."""
    gain: float = 0.75
    """Brightness of the last frame relative to the first."""
    slope: float = 0.25
    """Side light, as the log of the gain at the edge; it swings to the other side."""
    warmth: float = 0.0
    """Drift of the color temperature, as the log of the gain of red and of 1 / blue."""
    size: tuple[int, int] = (216, 384)
    """(height, width), pixels."""


VAL_SCENES = (
    Scene("starfish", ("stripes_star",), distractors=2, pan=40, gain=0.6),
    Scene("crossing", ("checker_square", "spots_peanut"), slope=0.35),
    Scene("trio", ("rings_flower", "bricks_hexagon", "zigzag_drop"), gain=0.8, warmth=0.12),
    Scene("hide-and-seek", ("labyrinth_disc",), occluders=2, pan=20),
    Scene("sunset", ("scales_triangle", "lattice_cross"), gain=0.6, warmth=0.25, zoom=1.2),
    Scene("lookalikes", ("spokes_gear",), distractors=3, slope=0.4),
    Scene("climbers", ("zigzag_drop", "stripes_star"), gain=0.7, turn=0.12, size=(384, 216)),
    Scene("shade", ("spots_peanut", "bricks_hexagon", "checker_square"), distractors=0, occluders=1, slope=0.5),
)
TRAIN_SCENES = (
    Scene("parade", ("lattice_cross", "rings_flower", "scales_triangle"), warmth=0.15),
    Scene("drifters", ("spokes_gear", "labyrinth_disc"), distractors=2, gain=0.65),
)


@dataclass(frozen=True)
class Actor:
    """A sprite on a path through the world."""

    sprite: render.Sprite
    label: int
    """0: not annotated."""
    start: tuple[float, float]
    end: tuple[float, float]
    sway: float
    """Pixels of a side-step across the path, to and fro once."""
    first_angle: float
    spin: float
    """Rotation until the last frame, radians."""
    growth: float
    """Scale of the last frame relative to the first."""

    def placed(self, time: float) -> render.Affine:
        """Pose in the world at a time in [0, 1]."""
        start, end = np.array(self.start), np.array(self.end)
        along = end - start
        across = np.array([-along[1], along[0]]) / np.linalg.norm(along)
        x, y = start + along * time + across * self.sway * np.sin(render.TAU * time)
        return render.pose(float(x), float(y), self.first_angle + self.spin * time, self.growth**time)


def _actor(
    scene: Scene, kind: str, label: int, palette: render.Palette, start: float, rng: np.random.Generator
) -> Actor:
    """An object that starts at a share `start` of the long side and travels 0.3 to 0.45 of it."""
    long, short = max(scene.size), min(scene.size)
    sprite = render.make_sprite(kind, rng.uniform(0.17, 0.23) * short, rng.uniform(9, 14), palette, rng)
    towards = 1.0 if start < 0.5 else -1.0
    shares = (start, start + towards * rng.uniform(0.3, 0.45))
    lanes = rng.uniform(0.25, 0.75, 2)
    path = [(share * long, lane * short) for share, lane in zip(shares, lanes, strict=True)]
    if scene.size[0] > scene.size[1]:
        path = [(y, x) for x, y in path]
    sway = rng.uniform(-0.1, 0.1) * short
    turns = rng.uniform(-0.6, 0.6, 2)
    return Actor(sprite, label, path[0], path[1], sway, turns[0], turns[1], rng.uniform(0.85, 1.2))


def _cast(scene: Scene, rng: np.random.Generator) -> tuple[list[Actor], render.Canvas]:
    """The actors, in drawing order, and the ground they move over."""
    colors = render.draw_palette(rng)
    slots = rng.permutation(np.linspace(0.18, 0.82, max(2, len(scene.objects))))
    named = [
        _actor(scene, kind, label, render.draw_palette(rng, colors), float(slots[label - 1]), rng)
        for label, kind in enumerate(scene.objects, start=1)
    ]
    others = [kind for kind in render.KINDS if kind not in scene.objects]
    extras = [
        _actor(scene, str(rng.choice(others)), 0, render.draw_palette(rng, colors), rng.uniform(0.1, 0.9), rng)
        for _ in range(scene.distractors + scene.occluders)
    ]
    size = (scene.size[0] + 2 * _MARGIN, scene.size[1] + 2 * _MARGIN)
    ground = render.paint(render.ground_field(size, rng), render.draw_palette(rng, colors))
    return extras[: scene.distractors] + named + extras[scene.distractors :], ground


@dataclass(frozen=True)
class _Stage:
    """A scene with all drawn objects."""

    scene: Scene
    actors: list[Actor]
    ground: render.Canvas
    heading: float
    """Direction of the camera's pan, radians."""

    def camera(self, time: float) -> render.Affine:
        """World -> frame at a time in [0, 1]: pan, then turn and zoom about the middle of the frame."""
        x, y = self.scene.size[1] / 2, self.scene.size[0] / 2
        half_way = time - 0.5
        shift = self.scene.pan * half_way
        panned = render.pose(shift * np.cos(self.heading) - x, shift * np.sin(self.heading) - y)
        return render.pose(x, y, self.scene.turn * half_way, self.scene.zoom**half_way) @ panned

    def drawn(self, time: float) -> tuple[render.Canvas, Pixels]:
        """The frame in even light, and who is seen in each pixel: 0 the ground, n the n-th actor."""
        height, width = self.scene.size
        camera = self.camera(time)
        ground_to_frame = (camera @ render.pose(-_MARGIN, -_MARGIN))[:2]
        canvas = cv2.warpAffine(self.ground, ground_to_frame, (width, height), borderMode=cv2.BORDER_REFLECT)
        seen = np.zeros(self.scene.size, np.uint8)
        for number, actor in enumerate(self.actors, start=1):
            seen[render.draw_sprite(canvas, actor.sprite, camera @ actor.placed(time), time)] = number
        return canvas, seen

    def labels(self, seen: Pixels) -> Pixels:
        """The label of who is seen in each pixel."""
        table = np.array([0, *(actor.label for actor in self.actors)], np.uint8)
        return np.asarray(table[seen], np.uint8)

    def shoot(self, time: float) -> tuple[render.Canvas, Pixels]:
        """The frame in even light, and its label map."""
        canvas, seen = self.drawn(time)
        return canvas, self.labels(seen)

    def is_clear(self) -> bool:
        """Whether every labeled object is clearly visible in frame 0, and never vanishes later."""
        for time, least in ((0.0, _SHARE_AT_FIRST), (0.3, 0.0), (0.6, 0.0), (1.0, _SHARE_LATER)):
            counts = np.bincount(self.shoot(time)[1].ravel(), minlength=len(self.scene.objects) + 1)
            if counts[1:].min() < max(least, _SHARE_LATER) * counts.sum():
                return False
        return True


def _set_stage(scene: Scene, seed: list[int]) -> _Stage:
    """Draw layouts until one is clear."""
    for draw in range(_DRAWS):
        rng = np.random.default_rng([*seed, draw])
        stage = _Stage(scene, *_cast(scene, rng), heading=rng.uniform(0, render.TAU))
        if stage.is_clear():
            return stage
    raise ValueError(f"scene {scene.name!r}, seed {seed}: none of {_DRAWS} layouts keeps all objects in view")


class TrackedFrame(NamedTuple):
    """A frame of a sequence with points on its objects and on the ground."""

    frame: Pixels
    """[H, W, 3]"""
    labels: Pixels
    """[H, W], ids 0..n."""
    points: npt.NDArray[np.float64]
    """[N, 2]: x, y in pixels, also outside the frame."""
    visible: npt.NDArray[np.bool_]
    """[N]: inside the frame, and nothing is in front."""


def sequence(scene: Scene, frames: int, seed: list[int]) -> Iterator[tuple[Pixels, Pixels]]:
    """Yields (frame [H, W, 3], labels [H, W] with ids 0..n); the light changes over the sequence."""
    for tracked in tracked_sequence(scene, frames, seed):
        yield tracked.frame, tracked.labels


def tracked_sequence(
    scene: Scene,
    frames: int,
    seed: list[int],
    marks: Marks | None = None,
    ground: npt.NDArray[np.float64] | None = None,
) -> Iterator[TrackedFrame]:
    """`sequence`, with where points of its labeled objects and of the ground are.

    Args:
        marks: points of a labeled object's undeformed body [K, 2]; without it there are none.
        ground: points (x, y) of the first frame [G, 2] that the camera carries away; they come last.
    """
    stage = _set_stage(scene, seed)
    rng = np.random.default_rng(seed)
    side = rng.uniform(0, render.TAU)
    world = _on_ground(stage, ground)
    for time in np.linspace(0, 1, frames):
        canvas, seen = stage.drawn(float(time))
        swing = scene.slope * np.cos(np.pi * time)
        slope = (float(swing * np.cos(side)), float(swing * np.sin(side)))
        lit = render.relight(canvas, scene.gain**time, slope, scene.warmth * (time - 0.5))
        points, owners = _points_at(stage, float(time), marks, world)
        visible = _is_seen(points, owners, seen)
        yield TrackedFrame(render.to_bytes(lit, 2.5, rng), stage.labels(seen), points, visible)


def _on_ground(stage: _Stage, ground: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float64]:
    """Points of the first frame (x, y) [G, 2] in the world."""
    if ground is None:
        return np.zeros((0, 2))
    inverse = np.linalg.inv(stage.camera(0.0))
    return np.asarray(ground @ inverse[:2, :2].T + inverse[:2, 2])


def _points_at(
    stage: _Stage, time: float, marks: Marks | None, world: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Points in the frame (x, y) [N, 2], and the number of the actor that each is on, 0 for the ground."""
    camera = stage.camera(time)
    points, owners = [], list[int]()
    for number, actor in enumerate(stage.actors, start=1):
        if actor.label and marks is not None:
            on_body = marks(actor.sprite)
            points.append(render.body_points(actor.sprite, camera @ actor.placed(time), on_body, time))
            owners += [number] * len(on_body)
    points.append(world @ camera[:2, :2].T + camera[:2, 2])
    return np.concatenate(points), np.array(owners + [0] * len(world), np.int64)


def _is_seen(points: npt.NDArray[np.float64], owners: npt.NDArray[np.int64], seen: Pixels) -> npt.NDArray[np.bool_]:
    """Which points [N, 2] lie inside the frame where their owner is seen."""
    column, row = np.round(points).astype(np.int64).T
    inside = (column >= 0) & (column < seen.shape[1]) & (row >= 0) & (row < seen.shape[0])
    visible: npt.NDArray[np.bool_] = np.zeros(len(points), bool)
    visible[inside] = seen[row[inside], column[inside]] == owners[inside]
    return visible
