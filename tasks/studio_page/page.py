"""The layout of the page of `tasks.studio`."""

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data.clips import CLIP_SUFFIXES
from data.files import IMAGE_SUFFIXES
from dino_dense.arrays import Pixels
from dino_dense.maps import LIKENESS
from tasks.studio_page.live import Live, follow
from tasks.studio_page.scene import MOST_OBJECTS, OpenClip, Studio

Work = Callable[[OpenClip, int, Live], tuple[Path, Path]]
"""(clip, every n-th frame, state) -> the film, and the file to download."""
BUTTONS = ["download", "fullscreen"]  # of a picture: without the button to share it


def import_gradio(folder: Path) -> Any:
    """Import Gradio without telemetry, with its files in `folder`.

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
        with gr.Tab("Points"):
            spots = _points_tab(gr, studio, scene)
        with gr.Tab("Match"):
            left = _match_tab(gr, studio, scene)
        for name, make in (("Attention", studio.attention), ("PCA", studio.pca)):
            with gr.Tab(name):
                button = gr.Button("Look", elem_id=f"look-{name.lower()}")
                picture = gr.Image(
                    show_label=False, interactive=False, format="png", elem_id=name.lower(), buttons=BUTTONS
                )
                button.click(_showing_errors(gr, lambda clip, make=make: make(_opened(clip))), scene, picture)

        def opened(path: str | None, before: OpenClip | None) -> tuple[OpenClip | None, *tuple[Pixels | None, ...]]:
            _close(before)
            if path is None:
                return None, None, None, None, None
            held = studio.open(path)
            return held, held.seen(), held.frame, held.frame, held.frame

        source.change(_showing_errors(gr, opened), [source, scene], [scene, frame, editor, spots, left])
    return page


def _masks_tab(gr: Any, studio: Studio, scene: Any) -> tuple[Any, Any]:
    """The tab to mark, run, play and download. Returns the pictures that show a new clip: to click, and to paint."""
    with gr.Row():
        identity = gr.Slider(1, MOST_OBJECTS, 1, step=1, label="Object")
        likeness = gr.Slider(0.1, 0.95, LIKENESS, label="Similarity threshold of a clicked region (cosine)")
        every = gr.Slider(1, 10, 1, step=1, label="Every n-th frame")
    frame = gr.Image(
        label="First frame: click an object", interactive=False, format="png", elem_id="frame", buttons=BUTTONS
    )
    with gr.Accordion("Paint instead", open=False):
        brush = gr.Brush(colors=["#ff0000"], color_mode="fixed")
        editor = gr.ImageEditor(label="First frame", type="numpy", brush=brush, elem_id="editor", layers=False)
        paint = gr.Button("Mark what is painted")
    with gr.Row():
        undo, clear = gr.Button("Undo", elem_id="undo"), gr.Button("Clear")
        buttons = gr.Button("Run", variant="primary", elem_id="run"), gr.Button("Cancel", elem_id="cancel-run")
    state = _state(gr, "run")
    overlay = gr.Video(label="Masks over the clip", interactive=False, elem_id="overlay")
    masks = gr.DownloadButton("Download the masks", elem_id="masks", interactive=False)

    def clicked(clip: OpenClip | None, number: int, alike: float, event: Any) -> tuple[OpenClip, Pixels]:
        opened_clip = _opened(clip)
        studio.click(opened_clip, (event.index[0], event.index[1]), int(number), alike)
        return opened_clip, opened_clip.seen()

    clicked.__annotations__["event"] = gr.SelectData

    def painted(clip: OpenClip | None, number: int, drawn: dict[str, Any]) -> tuple[OpenClip, Pixels]:
        opened_clip = _opened(clip)
        for layer in drawn["layers"]:
            studio.paint(opened_clip, layer[..., 3] > 0, int(number))
        return opened_clip, opened_clip.seen()

    def cleared(clip: OpenClip | None) -> tuple[OpenClip, Pixels]:
        opened_clip = _opened(clip)
        opened_clip.mark(slice(None), 0)
        return opened_clip, opened_clip.seen()

    def undone(clip: OpenClip | None) -> tuple[OpenClip, Pixels]:
        opened_clip = _opened(clip)
        opened_clip.undo()
        return opened_clip, opened_clip.seen()

    frame.select(_showing_errors(gr, clicked), [scene, identity, likeness], [scene, frame])
    paint.click(_showing_errors(gr, painted), [scene, identity, editor], [scene, frame])
    clear.click(_showing_errors(gr, cleared), scene, [scene, frame])
    undo.click(_showing_errors(gr, undone), scene, [scene, frame])
    _running(gr, studio.run, scene, every, buttons, (overlay, masks), state)
    return frame, editor


def _points_tab(gr: Any, studio: Studio, scene: Any) -> Any:
    """The tab to click points, track them, play and download. Returns the picture that shows a new clip."""
    frame = gr.Image(
        label="First frame: click points", interactive=False, format="png", elem_id="points-frame", buttons=BUTTONS
    )
    with gr.Row():
        every = gr.Slider(1, 10, 1, step=1, label="Every n-th frame")
        undo, clear = gr.Button("Undo", elem_id="undo-point"), gr.Button("Clear")
        buttons = gr.Button("Track", variant="primary", elem_id="track"), gr.Button("Cancel", elem_id="cancel-track")
    state = _state(gr, "track")
    overlay = gr.Video(label="Tracks over the clip (rings: hidden)", interactive=False, elem_id="tracks-overlay")
    table = gr.DownloadButton("Download the tracks", elem_id="tracks", interactive=False)

    def clicked(clip: OpenClip | None, event: Any) -> tuple[OpenClip, Pixels]:
        opened_clip = _opened(clip)
        opened_clip.points.append((event.index[0], event.index[1]))
        return opened_clip, opened_clip.seen_points()

    clicked.__annotations__["event"] = gr.SelectData

    def cleared(clip: OpenClip | None) -> tuple[OpenClip, Pixels]:
        opened_clip = _opened(clip)
        opened_clip.points.clear()
        return opened_clip, opened_clip.seen_points()

    def undone(clip: OpenClip | None) -> tuple[OpenClip, Pixels]:
        opened_clip = _opened(clip)
        del opened_clip.points[-1:]
        return opened_clip, opened_clip.seen_points()

    frame.select(_showing_errors(gr, clicked), scene, [scene, frame])
    clear.click(_showing_errors(gr, cleared), scene, [scene, frame])
    undo.click(_showing_errors(gr, undone), scene, [scene, frame])
    _running(gr, studio.track, scene, every, buttons, (overlay, table), state)
    return frame


def _state(gr: Any, name: str) -> tuple[Any, Any]:
    """A text on the progress of a run, and a picture of its last frame."""
    picture = gr.Image(label="Last frame", interactive=False, visible=False, elem_id=f"live-{name}", buttons=[])
    return gr.Markdown(elem_id=f"said-{name}"), picture


def _running(
    gr: Any,
    work: Work,
    scene: Any,
    every: Any,
    buttons: tuple[Any, Any],
    results: tuple[Any, Any],
    state: tuple[Any, Any],
) -> None:
    """Let a button run the work, show its frames as they are done, and let another button stop it.

    Args:
        results: the film and the download.
        state: the text and the picture of `_state`.
    """
    said, picture = state

    def ran(clip: OpenClip | None, step: int) -> Iterator[dict[Any, Any]]:
        opened_clip = _opened(clip)
        film, download = results
        running = follow(lambda live: work(opened_clip, int(step), live), opened_clip.live)
        yield {said: "Started", film: None, download: gr.DownloadButton(interactive=False)}
        while True:
            try:
                live = next(running)
            except StopIteration as end:
                made = end.value
                break
            if live.picture is not None:
                yield {said: f"{live.done} of {live.total} frames", picture: gr.Image(live.picture, visible=True)}
        live = opened_clip.live
        yield {picture: gr.Image(None, visible=False)} | (
            {said: f"Canceled after {live.done} of {live.total} frames"}
            if made is None
            else {said: "", film: str(made[0]), download: gr.DownloadButton(value=str(made[1]), interactive=True)}
        )

    def canceled(clip: OpenClip | None) -> None:
        _opened(clip).live.stop.set()

    start, cancel = buttons
    outputs = [said, picture, *results]
    start.click(_showing_errors(gr, ran), [scene, every], outputs, concurrency_id="network", concurrency_limit=1)
    cancel.click(_showing_errors(gr, canceled), scene, None, queue=False)


def _match_tab(gr: Any, studio: Studio, scene: Any) -> Any:
    """The tab to click a point of one image and see its match in another. Returns the picture of the first image."""
    other = gr.State(None, delete_callback=_close)
    source = gr.File(
        label="The other image", file_types=sorted(IMAGE_SUFFIXES | CLIP_SUFFIXES), type="filepath", elem_id="other"
    )
    with gr.Row():
        left, right = (
            gr.Image(label=label, interactive=False, format="png", elem_id=name, buttons=BUTTONS)
            for label, name in (("First image: click a point", "match-left"), ("The other image", "match-right"))
        )
    said = gr.Markdown(elem_id="match-said")

    def opened(path: str | None, before: OpenClip | None) -> tuple[OpenClip | None, Pixels | None]:
        _close(before)
        held = None if path is None else studio.open(path)
        return held, None if held is None else held.frame

    def left_clicked(one: OpenClip | None, two: OpenClip | None, event: Any) -> tuple[Pixels, Pixels, str]:
        here, there, cosine = studio.match(_opened(one), _opened(two), (event.index[0], event.index[1]))
        return here, there, f"Cosine {cosine:.2f}"

    def right_clicked(one: OpenClip | None, two: OpenClip | None, event: Any) -> tuple[Pixels, Pixels, str]:
        here, there, cosine = studio.match(_opened(two), _opened(one), (event.index[0], event.index[1]))
        return there, here, f"Cosine {cosine:.2f}"

    for picture, clicked in ((left, left_clicked), (right, right_clicked)):
        clicked.__annotations__["event"] = gr.SelectData
        picture.select(_showing_errors(gr, clicked), [scene, other], [left, right, said])
    source.change(_showing_errors(gr, opened), [source, other], [other, right])
    return left


def _close(scene: OpenClip | None) -> None:
    if scene is not None:
        scene.close()


def _opened(scene: OpenClip | None) -> OpenClip:
    if scene is None:
        raise ValueError("first choose an image or a clip (of a match, both)")
    return scene


def _showing_errors(gr: Any, step: Any) -> Any:
    """A step that shows its errors on the page."""

    if inspect.isgeneratorfunction(step):

        @functools.wraps(step)
        def showing_errors_later(*arguments: Any, **options: Any) -> Any:
            try:
                yield from step(*arguments, **options)
            except (ValueError, OSError) as error:
                raise gr.Error(str(error)) from error

        return showing_errors_later

    @functools.wraps(step)
    def showing_errors(*arguments: Any, **options: Any) -> Any:
        try:
            return step(*arguments, **options)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error)) from error

    return showing_errors
