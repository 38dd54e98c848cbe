"""A picture on the page that clicks and strokes mark."""

from collections.abc import Callable
from typing import Any, NamedTuple

from tasks.studio_page.opened import OpenClip
from tasks.studio_page.parts import clickable, clicked_by, showing_errors
from tasks.studio_page.scene import Studio


class Marking(NamedTuple):
    """The components of such a picture."""

    number: Any
    """Slider: the object or class that clicks and strokes give."""
    picture: Any
    editor: Any
    """The picture to paint on."""
    paint: Any
    undo: Any
    clear: Any
    row: Any
    """The row of the buttons, for more."""


def marking(gr: Any, number: Any, label: str, hint: str, clear: str, names: tuple[str, str, str, str]) -> Marking:
    """Lay the components out.

    Args:
        number: the slider.
        label, hint: of the picture.
        clear: text of the button that takes all marks away.
        names: element ids of picture, editor, and the buttons to undo and to clear.
    """
    picture = clickable(gr, f"{label}: {hint}", names[0])
    with gr.Accordion("Paint instead", open=False):
        brush = gr.Brush(colors=["#ff0000"], color_mode="fixed")
        editor = gr.ImageEditor(label=label, type="numpy", brush=brush, elem_id=names[1], layers=False)
        paint = gr.Button("Mark what is painted")
    with gr.Row() as row:
        undo = gr.Button("Undo", elem_id=names[2], elem_classes="key-undo", min_width=120)
        clear_button = gr.Button(clear, elem_id=names[3], min_width=120)
    return Marking(number, picture, editor, paint, undo, clear_button, row)


def let_mark(
    gr: Any,
    studio: Studio,
    marks: Marking,
    state: Any,
    likeness: Any,
    clip_of: Callable[[Any], OpenClip],
    seen: Callable[[Any], Any],
    outputs: Any,
) -> None:
    """Let clicks and strokes mark a clip, and a button take all marks of its frame on view away.

    Args:
        state: the component that keeps the clip.
        clip_of: its value -> the clip.
        seen: its value -> values of `outputs`.
    """

    def clicked(kept: Any, number: int, alike: float, event: Any) -> Any:
        studio.click(clip_of(kept), (event.index[0], event.index[1]), int(number), alike)
        return seen(kept)

    def painted(kept: Any, number: int, drawn: dict[str, Any]) -> Any:
        for layer in drawn["layers"]:
            studio.paint(clip_of(kept), layer[..., 3] > 0, int(number))
        return seen(kept)

    def cleared(kept: Any) -> Any:
        clip_of(kept).clear()
        return seen(kept)

    marks.picture.select(clicked_by(gr, clicked), [state, marks.number, likeness], outputs)
    marks.paint.click(showing_errors(gr, painted), [state, marks.number, marks.editor], outputs)
    marks.clear.click(showing_errors(gr, cleared), state, outputs)
