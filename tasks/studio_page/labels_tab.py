"""The tab of the page that gives classes to a picture from reference pictures."""

from typing import Any

from data.files import IMAGE_SUFFIXES
from dino_dense.arrays import Pixels
from tasks.studio_page.labels import References, label_and_write, open_references, put_masks
from tasks.studio_page.opened import OpenClip
from tasks.studio_page.parts import BUTTONS, clickable, clicked_by, opened, showing_errors
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
    picture = clickable(gr, "Reference: click a region of the class", "reference-image")
    with gr.Accordion("Paint instead", open=False):
        brush = gr.Brush(colors=["#ff0000"], color_mode="fixed")
        editor = gr.ImageEditor(label="Reference", type="numpy", brush=brush, elem_id="reference-editor", layers=False)
        paint = gr.Button("Mark what is painted")
    with gr.Row():
        undo = gr.Button("Undo", elem_id="undo-class", elem_classes="key-undo", min_width=120)
        clear = gr.Button("Clear this reference", min_width=120)
        start = gr.Button("Find classes", variant="primary", elem_id="label", elem_classes="key-run", min_width=120)
    result = gr.Image(
        label="Classes of the frame on view", interactive=False, format="png", elem_id="classes", buttons=BUTTONS
    )
    download = gr.DownloadButton("Download the classes", elem_id="download-classes", interactive=False)

    def files_chosen(paths: list[str] | None, mask_paths: list[str] | None, before: References | None) -> Any:
        _close(before)
        if not paths:
            return None, gr.Slider(value=1, interactive=False), None, None
        made = open_references(studio, paths, mask_paths or [])
        slider = gr.Slider(maximum=max(2, len(paths)), value=1, interactive=len(paths) > 1)
        return made, slider, made.picture.seen(), made.picture.frame

    def masks_chosen(made: References | None, paths: list[str] | None) -> Pixels | None:
        if made is None:
            return None
        put_masks(made, paths or [])
        return made.picture.seen()

    def went(made: References | None, number: float) -> tuple[Pixels, Pixels]:
        made = _chosen(made)
        made.chosen = int(number) - 1
        return made.picture.seen(), made.picture.frame

    def clicked(made: References | None, number: int, alike: float, event: Any) -> Pixels:
        studio.click(_chosen(made).picture, (event.index[0], event.index[1]), int(number), alike)
        return _chosen(made).picture.seen()

    def painted(made: References | None, number: int, drawn: dict[str, Any]) -> Pixels:
        for layer in drawn["layers"]:
            studio.paint(_chosen(made).picture, layer[..., 3] > 0, int(number))
        return _chosen(made).picture.seen()

    def changed(made: References | None, change: Any) -> Pixels:
        change(_chosen(made).picture)
        return _chosen(made).picture.seen()

    def classified(made: References | None, clip: OpenClip | None) -> tuple[Pixels, Any]:
        seen, path = label_and_write(studio, _chosen(made), opened(clip))
        return seen, gr.DownloadButton(value=str(path), interactive=True)

    opening = showing_errors(gr, files_chosen)
    images.change(opening, [images, masks, references], [references, chosen, picture, editor])
    masks.change(showing_errors(gr, masks_chosen), [references, masks], picture)
    chosen.input(showing_errors(gr, went), [references, chosen], [picture, editor], trigger_mode="always_last")
    picture.select(clicked_by(gr, clicked), [references, identity, likeness], picture)
    paint.click(showing_errors(gr, painted), [references, identity, editor], picture)
    for button, change in ((undo, OpenClip.undo), (clear, OpenClip.clear)):
        button.click(showing_errors(gr, lambda made, change=change: changed(made, change)), references, picture)
    start.click(
        showing_errors(gr, classified),
        [references, scene],
        [result, download],
        concurrency_id="network",
        concurrency_limit=1,
    )


def _files(gr: Any, label: str, endings: list[str], name: str) -> Any:
    return gr.File(label=label, file_count="multiple", file_types=endings, type="filepath", elem_id=name)


def _chosen(references: References | None) -> References:
    if references is None:
        raise ValueError("first choose reference images")
    return references


def _close(references: References | None) -> None:
    if references is not None:
        references.close()
