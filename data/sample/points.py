"""Embedded data whose truth is points: what the renderer knows exactly. Each part is rendered when first asked for.

Coordinates are pixels; a pixel's center is a whole number.
"""

import dataclasses
import functools
import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data.masks import write_mask
from data.sample import render as render
from data.sample import rendered_root, write_jpeg
from data.sample.scenes import VAL_SCENES, exposed, sequence, tracked_sequence, two_palettes

PAIRS_VERSION = 1
"""Goes up whenever a pixel or a number of the pairs changes."""

_SIDE = 192  # pixels of the images of pairs
_IMAGES = 4  # of each category
_PAIRS_SEED = 5  # after those of the pictures
_TURNS, _SIZES = (0.35, 0.8), (1.15, 1.3)  # where a pair becomes harder: radians, ratio of radii


# --- Pairs with keypoints ---------------------------------------------------------------------------------


def sample_pairs(cache: Path | None = None, seed: int = 0) -> Path:
    """A tree in the layout of SPair-71k: six pairs of each of ten categories, nine keypoints."""
    return rendered_root(
        "pairs", {"version": PAIRS_VERSION, "seed": seed}, functools.partial(_render_pairs, seed), cache
    )


def _render_pairs(seed: int, root: Path) -> None:
    pairs = root / "PairAnnotation" / "test"
    pairs.mkdir(parents=True)
    number = itertools.count()
    for label, kind in enumerate(render.KINDS):
        for folder in ("JPEGImages", "ImageAnnotation"):
            (root / folder / kind).mkdir(parents=True)
        notes = []
        for index in range(_IMAGES):
            image, note = _with_keypoints(kind, np.random.default_rng([seed, _PAIRS_SEED, label, index]))
            name = f"{label}{index:03d}"
            write_jpeg(root / "JPEGImages" / kind / f"{name}.jpg", image)
            notes.append({"filename": f"{name}.jpg", "category": kind, **note})
            (root / "ImageAnnotation" / kind / f"{name}.json").write_text(json.dumps(notes[-1]))
        for source, target in itertools.combinations(notes, 2):
            pair = _pair(next(number), kind, source, target)
            (pairs / f"{pair['filename']}.json").write_text(json.dumps(pair))


def _with_keypoints(kind: str, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], dict]:
    """An image of one object, and its annotation; a keypoint outside the image is null."""
    surface, ground = two_palettes(rng)
    canvas = render.paint(render.ground_field((_SIDE, _SIDE), rng), ground)
    radius = _SIDE * rng.uniform(0.24, 0.4)
    sprite = render.make_sprite(kind, radius, rng.uniform(11, 17), surface, rng)
    x, y = _SIDE / 2 + rng.uniform(-0.3, 0.3, 2) * _SIDE
    turn = float(rng.uniform(-0.6, 0.6))
    placed = render.pose(x, y, turn)
    rows, columns = np.nonzero(render.draw_sprite(canvas, sprite, placed))
    points = np.round(render.body_points(sprite, placed, render.marks(sprite))).astype(int)
    inside: npt.NDArray[np.bool_] = np.all((points >= 0) & (points < _SIDE), axis=1)
    return exposed(canvas, rng), {
        "image_width": _SIDE,
        "image_height": _SIDE,
        "bndbox": [int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())],
        "kps": {
            str(index): point.tolist() if seen else None
            for index, (point, seen) in enumerate(zip(points, inside, strict=True))
        },
        "turn": turn,
        "radius": radius,
    }


