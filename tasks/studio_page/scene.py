"""The operations of the page of `tasks.studio` on a clip.

All files are in one temporary folder, which is removed when the page closes. Each visitor has a subfolder. It is
removed when the visitor opens another clip, or an hour after the visitor left (until then the visitor can come back). A
new run replaces the files of the previous run.
"""

import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data.clips import Clip, is_video, open_clip
from dino_dense import Backbone
from dino_dense.arrays import Pixels
from dino_dense.maps import LIKENESS, PcaColors, attention_maps, grow, patch_maps, patch_under
from dino_dense.matching.points import best_pixels, features_at_pixels
from dino_dense.propagation.protocol import PropagationProtocol
from tasks.harness import figures
from tasks.studio_page.live import Live
from tasks.videos.clip_masks import carry_masks, write_masks
from tasks.videos.clip_points import carry_points, write_tracks

MOST_OBJECTS = 9
MOST_UNDONE = 30  # changes that can be taken back
Item = TypeVar("Item")
STEPS = 4  # points on a side of a patch among which a match is looked for


@dataclass
class OpenClip:
    """The clip of a visitor, its first frame and the marked objects."""

    folder: Path
    """Folder of the clip and the results of the last run."""
    clip: Clip
    frame: Pixels
    """[H, W, 3]"""
    features: Tensor
    """[C, h, w], features of the frame."""
    ids: Pixels
    """[H, W], ids of the marked objects; 0 elsewhere."""
    points: list[tuple[int, int]] = field(default_factory=list)
    """(x, y) of the points to track, pixels of the frame."""
    before: list[Pixels] = field(default_factory=list)
    """`ids` before each of the last changes, the latest last."""
    live: Live = field(default_factory=Live)
    """The run that goes on, or the last."""

    def mark(self, where: npt.NDArray[np.bool_] | slice, identity: int) -> None:
        """Give pixels to an object (0: to none); `undo` takes it back."""
        self.before = [*self.before[1 - MOST_UNDONE :], self.ids.copy()]
        self.ids[where] = identity

    def undo(self) -> None:
        """Take the last change back; does nothing if there is none."""
        if self.before:
            self.ids = self.before.pop()

    def seen(self) -> Pixels:
        """The frame overlaid with the marked objects."""
        return figures.overlay(self.frame, self.ids)

    def seen_points(self) -> Pixels:
        """The frame with the points to track."""
        return _points_over(self.frame, np.array(self.points, np.float64), np.zeros(len(self.points), bool))

    def close(self) -> None:
        """Stop its run, and remove its files."""
        self.live.stop.set()
        shutil.rmtree(self.folder, ignore_errors=True)


