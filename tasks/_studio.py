"""The page of `tasks.studio`: what it does with a clip, and how it looks.

All files are in one temporary folder, which goes when the page does. A visitor's are in a folder of it, which goes when
another clip is opened, or an hour after the visitor left (until then Gradio lets one come back); a new run takes away
the one before.
"""

import functools
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from data.clips import Clip, is_video, open_clip
from data.images import IMAGE_SUFFIXES
from data.video import VIDEO_SUFFIXES
from dino_dense import Backbone
from tasks import _figures
from tasks._maps import LIKENESS, PcaColours, attention_maps, grow, patch_maps
from tasks._own_video import carry_masks, write_masks
from tasks._propagation import PropagationProtocol

Pixels = npt.NDArray[np.uint8]
MOST_OBJECTS = 9
BUTTONS = ["download", "fullscreen"]  # of a picture: without the one that shares it with a stranger


@dataclass
class Scene:
    """What one visitor looks at: a clip, its first frame and the objects marked on it."""

    folder: Path
    """Of its files: the clip, and the results of the last run."""
    clip: Clip
    frame: Pixels
    """[H, W, 3]"""
    features: Tensor
    """[C, h, w] of the frame."""
    ids: Pixels
    """[H, W], 0 where nothing is marked."""

    def seen(self) -> Pixels:
        """The frame with what is marked over it."""
        return _figures.overlay(self.frame, self.ids)

    def close(self) -> None:
        """Remove its files."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Studio:
    """The steps behind the page, on one backbone.

    Args:
        backbone: for all visitors.
        folder: for all files.
        resolution: short side that the network sees, pixels.
        max_bytes: largest file taken.
    """

    def __init__(self, backbone: Backbone, folder: Path, resolution: int, max_bytes: int) -> None:
        self.backbone, self.folder, self.resolution, self.max_bytes = backbone, folder, resolution, max_bytes

    def open(self, path: Path | str) -> Scene:
        """A clip or an image (a clip of one frame), copied: the page's own copy does not last.

        Raises:
            DataError, ValueError: it is too large, or cannot be read.
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
        return Scene(folder, clip, frame, features, np.zeros(clip.size, np.uint8))

    def click(self, scene: Scene, point: tuple[int, int], identity: int, likeness: float = LIKENESS) -> None:
        """Mark the region that grows from a pixel (x, y) as part of an object."""
        scene.ids[grow(scene.features, scene.clip.size, point, likeness)] = identity

    def paint(self, scene: Scene, strokes: npt.NDArray[np.bool_], identity: int) -> None:
        """Mark painted pixels [H, W] as part of an object; ValueError for another size."""
        if strokes.shape != scene.ids.shape:
            raise ValueError(f"the painting is {strokes.shape}: expected {scene.ids.shape}, as the frame")
        scene.ids[strokes] = identity

    def run(self, scene: Scene, every: int = 1, progress: Any = None) -> tuple[Path, Path]:
        """Carry the marked objects along the clip: paths of the overlay (mp4) and of the masks (zip of PNGs).

        Raises:
            ValueError: nothing is marked.
        """
        if not scene.ids.any():
            raise ValueError("nothing is marked yet: click an object on the first frame, or paint it")
        for before in scene.folder.glob("run-*"):
            shutil.rmtree(before, ignore_errors=True)
        out = Path(tempfile.mkdtemp(dir=scene.folder, prefix="run-"))
        clip = open_clip(scene.clip.path, every=every)
        protocol = PropagationProtocol(short_side=self.resolution, rounding="nearest")
        carried = carry_masks(self.backbone, clip, {clip.frame_name(0): scene.ids}, protocol)
        write_masks(carried, clip, out / "masks", out, progress=progress or (lambda done, total: None))
        zipped = shutil.make_archive(str(out / f"{clip.name}_masks"), "zip", out / "masks")
        return out / f"{clip.name}_masks.mp4", Path(zipped)

    def attention(self, scene: Scene) -> Pixels:
        """The attention of each head and their mean over the first frame, in a grid."""
        attention = attention_maps(self.backbone, scene.frame, self.resolution).numpy()
        named = [("mean of the heads", attention.mean(axis=0))]
        named += [(f"head {head}", values) for head, values in enumerate(attention)]
        tiles = [(name, _figures.heat_over(scene.frame, values, low=0)) for name, values in named]
        return _figures.grid(tiles, 3)

    def pca(self, scene: Scene) -> Pixels:
        """The leading components of the first frame as colours."""
        return _figures.enlarge(PcaColours.fit([scene.features]).colours(scene.features), scene.clip.size)