def _pair(number: int, kind: str, source: dict, target: dict) -> dict:
    common = [key for key, point in source["kps"].items() if point and target["kps"][key]]
    turn = abs(source["turn"] - target["turn"])
    growth = max(source["radius"], target["radius"]) / min(source["radius"], target["radius"])
    names = [Path(note["filename"]).stem for note in (source, target)]
    ends = {
        f"{end}_{key}": value
        for end, note in (("src", source), ("trg", target))
        for key, value in (
            ("imname", note["filename"]),
            ("imsize", [_SIDE, _SIDE, 3]),
            ("bndbox", note["bndbox"]),
            ("kps", [note["kps"][key] for key in common]),
        )
    }
    return {
        "filename": f"{number:06d}-{names[0]}-{names[1]}:{kind}",
        "category": kind,
        "kps_ids": common,
        "viewpoint_variation": sum(turn > limit for limit in _TURNS),
        "scale_variation": sum(growth > limit for limit in _SIZES),
        **ends,
    }


# --- Tracks -----------------------------------------------------------------------------------------------

TRACKS_VERSION = 1
_TRACKS_SEED = 6
_TRACKED_FRAMES = 16
_TRACKED_SIDE = 256
TRACKED_SCENES = tuple(
    dataclasses.replace(scene, name=f"tracked-{scene.name}", size=(_TRACKED_SIDE, _TRACKED_SIDE), pan=20.0)
    for scene in VAL_SCENES[:3]
)


def sample_tracks(cache: Path | None = None, seed: int = 0) -> Path:
    """A pickle in TAP-Vid's form: three videos with points on their objects and on the ground."""
    identity = {"version": TRACKS_VERSION, "seed": seed}
    return rendered_root("tracks", identity, functools.partial(_render_tracks, seed), cache) / "tracks.pkl"


def _render_tracks(seed: int, root: Path) -> None:
    videos = {}
    ground = _TRACKED_SIDE * np.array([[0.12, 0.12], [0.5, 0.1], [0.88, 0.3], [0.15, 0.8], [0.55, 0.9], [0.85, 0.75]])
    for number, scene in enumerate(TRACKED_SCENES):
        scene_seed = [seed, _TRACKS_SEED, number]
        frames = list(tracked_sequence(scene, _TRACKED_FRAMES, scene_seed, _few_marks, ground))
        points = np.stack([frame.points for frame in frames], axis=1)  # [N, T, 2]
        videos[scene.name] = {
            "video": np.stack([frame.frame for frame in frames]),
            "points": ((points + 0.5) / _TRACKED_SIDE).astype(np.float32),  # TAP-Vid's pixels have their center at .5
            "occluded": ~np.stack([frame.visible for frame in frames], axis=1),
        }
    (root / "tracks.pkl").write_bytes(pickle.dumps(videos, protocol=4))


def _few_marks(sprite: render.Sprite) -> npt.NDArray[np.float64]:
    return render.marks(sprite, count=4, share=0.5)


# --- Joints -----------------------------------------------------------------------------------------------

JOINTS_VERSION = 1
_JOINTS_SEED = 7
_JOINTS = 15
_POSE_FRAMES = 10
POSE_SCENES = tuple(
    dataclasses.replace(scene, name=f"pose-{scene.name}", size=(200, 240), pan=10.0)
    for scene in VAL_SCENES
    if len(scene.objects) == 1
)


def sample_joints(cache: Path | None = None, seed: int = 0) -> Path:
    """A folder in the layout that CRW reads JHMDB in: three videos, fifteen joints on one body each."""
    identity = {"version": JOINTS_VERSION, "seed": seed}
    return rendered_root("joints", identity, functools.partial(_render_joints, seed), cache)


def _render_joints(seed: int, root: Path) -> None:
    from scipy.io import savemat

    lines = []
    for number, scene in enumerate(POSE_SCENES):
        frames = list(tracked_sequence(scene, _POSE_FRAMES, [seed, _JOINTS_SEED, number], _pose_marks))
        folder = root / "frames" / scene.name
        folder.mkdir(parents=True)
        for index, frame in enumerate(frames, start=1):
            write_jpeg(folder / f"{index:05d}.jpg", frame.frame)
        (root / "joints" / scene.name).mkdir(parents=True)
        positions = np.stack([frame.points for frame in frames]).transpose(2, 1, 0) + 1  # counted from 1
        savemat(root / "joints" / scene.name / "joint_positions.mat", {"pos_img": positions})
        lines.append(f"frames/{scene.name} joints/{scene.name}/joint_positions.mat\n")
    (root / "list.txt").write_text("".join(lines))


