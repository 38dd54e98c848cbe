"""The embedded data set: rendered once into a cache folder, then read like a real data set.

    <root>/davis/       a DAVIS-2017 tree (JPEGImages/480p, Annotations/480p, ImageSets/2017)
    <root>/images/      train/<class>/*.jpg and val/<class>/*.jpg
    <root>/saliency/    images/*.jpg and masks/*.png (0 and 255)
    <root>/video.mp4    the first validation sequence as a video file

Nothing is downloaded. `python -m data.sample [--out DIR] [--seed N]` prints the folder.
"""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import platformdirs
from PIL import Image
from tqdm import tqdm

from data.arrays import Pixels
from data.masks import write_mask
from data.sample.render import KINDS
from data.sample.scenes import TRAIN_SCENES, VAL_SCENES, saliency_pair, sequence, still

VERSION = 2
"""Raised with every change of a pixel: data of another version are never reused."""


CACHE_VARIABLE = "DINO_DENSE_CACHE"


_MARKER = "sample.json"


_JPEG_QUALITY = 92


_FRAMES_PER_SECOND = 12.0


_STALE_SECONDS = 3600.0  # rendering takes seconds: an older partial render is from a killed process


# First number of a picture's seed, after the seed of the data set.
_SEED_PARTS = {"train": 0, "val": 1, "saliency": 2, "davis val": 3, "davis train": 4}


@dataclass(frozen=True)
class SampleConfig:
    """Sizes and counts. The defaults are the embedded data set; tests render less."""

    train_per_class: int = 200
    val_per_class: int = 50
    image_size: int = 96
    """Side of the labeled images, pixels."""
    val_sequences: int = len(VAL_SCENES)
    train_sequences: int = len(TRAIN_SCENES)
    frames: int = 22
    """Frames per sequence."""
    saliency_pairs: int = 60

    def __post_init__(self) -> None:
        limits = {"val_sequences": len(VAL_SCENES), "train_sequences": len(TRAIN_SCENES)}
        for name, value in asdict(self).items():
            if not 1 <= value <= limits.get(name, value):
                raise ValueError(f"SampleConfig.{name} = {value}: expected 1 to {limits.get(name, 'any number')}")


@dataclass(frozen=True)
class SampleData:
    """Paths of the parts of a rendered data set."""

    root: Path

    @property
    def davis(self) -> Path:
        """A DAVIS-2017 tree."""
        return self.root / "davis"

    @property
    def images(self) -> Path:
        """Folder with train/<class>/ and val/<class>/."""
        return self.root / "images"

    @property
    def saliency(self) -> Path:
        """Folder with images/ and masks/ of the same names."""
        return self.root / "saliency"

    @property
    def video(self) -> Path:
        """One mp4 file."""
        return self.root / "video.mp4"


# --- Files ------------------------------------------------------------------------------------------------


def write_jpeg(path: Path, rgb: Pixels) -> None:
    """RGB [H, W, 3] as the embedded data keep it."""
    _, encoded = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    path.write_bytes(encoded.tobytes())


def _write_video(path: Path, frames: list[Pixels]) -> None:
    height, width = frames[0].shape[:2]
    codec = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), codec, _FRAMES_PER_SECOND, (width, height))
    if not writer.isOpened():
        raise OSError(f"{path}: this OpenCV cannot write MPEG-4; install the opencv-python wheel")
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()


def _render_images(root: Path, config: SampleConfig, seed: int, bar: tqdm) -> None:
    for split, count in (("train", config.train_per_class), ("val", config.val_per_class)):
        for label, kind in enumerate(KINDS):
            folder = root / split / kind
            folder.mkdir(parents=True)
            for index in range(count):
                rng = np.random.default_rng([seed, _SEED_PARTS[split], label, index])
                write_jpeg(folder / f"{index:05d}.jpg", still(kind, config.image_size, rng))
                bar.update()


def _render_saliency(root: Path, config: SampleConfig, seed: int, bar: tqdm) -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for index in range(config.saliency_pairs):
        image, mask = saliency_pair(np.random.default_rng([seed, _SEED_PARTS["saliency"], index]))
        write_jpeg(root / "images" / f"{index:05d}.jpg", image)
        Image.fromarray(mask).save(root / "masks" / f"{index:05d}.png")
        bar.update()


