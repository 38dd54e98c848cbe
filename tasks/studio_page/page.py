"""The layout of the page of `tasks.studio`."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from data.clips import CLIP_SUFFIXES
from data.files import IMAGE_SUFFIXES
from dino_dense.arrays import Pixels
from dino_dense.maps import LIKENESS
from tasks.harness import figures
from tasks.studio_page.compare_tab import compare_tab
from tasks.studio_page.keys import keys_in_words
from tasks.studio_page.labels_tab import labels_tab
from tasks.studio_page.marking import let_mark, marking
from tasks.studio_page.opened import OpenClip
from tasks.studio_page.parts import (
    BUTTONS,
    clickable,
    clicked_by,
    close,
    film_and_file,
    opened,
    run_buttons,
    running,
    showing_errors,
    state,
)
from tasks.studio_page.scene import MOST_OBJECTS, Studio

ENDINGS = sorted(IMAGE_SUFFIXES | CLIP_SUFFIXES)
HELP = f"""
**Keys** ({keys_in_words()}). They rest while you type in a box.

**Frames.** Choose any frame of the clip with the slider or the arrow keys. Marks, matches, attention and PCA are of the
frame on view.

**Masks.** A click or a stroke marks the frame on view for the chosen object; object 0 erases. All masks that you see on
a marked frame count. Each object in each frame is carried from the nearest frame that is marked with it, forward or
backward; of two equally near frames, from the earlier. Where two objects meet, the one from the nearer frame is on top.

**Points.** A click puts a point on the frame on view. Each point is followed from its frame to all earlier and later
frames. Points are counted from 1 in the order of their clicks.

**Corrections.** Run, look at a frame, correct its masks there, and run again. To correct a point, choose its number and
click where it is: each frame then goes by the nearest frame on which the point was clicked.

**Labels.** Mark classes in reference images, or choose class masks; the frame on view takes the classes of the most
similar patches.

