"""The tab of the page that gives classes to a picture from reference pictures."""

from typing import Any, NamedTuple

from data.files import IMAGE_SUFFIXES
from dino_dense.arrays import Pixels
from tasks.studio_page.labels import References, label_and_write, open_references, put_masks
from tasks.studio_page.marking import Marking, let_mark, marking
from tasks.studio_page.opened import OpenClip
from tasks.studio_page.parts import BUTTONS, opened, showing_errors
from tasks.studio_page.scene import MOST_OBJECTS, Studio

MASK_ENDINGS = [".png", ".tif", ".tiff", ".bmp", ".json"]


def labels_tab(gr: Any, studio: Studio, scene: Any, likeness: Any) -> None:
    """References to choose and mark, and the classes of the frame on view."""
    references = gr.State(None, delete_callback=_close)
    gr.Markdown(
        "Mark classes in reference images, or choose class masks (each with the name of its image). The frame on view "
        "gets the classes of the most similar patches. In an image with a class, all other pixels are background; an "
        "image without any class is not used."
    )
    with gr.Row():
        images = _files(gr, "Reference images", sorted(IMAGE_SUFFIXES), "references")
        masks = _files(gr, "Class masks (optional)", MASK_ENDINGS, "class-masks")
    with gr.Row():
        chosen = gr.Slider(1, 2, 1, step=1, label="Reference", interactive=False, elem_id="reference")
        identity = gr.Slider(0, MOST_OBJECTS, 1, step=1, label="Class (0: background)")
    names = ("reference-image", "reference-editor", "undo-class", "clear-reference")
    marks = marking(gr, identity, "Reference", "click a region of the class", "Clear this reference", names)
    with marks.row:
        start = gr.Button("Find classes", variant="primary", elem_id="label", elem_classes="key-run", min_width=120)
    result = gr.Image(
        label="Classes of the frame on view", interactive=False, format="png", elem_id="classes", buttons=BUTTONS
    )
    download = gr.DownloadButton("Download the classes", elem_id="download-classes", interactive=False)
    _let_choose(gr, studio, references, Choice(images, masks, chosen), marks)
    let_mark(gr, studio, marks, references, likeness, _picture, _seen, marks.picture)
    _let_find(gr, studio, references, scene, start, [result, download])


class Choice(NamedTuple):
    """The components that choose a reference."""

    images: Any
    masks: Any
    chosen: Any
    """Slider: number of the reference, from 1."""


def _let_choose(gr: Any, studio: Studio, references: Any, choice: Choice, marks: Marking) -> None:
    """Let files be opened as references, one of them be viewed, and its last change be taken back."""

    def files_chosen(paths: list[str] | None, mask_paths: list[str] | None, before: References | None) -> Any:
        _close(before)
        if not paths:
            return None, gr.Slider(value=1, interactive=False), None, None
        made = open_references(studio, paths, mask_paths or [])
        slider = gr.Slider(maximum=max(2, len(paths)), value=1, interactive=len(paths) > 1)
        return made, slider, _seen(made), made.picture.frame

    def masks_chosen(made: References | None, paths: list[str] | None) -> Pixels | None:
        if made is None:
            return None
        put_masks(made, paths or [])
        return _seen(made)

    def went(made: References | None, number: float) -> tuple[Pixels, Pixels]:
        made = _chosen(made)
        made.chosen = int(number) - 1
        return _seen(made), made.picture.frame

    def undone(made: References | None) -> Pixels:
        _picture(made).undo()
        return _seen(made)

    opening, pictures = showing_errors(gr, files_chosen), [marks.picture, marks.editor]
    choice.images.change(opening, [choice.images, choice.masks, references], [references, choice.chosen, *pictures])
    choice.masks.change(showing_errors(gr, masks_chosen), [references, choice.masks], marks.picture)
    going = showing_errors(gr, went)
    choice.chosen.input(going, [references, choice.chosen], pictures, trigger_mode="always_last")
    marks.undo.click(showing_errors(gr, undone), references, marks.picture)


def _let_find(gr: Any, studio: Studio, references: Any, scene: Any, start: Any, outputs: list[Any]) -> None:
    """Let a button give classes to the frame on view, as a picture and as a file."""

    def classified(made: References | None, clip: OpenClip | None) -> tuple[Pixels, Any]:
        seen, path = label_and_write(studio, _chosen(made), opened(clip))
        return seen, gr.DownloadButton(value=str(path), interactive=True)

    step = showing_errors(gr, classified)
    start.click(step, [references, scene], outputs, concurrency_id="network", concurrency_limit=1)


def _files(gr: Any, label: str, endings: list[str], name: str) -> Any:
    return gr.File(label=label, file_count="multiple", file_types=endings, type="filepath", elem_id=name)


def _chosen(references: References | None) -> References:
    if references is None:
        raise ValueError("first choose reference images")
    return references


def _picture(references: References | None) -> OpenClip:
    """The reference on view."""
    return _chosen(references).picture


def _seen(references: References | None) -> Pixels:
    """The reference on view, overlaid with its classes."""
    return _picture(references).seen()


def _close(references: References | None) -> None:
    if references is not None:
        references.close()