def render_davis(data: SampleData, config: SampleConfig, seed: int, bar: tqdm) -> None:
    """Render the tree, and the video of its first validation sequence."""
    splits = {"val": VAL_SCENES[: config.val_sequences], "train": TRAIN_SCENES[: config.train_sequences]}
    lists = data.davis / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    for split, scenes in splits.items():
        (lists / f"{split}.txt").write_text("".join(f"{scene.name}\n" for scene in scenes))
        for number, scene in enumerate(scenes):
            frames = []
            images, masks = (data.davis / part / "480p" / scene.name for part in ("JPEGImages", "Annotations"))
            images.mkdir(parents=True)
            scene_seed = [seed, _SEED_PARTS[f"davis {split}"], number]
            for index, (frame, ids) in enumerate(sequence(scene, config.frames, scene_seed)):
                write_jpeg(images / f"{index:05d}.jpg", frame)
                write_mask(masks / f"{index:05d}.png", ids)
                frames.append(frame)
                bar.update()
            if scene is VAL_SCENES[0]:
                _write_video(data.video, frames)


def render_all(root: Path, config: SampleConfig, seed: int) -> None:
    stills = len(KINDS) * (config.train_per_class + config.val_per_class)
    total = stills + config.saliency_pairs + config.frames * (config.val_sequences + config.train_sequences)
    data = SampleData(root)
    # It takes seconds, too short for a log: None shows the bar on a terminal only.
    with tqdm(total=total, desc="rendering the embedded data", unit="image", disable=None) as bar:
        _render_images(data.images, config, seed, bar)
        _render_saliency(data.saliency, config, seed, bar)
        render_davis(data, config, seed, bar)


# --- The cache --------------------------------------------------------------------------------------------


def _inventory(root: Path) -> dict[str, int]:
    sizes = [path.stat().st_size for path in root.rglob("*") if path.is_file() and path.name != _MARKER]
    return {"files": len(sizes), "bytes": sum(sizes)}


def _is_finished(root: Path) -> bool:
    """Whether the marker exists (it is written last) and its inventory matches the files."""
    try:
        marker = json.loads((root / _MARKER).read_text())
    except (OSError, ValueError):
        return False
    return bool(marker.get("inventory") == _inventory(root))


def _sweep(cache: Path) -> None:
    """Remove partial renders of killed processes."""
    for partial in cache.glob(".partial-*"):
        with contextlib.suppress(FileNotFoundError):  # its own process may be removing it
            if time.time() - partial.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(partial, ignore_errors=True)


def _move_in(partial: Path, root: Path) -> None:
    """Move a finished render to its final path atomically, over a damaged render; another process's render wins."""
    if root.exists() and not _is_finished(root):
        with contextlib.suppress(FileNotFoundError):  # another process did it first
            root.rename(partial.with_name("damaged"))
    try:
        partial.rename(root)
    except OSError:
        if not _is_finished(root):
            raise


def cache_folder() -> Path:
    """The folder in the environment variable DINO_DENSE_CACHE, else the user's cache folder for dino_dense."""
    return Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_dir("dino_dense"))


def sample_root(cache: Path | None = None, seed: int = 0, config: SampleConfig | None = None) -> Path:
    """Root of the embedded data set, rendered on the first call (about 10 s and 20 MB; later calls only check it).

    `cache` is the parent folder: by default the environment variable DINO_DENSE_CACHE, else the user's cache folder.
    Each version, seed and config has its own root there. An interrupted render leaves no root, processes that render
    at the same time get the same root, and a root that lost files is rendered again.
    """
    config = config or SampleConfig()
    identity = {"version": VERSION, "seed": seed, "config": asdict(config)}
    return rendered_root("sample", identity, lambda root: render_all(root, config, seed), cache)


def rendered_root(
    name: str, identity: dict[str, Any], render: Callable[[Path], None], cache: Path | None = None
) -> Path:
    """A root that `render` fills, kept in the cache as `sample_root` says.

    Args:
        name: begins the root's own.
        identity: version, seed and config: each has a root of its own.
        render: fills a folder that is there and empty.
        cache: default `cache_folder()`.
    """
    cache = cache_folder() if cache is None else cache
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]
    root = Path(cache).expanduser().resolve() / f"{name}-v{identity['version']}-seed{identity['seed']}-{key}"
    if _is_finished(root):
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    _sweep(root.parent)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=root.parent, ignore_cleanup_errors=True) as work:
        partial = Path(work) / root.name
        partial.mkdir()
        render(partial)
        (partial / _MARKER).write_text(json.dumps({**identity, "inventory": _inventory(partial)}, indent=1))
        _move_in(partial, root)
    return root


def sample_data(cache: Path | None = None, seed: int = 0, config: SampleConfig | None = None) -> SampleData:
    """The parts of `sample_root`."""
    return SampleData(sample_root(cache, seed, config))