def import_gradio(folder: Path) -> Any:
    """Gradio, set to report nothing to anyone and to keep its files in `folder`.

    Raises:
        ValueError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    try:
        import gradio
    except ImportError as error:
        raise ValueError(f'the page needs Gradio ({error}): pip install "dino_dense[studio]"') from error
    return gradio


def build_page(gr: Any, studio: Studio) -> Any:
    """The page as Gradio's Blocks."""
    limit = f"{studio.max_bytes / 2**20:.0f} MiB"
    with gr.Blocks(title="dino_dense studio", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        scene = gr.State(None, delete_callback=_close)
        gr.Markdown(f"# dino_dense studio\nAn image or a clip of at most {limit}; seen through {studio.backbone.name}.")
        endings = sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES)
        source = gr.File(label="Image or clip", file_types=endings, type="filepath", elem_id="source")
        with gr.Tab("Masks"):
            frame, editor = _masks_tab(gr, studio, scene)
        for name, make in (("Attention", studio.attention), ("PCA", studio.pca)):
            with gr.Tab(name):
                button = gr.Button("Look", elem_id=f"look-{name.lower()}")
                picture = gr.Image(
                    show_label=False, interactive=False, format="png", elem_id=name.lower(), buttons=BUTTONS
                )
                button.click(_told(gr, lambda held, make=make: make(_opened(held))), scene, picture)

        def opened(path: str | None, before: Scene | None) -> tuple[Scene | None, Pixels | None, Pixels | None]:
            _close(before)
            if path is None:
                return None, None, None
            held = studio.open(path)
            return held, held.seen(), held.frame

        source.change(_told(gr, opened), [source, scene], [scene, frame, editor])
    return page


def _masks_tab(gr: Any, studio: Studio, scene: Any) -> tuple[Any, Any]:
    """Mark, run, play, download. The two pictures that a new clip fills: the frame to click, the one to paint."""
    with gr.Row():
        identity = gr.Slider(1, MOST_OBJECTS, 1, step=1, label="Object")
        likeness = gr.Slider(0.1, 0.95, LIKENESS, label="How alike a click's region is (cosine)")
        every = gr.Slider(1, 10, 1, step=1, label="Every n-th frame")
    frame = gr.Image(
        label="First frame: click an object", interactive=False, format="png", elem_id="frame", buttons=BUTTONS
    )
    with gr.Accordion("Paint instead", open=False):
        brush = gr.Brush(colors=["#ff0000"], color_mode="fixed")
        editor = gr.ImageEditor(label="First frame", type="numpy", brush=brush, elem_id="editor", layers=False)
        paint = gr.Button("Mark what is painted")
    with gr.Row():
        clear = gr.Button("Clear")
        start = gr.Button("Run", variant="primary", elem_id="run")
    overlay = gr.Video(label="Masks over the clip", interactive=False, elem_id="overlay")
    masks = gr.DownloadButton("Download the masks", elem_id="masks", interactive=False)

    def clicked(held: Scene | None, number: int, alike: float, place: Any) -> tuple[Scene, Pixels]:
        found = _opened(held)
        studio.click(found, (place.index[0], place.index[1]), int(number), alike)
        return found, found.seen()

    clicked.__annotations__["place"] = gr.SelectData

    def painted(held: Scene | None, number: int, drawn: dict[str, Any]) -> tuple[Scene, Pixels]:
        found = _opened(held)
        for layer in drawn["layers"]:
            studio.paint(found, layer[..., 3] > 0, int(number))
        return found, found.seen()

    def cleared(held: Scene | None) -> tuple[Scene, Pixels]:
        found = _opened(held)
        found.ids[:] = 0
        return found, found.seen()

    bar = gr.Progress()

    def ran(held: Scene | None, step: int, progress: Any = bar) -> tuple[Scene, str, Any]:
        found = _opened(held)
        film, zipped = studio.run(found, int(step), lambda done, total: progress((done, total), unit="frames"))
        return found, str(film), gr.DownloadButton(value=str(zipped), interactive=True)

    frame.select(_told(gr, clicked), [scene, identity, likeness], [scene, frame])
    paint.click(_told(gr, painted), [scene, identity, editor], [scene, frame])
    clear.click(_told(gr, cleared), scene, [scene, frame])
    start.click(_told(gr, ran), [scene, every], [scene, overlay, masks])
    return frame, editor


def _close(scene: Scene | None) -> None:
    if scene is not None:
        scene.close()


def _opened(scene: Scene | None) -> Scene:
    if scene is None:
        raise ValueError("first choose an image or a clip")
    return scene


def _told(gr: Any, step: Any) -> Any:
    """A step whose plain errors the page shows."""

    @functools.wraps(step)
    def told(*arguments: Any, **named: Any) -> Any:
        try:
            return step(*arguments, **named)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error)) from error

    return told