**Compare** (with a second checkpoint, `--beside`). One click shows the results of both, side by side.
"""


class Top(NamedTuple):
    """The components above the tabs."""

    scene: Any
    """The visitor's clip."""
    source: Any
    place: Any
    """Slider of the frame on view."""
    steps: tuple[Any, Any]
    """Buttons: the previous frame, the next."""
    said: Any
    """Frame on view and marked frames, in words."""
    likeness: Any
    every: Any


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
    with gr.Blocks(title="dino_dense studio", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        top = _top(gr, studio)
        with gr.Tab("Masks"):
            frame, editor, undo = _masks_tab(gr, studio, top)
        with gr.Tab("Points"):
            spots, undo_point = _points_tab(gr, studio, top)
        with gr.Tab("Match"):
            left, other = _match_tab(gr, studio, top.scene)
        with gr.Tab("Labels"):
            labels_tab(gr, studio, top.scene, top.likeness)
        for name, make in (("Attention", studio.attention), ("PCA", studio.pca)):
            with gr.Tab(name):
                button = gr.Button("Look", elem_id=f"look-{name.lower()}", elem_classes="key-run")
                picture = gr.Image(
                    show_label=False, interactive=False, format="png", elem_id=name.lower(), buttons=BUTTONS
                )
                button.click(showing_errors(gr, lambda clip, make=make: make(opened(clip))), top.scene, picture)
        views = {frame: OpenClip.seen, editor: _file_of, spots: OpenClip.seen_points, left: _frame_of}
        if len(studio.backbones) > 1:
            with gr.Tab("Compare"):
                views[compare_tab(gr, studio, top.scene, other, top.likeness, top.every)] = _frame_of
        _frames(gr, studio, top, views, {undo: OpenClip.undo, undo_point: OpenClip.undo_point})
    return page


def _frame_of(clip: OpenClip) -> Pixels:
    return clip.frame


def _file_of(clip: OpenClip) -> str:
    """The frame on view as a file: from pixels, Gradio's editor would write two pictures of a slow format."""
    return str(figures.save(clip.folder / "on-view.jpg", clip.frame))


def _top(gr: Any, studio: Studio) -> Top:
    """The clip, and the choice of a frame."""
    scene = gr.State(None, delete_callback=close)
    limit = f"{studio.max_bytes / 2**20:.0f} MiB"
    gr.Markdown(f"# dino_dense studio\nAn image or a clip of at most {limit}; seen through {studio.backbones[0].name}.")
    with gr.Accordion("Help", open=False, elem_id="help"):
        gr.Markdown(HELP)
    source = gr.File(label="Image or clip", file_types=ENDINGS, type="filepath", elem_id="source")
    place = gr.Slider(0, 1, 0, step=1, label="Frame", interactive=False, elem_id="place")
    with gr.Row():
        steps = tuple(
            gr.Button(text, elem_id=name, elem_classes=f"key-{name}", min_width=120)
            for text, name in (("Previous frame", "previous"), ("Next frame", "next"))
        )
    said = gr.Markdown(elem_id="said-frame")
    with gr.Row():
        likeness = gr.Slider(0.1, 0.95, LIKENESS, label="Similarity threshold of a clicked region (cosine)")
        every = gr.Slider(1, 10, 1, step=1, label="Every n-th frame")
    return Top(scene, source, place, (steps[0], steps[1]), said, likeness, every)


def _frames(gr: Any, studio: Studio, top: Top, views: dict[Any, Any], undos: dict[Any, Any]) -> None:
    """Let the clip and its frames be chosen.

    Args:
        views: pictures of the frame on view -> how they show a clip.
        undos: buttons -> how they take a change back, and go to its frame.
    """

    def seen(clip: OpenClip) -> dict[Any, Any]:
        return {top.said: clip.said(), **{view: draw(clip) for view, draw in views.items()}}

    def chosen(path: str | None, before: OpenClip | None) -> dict[Any, Any]:
        close(before)
        if path is None:
            slider = gr.Slider(value=0, interactive=False)
            return {top.scene: None, top.place: slider, top.said: "", **dict.fromkeys(views)}
        clip = studio.open(path)
        slider = gr.Slider(maximum=max(1, clip.length - 1), value=0, interactive=clip.length > 1)
        return {top.scene: clip, top.place: slider, **seen(clip)}

    def went(clip: OpenClip | None, index: float) -> dict[Any, Any]:
        opened(clip).go(int(index))
        return seen(opened(clip))

    def stepped(clip: OpenClip | None, every: float, by: int) -> dict[Any, Any]:
        opened(clip).step(int(every), by)
        return {top.place: opened(clip).index, **seen(opened(clip))}

    def undone(clip: OpenClip | None, undo: Any) -> dict[Any, Any]:
        index = opened(clip).index
        undo(opened(clip))
        if opened(clip).index != index:
            return {top.place: opened(clip).index, **seen(opened(clip))}
        marked = {view: draw(opened(clip)) for view, draw in views.items() if draw not in (_file_of, _frame_of)}
        return {top.said: opened(clip).said(), **marked}  # the other views keep their frame, and strokes on it

    outputs = [top.said, *views]
    for button, undo in undos.items():
        step = showing_errors(gr, lambda clip, undo=undo: undone(clip, undo))
        button.click(step, top.scene, [top.place, *outputs])
    top.source.change(showing_errors(gr, chosen), [top.source, top.scene], [top.scene, top.place, *outputs])
    top.place.input(showing_errors(gr, went), [top.scene, top.place], outputs, trigger_mode="always_last")
    for button, by in zip(top.steps, (-1, 1), strict=True):
        button.click(
            showing_errors(gr, lambda clip, every, by=by: stepped(clip, every, by)),
            [top.scene, top.every],
            [top.place, *outputs],
        )


def _masks_tab(gr: Any, studio: Studio, top: Top) -> tuple[Any, Any, Any]:
    """The tab to mark, run, play and download.

    Returns:
        The pictures of the frame on view, to click and to paint, and the button that takes a change back.
    """
    identity = gr.Slider(0, MOST_OBJECTS, 1, step=1, label="Object (0: erase)", elem_id="object")
    names = ("frame", "editor", "undo", "clear")
    marks = marking(gr, identity, "Frame on view", "click an object", "Clear this frame", names)
    with marks.row:
        buttons = run_buttons(gr, "Run", "run")
    progress = state(gr, "run")
    overlay = gr.Video(label="Masks over the clip", interactive=False, elem_id="overlay")
    masks = gr.DownloadButton("Download the masks", elem_id="masks", interactive=False)

    def seen(clip: OpenClip) -> tuple[OpenClip, str, Pixels]:
        return clip, clip.said(), clip.seen()

    def ran(clip: OpenClip | None) -> tuple[str, Pixels] | None:
        return None if clip is None else (clip.said(), clip.seen())

    let_mark(gr, studio, marks, top.scene, top.likeness, opened, seen, [top.scene, top.said, marks.picture])
    run = running(gr, studio.run, top.scene, top.every, buttons, film_and_file(gr, overlay, masks), progress)
    run.then(showing_errors(gr, ran), top.scene, [top.said, marks.picture])
    return marks.picture, marks.editor, marks.undo


def _points_tab(gr: Any, studio: Studio, top: Top) -> tuple[Any, Any]:
    """The tab to click points, track them, play and download.

    Returns:
        The picture of the frame on view, and the button that takes the last point away.
    """
    frame = clickable(gr, "Frame on view: click points", "points-frame")
    with gr.Row():
        corrects = gr.Number(
            0, label="Point", info="0: a new one. Its number: correct it here", precision=0, minimum=0, min_width=160
        )
        undo = gr.Button("Undo", elem_id="undo-point", elem_classes="key-undo", min_width=120)
        clear = gr.Button("Clear all points", min_width=120)
        buttons = run_buttons(gr, "Track", "track")
    progress = state(gr, "track")
    overlay = gr.Video(label="Tracks over the clip (rings: hidden)", interactive=False, elem_id="tracks-overlay")
    table = gr.DownloadButton("Download the tracks", elem_id="tracks", interactive=False)

    def seen(clip: OpenClip) -> tuple[OpenClip, str, Pixels]:
        return clip, clip.said(), clip.seen_points()

    def clicked(clip: OpenClip | None, corrects: int | None, event: Any) -> tuple[OpenClip, str, Pixels]:
        opened(clip).spot(event.index[0], event.index[1], corrects or 0)
        return seen(opened(clip))

    def cleared(clip: OpenClip | None) -> tuple[OpenClip, str, Pixels]:
        opened(clip).points.clear()
        return seen(opened(clip))

    outputs = [top.scene, top.said, frame]
    frame.select(clicked_by(gr, clicked), [top.scene, corrects], outputs)
    clear.click(showing_errors(gr, cleared), top.scene, outputs)
    running(gr, studio.track, top.scene, top.every, buttons, film_and_file(gr, overlay, table), progress)
    return frame, undo


def _match_tab(gr: Any, studio: Studio, scene: Any) -> tuple[Any, Any]:
    """The tab to click a point of one image and see its match in another.

    Returns:
        The picture of the first image, and the state of the other.
    """
    other = gr.State(None, delete_callback=close)
    source = gr.File(label="The other image", file_types=ENDINGS, type="filepath", elem_id="other")
    with gr.Row():
        left = clickable(gr, "Frame on view: click a point", "match-left")
        right = clickable(gr, "The other image", "match-right")
    said = gr.Markdown(elem_id="match-said")

    def chosen(path: str | None, before: OpenClip | None) -> tuple[OpenClip | None, Pixels | None]:
        close(before)
        clip = None if path is None else studio.open(path)
        return clip, None if clip is None else clip.frame

    def left_clicked(one: OpenClip | None, two: OpenClip | None, event: Any) -> tuple[Pixels, Pixels, str]:
        here, there, cosine = studio.match(opened(one), opened(two), (event.index[0], event.index[1]))
        return here, there, f"Cosine {cosine:.2f}"

    def right_clicked(one: OpenClip | None, two: OpenClip | None, event: Any) -> tuple[Pixels, Pixels, str]:
        here, there, cosine = studio.match(opened(two), opened(one), (event.index[0], event.index[1]))
        return there, here, f"Cosine {cosine:.2f}"

    for picture, clicked in ((left, left_clicked), (right, right_clicked)):
        picture.select(clicked_by(gr, clicked), [scene, other], [left, right, said])
    source.change(showing_errors(gr, chosen), [source, other], [other, right])
    return left, other