class Studio:
    """The operations of the page, with one backbone.

    Args:
        backbone: the backbone of all visitors.
        folder: the folder of all files.
        resolution: short side of the network's input, pixels.
        max_bytes: largest accepted file.
    """

    def __init__(self, backbone: Backbone, folder: Path, resolution: int, max_bytes: int) -> None:
        self.backbone, self.folder, self.resolution, self.max_bytes = backbone, folder, resolution, max_bytes

    def open(self, path: Path | str) -> OpenClip:
        """Open a clip or an image (a clip of one frame). It is copied, since Gradio's own copy is temporary.

        Raises:
            DataError, ValueError: it is too large or unreadable.
        """
        path = Path(path)
        size = path.stat().st_size
        if size > self.max_bytes:
            raise ValueError(
                f"{path.name} has {size / 2**20:.1f} MiB: expected at most {self.max_bytes / 2**20:.0f} (--max-size)"
            )
        folder = Path(tempfile.mkdtemp(dir=self.folder, prefix="scene-"))
        try:
            if is_video(path):
                shutil.copy(path, folder / path.name)
                clip = open_clip(folder / path.name)
            else:
                frames = folder / path.stem
                frames.mkdir()
                shutil.copy(path, frames / f"00000{path.suffix.lower()}")
                clip = open_clip(frames)
            frame = next(iter(clip)).rgb
            features = patch_maps(self.backbone, frame, self.resolution)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return OpenClip(folder, clip, frame, features, np.zeros(clip.size, np.uint8))

    def click(self, scene: OpenClip, point: tuple[int, int], identity: int, likeness: float = LIKENESS) -> None:
        """Mark the region that grows from a pixel (x, y) as part of an object."""
        scene.mark(grow(scene.features, scene.clip.size, point, likeness), identity)

    def paint(self, scene: OpenClip, strokes: npt.NDArray[np.bool_], identity: int) -> None:
        """Mark painted pixels [H, W] as part of an object; ValueError for another size."""
        if strokes.shape != scene.ids.shape:
            raise ValueError(f"the painting is {strokes.shape}: expected {scene.ids.shape}, as the frame")
        scene.mark(strokes, identity)

    def run(self, scene: OpenClip, every: int = 1, live: Live | None = None) -> tuple[Path, Path]:
        """Propagate the marked objects. Returns the paths of the overlay (mp4) and the masks (zip of PNGs).

        Args:
            live: shows each frame when it is done, and can stop the run; nothing is left of a stopped run.

        Raises:
            ValueError: nothing is marked.
            StoppedError: by `live`.
        """
        if not scene.ids.any():
            raise ValueError("nothing is marked yet: click an object on the first frame, or paint it")
        live = live or Live()
        clip = open_clip(scene.clip.path, every=every)
        protocol = PropagationProtocol(short_side=self.resolution, rounding="nearest")
        with _new_folder(scene, "run-") as out:
            carried = carry_masks(self.backbone, clip, {clip.frame_name(0): scene.ids.copy()}, protocol)
            shown = _showing(carried, live, lambda item: figures.overlay(item[0].rgb, item[1]))
            with closing(carried), closing(shown):
                write_masks(shown, clip, out / "masks", out, tell=live.tell)
            zipped = shutil.make_archive(str(out / f"{clip.name}_masks"), "zip", out / "masks")
        return out / f"{clip.name}_masks.mp4", Path(zipped)

    def track(self, scene: OpenClip, every: int = 1, live: Live | None = None) -> tuple[Path, Path]:
        """Track the clicked points. Returns the paths of the overlay (mp4) and the table of the tracks (CSV).

        Args:
            live: as for `run`.

        Raises:
            ValueError: there is no point.
            StoppedError: by `live`.
        """
        if not scene.points:
            raise ValueError("there is no point yet: click some on the first frame")
        live = live or Live()
        clip = open_clip(scene.clip.path, every=every)
        with _new_folder(scene, "tracks-") as out:
            carried = carry_points(self.backbone, clip, np.array(scene.points, np.float64), self.resolution)
            shown = _showing(carried, live, lambda item: _points_over(item.frame.rgb, item.points, item.hidden))
            with closing(carried), closing(shown):
                write_tracks(shown, clip, out, tell=live.tell)
        return out / f"{clip.name}_tracks.mp4", out / f"{clip.name}_tracks.csv"

    def match(self, source: OpenClip, target: OpenClip, point: tuple[int, int]) -> tuple[Pixels, Pixels, float]:
        """The most similar point of another image to a pixel (x, y) of the first frame.

        Features are interpolated between patches: in the source at the pixel, in the target at `STEPS` points a patch.

        Returns:
            Both frames with a cross, and the cosine.

        Raises:
            ValueError: the pixel is not in the image.
        """
        patch_under(point, source.clip.size, (source.features.shape[1], source.features.shape[2]))  # checks it
        query = features_at_pixels(source.features, torch.tensor([point]), source.clip.size)
        steps = (STEPS * target.features.shape[1], STEPS * target.features.shape[2])
        fine = best_pixels(query, target.features, steps)
        cosine = float((query * features_at_pixels(target.features, fine, steps)).sum())
        shares = (fine[0].numpy() + 0.5) / steps[::-1]
        x, y = (int(share * side) for share, side in zip(shares, target.clip.size[::-1], strict=True))
        return figures.with_cross(source.frame, point), figures.with_cross(target.frame, (x, y)), cosine

    def attention(self, scene: OpenClip) -> Pixels:
        """The attention of each head and their mean over the first frame, in a grid."""
        attention = attention_maps(self.backbone, scene.frame, self.resolution).numpy()
        named = [("mean of the heads", attention.mean(axis=0))]
        named += [(f"head {head}", values) for head, values in enumerate(attention)]
        tiles = [(name, figures.heat_over(scene.frame, values, low=0)) for name, values in named]
        return figures.grid(tiles, 3)

    def pca(self, scene: OpenClip) -> Pixels:
        """The leading components of the first frame as colors."""
        return figures.enlarge(PcaColors.fit([scene.features]).colors(scene.features), scene.clip.size)


def _points_over(frame: Pixels, points: npt.NDArray, hidden: npt.NDArray) -> Pixels:
    """A frame with points [P, 2]; hidden ones [P] are rings."""
    colors = [figures.point_color(number) for number in range(len(points))]
    return figures.tracks_over(frame, points.reshape(-1, 1, 2), colors, hidden)


def _showing(items: Iterator[Item], live: Live, draw: Callable[[Item], Pixels]) -> Generator[Item]:
    """The items, each drawn for the visitor before it goes on."""
    for item in items:
        live.picture = draw(item)
        yield item


@contextmanager
def _new_folder(scene: OpenClip, prefix: str) -> Iterator[Path]:
    """An empty folder for results, in place of the folders of earlier runs; it is removed if the run does not end."""
    for before in scene.folder.glob(f"{prefix}*"):
        shutil.rmtree(before, ignore_errors=True)
    out = Path(tempfile.mkdtemp(dir=scene.folder, prefix=prefix))
    try:
        yield out
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
