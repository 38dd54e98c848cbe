"""The page of `tasks.studio`: how it looks."""

import functools
import os
from pathlib import Path
from typing import Any

from data.clips import CLIP_SUFFIXES
from data.files import IMAGE_SUFFIXES
from dino_dense.arrays import Pixels
from dino_dense.maps import LIKENESS
from tasks.studio_page.scene import MOST_OBJECTS, Scene, Studio

BUTTONS = ["download", "fullscreen"]  # of a picture: without the one that shares it with a stranger


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
        endings = sorted(IMAGE_SUFFIXES | CLIP_SUFFIXES)
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