def _pose_marks(sprite: render.Sprite) -> npt.NDArray[np.float64]:
    return render.marks(sprite, count=_JOINTS - 1, share=0.75)


# --- Parts ------------------------------------------------------------------------------------------------

PARTS_VERSION = 1
_PARTS_SEED = 8
_PART_FRAMES = 8
PART_SCENES = tuple(
    dataclasses.replace(scene, name=f"parts-{scene.name}", size=(200, 280), pan=20.0)
    for scene in VAL_SCENES
    if len(scene.objects) > 1
)[:3]


def sample_parts(cache: Path | None = None, seed: int = 0) -> Path:
    """A tree in the layout of VIP: three videos, the class of a pixel is the kind of the object there (1 to 10)."""
    identity = {"version": PARTS_VERSION, "seed": seed}
    return rendered_root("parts", identity, functools.partial(_render_parts, seed), cache)


def _render_parts(seed: int, root: Path) -> None:
    kinds = list(render.KINDS)
    for number, scene in enumerate(PART_SCENES):
        classes = np.array([0, *(1 + kinds.index(kind) for kind in scene.objects)], np.uint8)
        (root / "Images" / scene.name).mkdir(parents=True)
        for index, (frame, ids) in enumerate(sequence(scene, _PART_FRAMES, [seed, _PARTS_SEED, number])):
            write_jpeg(root / "Images" / scene.name / f"{index:012d}.jpg", frame)
            write_mask(root / "Category_ids" / scene.name / f"{index:012d}.png", classes[ids])
    (root / "lists").mkdir()
    (root / "lists" / "val_videos.txt").write_text("".join(f"{scene.name}\n" for scene in PART_SCENES))


# --- Late objects -----------------------------------------------------------------------------------------

LATE_VERSION = 1
_LATE_SEED = 9
_LATE_FRAMES = 9
_LATE_STEP = 2  # every second frame is to be written
LATE_SCENES = tuple(
    dataclasses.replace(scene, name=f"late-{scene.name}", size=(200, 280), pan=20.0)
    for scene in VAL_SCENES
    if len(scene.objects) > 1
)[:3]


def sample_late_objects(cache: Path | None = None, seed: int = 0) -> Path:
    """A tree in the layout of YouTube-VOS: three videos, whose last object is given at frame 3; `truth` beside it."""
    identity = {"version": LATE_VERSION, "seed": seed}
    return rendered_root("late", identity, functools.partial(_render_late_objects, seed), cache)


def _render_late_objects(seed: int, root: Path) -> None:
    meta = {}
    for number, scene in enumerate(LATE_SCENES):
        late = len(scene.objects)
        folders = (
            root / "all_frames" / "valid_all_frames" / "JPEGImages",
            root / "valid" / "Annotations",
            root / "truth",
        )
        frames, given, truth = (folder / scene.name for folder in folders)
        frames.mkdir(parents=True)
        for index, (frame, ids) in enumerate(sequence(scene, _LATE_FRAMES, [seed, _LATE_SEED, number])):
            name = f"{index * 5:05d}"
            write_jpeg(frames / f"{name}.jpg", frame)
            write_mask(truth / f"{name}.png", ids)
            if index == 0:
                write_mask(given / f"{name}.png", np.where(ids == late, 0, ids).astype(np.uint8))
            elif index == 3:
                write_mask(given / f"{name}.png", np.where(ids == late, ids, 0).astype(np.uint8))
        named = [f"{index * 5:05d}" for index in range(0, _LATE_FRAMES, _LATE_STEP)]
        objects = {
            str(identity): {"frames": named if identity < late else named[2:]} for identity in range(1, late + 1)
        }
        meta[scene.name] = {"objects": objects}
    (root / "valid" / "meta.json").write_text(json.dumps({"videos": meta}))
