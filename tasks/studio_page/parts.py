"""What the tabs of the page share: errors, runs with their progress."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from tasks.studio_page.live import Live, follow
from tasks.studio_page.opened import OpenClip

Work = Callable[[OpenClip, int, Live], Any]
"""(clip, every n-th frame, state) -> the result."""
BUTTONS = ["download", "fullscreen"]  # of a picture: without the button to share it


def close(scene: OpenClip | None) -> None:
    """Close a clip, if there is one."""
    if scene is not None:
        scene.close()


def opened(scene: OpenClip | None) -> OpenClip:
    """The clip; ValueError if there is none."""
    if scene is None:
        raise ValueError("first choose an image or a clip (of a match, both)")
    return scene


def clickable(gr: Any, label: str, name: str) -> Any:
    """A picture to click. JPEG: PNG takes a hundred times longer to write, at every change of the frame."""
    return gr.Image(label=label, interactive=False, format="jpeg", elem_id=name, buttons=BUTTONS)


def clicked_by(gr: Any, step: Any) -> Any:
    """A step whose last argument is the click, as Gradio finds it by its annotation."""
    step.__annotations__["event"] = gr.SelectData
    return showing_errors(gr, step)


def state(gr: Any, name: str) -> tuple[Any, Any]:
    """A text on the progress of a run, and a picture of its last frame."""
    picture = gr.Image(label="Last frame", interactive=False, visible=False, elem_id=f"live-{name}", buttons=[])
    return gr.Markdown(elem_id=f"said-{name}"), picture


def run_buttons(gr: Any, text: str, name: str) -> tuple[Any, Any]:
    """A button that starts a run, and a button that cancels it."""
    return (
        gr.Button(text, variant="primary", elem_id=name, elem_classes="key-run"),
        gr.Button("Cancel", elem_id=f"cancel-{name}", elem_classes="key-cancel"),
    )


class Shown(NamedTuple):
    """Components that show the result of a run."""

    components: Sequence[Any]
    empty: Callable[[], Sequence[Any]]
    """Their values while a run goes on; called then, since Gradio would show a button that is made with the page."""
    values: Callable[[Any], Sequence[Any]]
    """Result -> their values."""


def film_and_file(gr: Any, film: Any, button: Any) -> Shown:
    """A result of two paths: a film to play, and a file to download."""
    return Shown(
        [film, button],
        lambda: [None, gr.DownloadButton(interactive=False)],
        lambda made: [str(made[0]), gr.DownloadButton(value=str(made[1]), interactive=True)],
    )


def running(
    gr: Any,
    work: Work,
    scene: Any,
    every: Any,
    buttons: tuple[Any, Any],
    shown: Shown,
    state: tuple[Any, Any],
) -> Any:
    """Let a button run the work, show its frames as they are done, and let another button stop it.

    Args:
        state: the text and the picture of `state`.

    Returns:
        The event of a run, for steps after it.
    """
    said, picture = state

    def ran(clip: OpenClip | None, step: int) -> Iterator[dict[Any, Any]]:
        opened_clip = opened(clip)
        followed = follow(lambda live: work(opened_clip, int(step), live), opened_clip.live)
        yield {said: "Started", **dict(zip(shown.components, shown.empty(), strict=True))}
        while True:
            try:
                live = next(followed)
            except StopIteration as end:
                made = end.value
                break
            if live.picture is not None:
                yield {said: f"{live.done} of {live.total} frames", picture: gr.Image(live.picture, visible=True)}
        live = opened_clip.live
        yield {picture: gr.Image(None, visible=False)} | (
            {said: f"Canceled after {live.done} of {live.total} frames"}
            if made is None
            else {said: "", **dict(zip(shown.components, shown.values(made), strict=True))}
        )

    def canceled(clip: OpenClip | None) -> None:
        if clip is not None:
            clip.live.stop.set()

    start, cancel = buttons
    outputs = [said, picture, *shown.components]
    cancel.click(showing_errors(gr, canceled), scene, None, queue=False)
    return start.click(showing_errors(gr, ran), [scene, every], outputs, concurrency_id="network", concurrency_limit=1)


def showing_errors(gr: Any, step: Any) -> Any:
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
    def showing_errors_now(*arguments: Any, **options: Any) -> Any:
        try:
            return step(*arguments, **options)
        except (ValueError, OSError) as error:
            raise gr.Error(str(error)) from error

    return showing_errors_now
