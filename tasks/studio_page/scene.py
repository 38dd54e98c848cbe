"""The operations of the page of `tasks.studio` on a clip.

All files are in one temporary folder, which is removed when the page closes. Each visitor has a subfolder. It is
removed when the visitor opens another clip, or an hour after the visitor left (until then the visitor can come back).
The files of a run are kept until another run ends.
"""

import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
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
from dino_dense.propagation.both_ways import GivenMasks
from dino_dense.propagation.protocol import PropagationProtocol
from tasks.harness import figures
from tasks.studio_page.live import Live
from tasks.studio_page.opened import OpenClip, points_over
from tasks.videos.clip_masks import NamedFrame, carry_both_ways, write_masks
from tasks.videos.clip_points import carry_points, write_tracks

MOST_OBJECTS = 9
Item = TypeVar("Item")
STEPS = 4  # points on a side of a patch among which a match is looked for


class Studio:
    """The operations of the page, with one backbone, or two to compare.

    Args:
        backbones: the backbones of all visitors; all operations but comparisons use the first.
        folder: the folder of all files.
        resolution: short side of the network's input, pixels.
        max_bytes: largest accepted file.
    """

    def __init__(self, backbones: Sequence[Backbone], folder: Path, resolution: int, max_bytes: int) -> None:
        self.backbones, self.folder, self.resolution, self.max_bytes = tuple(backbones), folder, resolution, max_bytes

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
            scene = OpenClip(folder, clip, frame)
            self.features(scene)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return scene

    def features(self, scene: OpenClip, number: int = 0) -> Tensor:
        """Features [C, h, w] of the frame on view, of a backbone by its number."""
        index, features = scene.features.get(number, (-1, None))
        if features is None or index != scene.index:
            index, frame = scene.index, scene.frame
            features = patch_maps(self.backbones[number], frame, self.resolution)
            scene.features[number] = (index, features)
        return features

    def click(self, scene: OpenClip, point: tuple[int, int], identity: int, likeness: float = LIKENESS) -> None:
        """Mark the region that grows from a pixel (x, y) of the frame on view as part of an object (0: of none)."""
        scene.mark(grow(self.features(scene), scene.clip.size, point, likeness), identity)

    def paint(self, scene: OpenClip, strokes: npt.NDArray[np.bool_], identity: int) -> None:
        """Mark painted pixels [H, W] as part of an object (0: of none); ValueError for another size."""
        if strokes.shape != scene.clip.size:
            raise ValueError(f"the painting is {strokes.shape}: expected {scene.clip.size}, as the frame")
        scene.mark(strokes, identity)

    def run(self, scene: OpenClip, every: int = 1, live: Live | None = None, number: int = 0) -> tuple[Path, Path]:
        """Propagate the marks of all frames. Returns the paths of the overlay (mp4) and the masks (zip of PNGs).

        The rule is that of `dino_dense.propagation.both_ways`.

        Args:
            live: shows each frame when it is done, and can stop the run; nothing is left of a stopped run.
            number: of the backbone. The masks of the first are on view on frames without marks from then on.

        Raises:
            ValueError: nothing is marked, or a marked frame is not used with every n-th frame.
            StoppedError: by `live`.
        """
        given = _checked(scene.marks, every)
        clip = open_clip(scene.clip.path, every=every)
        with _new_folder(scene, f"run-{number}-") as out:
            self._write_masks(clip, given, out, live or Live(), number)
            zipped = shutil.make_archive(str(out / f"{clip.name}_masks"), "zip", out / "masks")
            if number == 0:
                scene.masks = out / "masks"
        return out / f"{clip.name}_masks.mp4", Path(zipped)

    def _write_masks(self, clip: Clip, given: Mapping[int, GivenMasks], out: Path, live: Live, number: int) -> None:
        """Propagate, and write the masks and the overlay; frames of the backward pass are counted and shown too."""
        back = 0

        def seen(frame: NamedFrame, ids: Pixels, done: int, total: int) -> None:
            nonlocal back
            back, live.picture = total, figures.overlay(frame.rgb, ids)
            live.tell(done, total + len(clip))

        named = {clip.frame_name(index): masks for index, masks in given.items()}
        protocol = PropagationProtocol(short_side=self.resolution, rounding="nearest")
        carried = carry_both_ways(self.backbones[number], clip, named, protocol, seen=seen)
        shown = _showing(carried, live, lambda item: figures.overlay(item[0].rgb, item[1]))
        with closing(carried), closing(shown):
            write_masks(shown, clip, out / "masks", out, tell=lambda done, total: live.tell(back + done, back + total))

    def track(self, scene: OpenClip, every: int = 1, live: Live | None = None) -> tuple[Path, Path]:
        """Track the clicked points of all frames. Returns the paths of the overlay (mp4) and the table (CSV).

        Each point is followed to all earlier and later frames.

        Args:
            live: as for `run`.

        Raises:
            ValueError: there is no point.
            StoppedError: by `live`.
        """
        if not scene.points:
            raise ValueError("there is no point yet: click some on a frame")
        live = live or Live()
        clip = open_clip(scene.clip.path, every=every)
        with _new_folder(scene, "tracks-") as out:
            carried = carry_points(self.backbones[0], clip, np.array(scene.points, np.float64), self.resolution)
            shown = _showing(carried, live, lambda item: points_over(item.frame.rgb, item.points, item.hidden))
            with closing(carried), closing(shown):
                write_tracks(shown, clip, out, tell=live.tell)
        return out / f"{clip.name}_tracks.mp4", out / f"{clip.name}_tracks.csv"

    def match(
        self, source: OpenClip, target: OpenClip, point: tuple[int, int], number: int = 0
    ) -> tuple[Pixels, Pixels, float]:
        """The most similar point of another image to a pixel (x, y) of the frame on view.

        Features are interpolated between patches: in the source at the pixel, in the target at `STEPS` points a patch.

        Args:
            number: of the backbone.

        Returns:
            Both frames with a cross, and the cosine.

        Raises:
            ValueError: the pixel is not in the image.
        """
        here, there = self.features(source, number), self.features(target, number)
        patch_under(point, source.clip.size, (here.shape[1], here.shape[2]))  # checks it
        query = features_at_pixels(here, torch.tensor([point]), source.clip.size)
        steps = (STEPS * there.shape[1], STEPS * there.shape[2])
        fine = best_pixels(query, there, steps)
        cosine = float((query * features_at_pixels(there, fine, steps)).sum())
        shares = (fine[0].numpy() + 0.5) / steps[::-1]
        x, y = (int(share * side) for share, side in zip(shares, target.clip.size[::-1], strict=True))
        return figures.with_cross(source.frame, point), figures.with_cross(target.frame, (x, y)), cosine

    def attention(self, scene: OpenClip) -> Pixels:
        """The attention of each head and their mean over the frame on view, in a grid."""
        attention = attention_maps(self.backbones[0], scene.frame, self.resolution).numpy()
        named = [("mean of the heads", attention.mean(axis=0))]
        named += [(f"head {head}", values) for head, values in enumerate(attention)]
        tiles = [(name, figures.heat_over(scene.frame, values, low=0)) for name, values in named]
        return figures.grid(tiles, 3)

    def pca(self, scene: OpenClip, number: int = 0) -> Pixels:
        """The leading components of the frame on view as colors, of a backbone by its number."""
        features = self.features(scene, number)
        return figures.enlarge(PcaColors.fit([features]).colors(features), scene.clip.size)


def _checked(marks: Mapping[int, GivenMasks], every: int) -> dict[int, GivenMasks]:
    """A copy of the marks; ValueError if nothing is marked, or a marked frame is not used."""
    if not any(masks.ids.any() for masks in marks.values()):
        raise ValueError("nothing is marked yet: click an object on a frame, or paint it")
    for index in sorted(marks):
        if index % every:
            raise ValueError(
                f"frame {index} is marked, but not used with every n-th frame, n = {every}: choose another n, or clear "
                "the frame"
            )
    return dict(marks)


def _showing(items: Iterator[Item], live: Live, draw: Callable[[Item], Pixels]) -> Generator[Item]:
    """The items, each drawn for the visitor before it goes on."""
    for item in items:
        live.picture = draw(item)
        yield item


@contextmanager
def _new_folder(scene: OpenClip, prefix: str) -> Iterator[Path]:
    """An empty folder for results. If the run ends, the folders of earlier runs are removed; if not, this one is."""
    earlier = list(scene.folder.glob(f"{prefix}*"))
    out = Path(tempfile.mkdtemp(dir=scene.folder, prefix=prefix))
    try:
        yield out
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    for folder in earlier:
        shutil.rmtree(folder, ignore_errors=True)
