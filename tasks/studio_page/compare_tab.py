"""The tab of the page that shows two checkpoints side by side."""

from typing import Any

from dino_dense.arrays import Pixels
from tasks.studio_page.compare import NAMES, compare, run_both
from tasks.studio_page.opened import OpenClip
from tasks.studio_page.parts import BUTTONS, Shown, clickable, clicked_by, opened, run_buttons, running, state
from tasks.studio_page.scene import Studio


def compare_tab(gr: Any, studio: Studio, scene: Any, other: Any, likeness: Any, every: Any) -> Any:
    """One click, and the results of both checkpoints beside each other; a run of both.

    Args:
        other: the state of the other image of a match.

    Returns:
        The picture of the frame on view.
    """
    names = "; ".join(f"{name}: {one.name} ({one.spec})" for name, one in zip(NAMES, studio.backbones, strict=True))
    gr.Markdown(
        f"{names}. Both see the same frame at the same size (short side {studio.resolution} pixels, rounded to whole "
        "patches of each). A click shows the region of the clicked pixel at the same threshold, the leading components "
        "and, if tab Match has another image, the match there. Each network has components of its own: the same color "
        "does not mean the same part in both. A run carries the marks of tab Masks through both."
    )
    frame = clickable(gr, "Frame on view: click a point", "compare-frame")
    regions, components, matches = (
        gr.Image(show_label=False, interactive=False, format="png", elem_id=f"compare-{name}", buttons=BUTTONS)
        for name in ("regions", "components", "matches")
    )
    said = gr.Markdown(elem_id="compare-said")
    with gr.Row():
        buttons = run_buttons(gr, "Run both", "run-both")
    progress = state(gr, "run-both")
    with gr.Row():
        films = [
            gr.Video(label=f"Masks of {name}", interactive=False, elem_id=f"compare-film-{name}") for name in NAMES
        ]
    agreed = gr.Markdown(elem_id="compare-agreed")

    def clicked(
        clip: OpenClip | None, another: OpenClip | None, alike: float, event: Any
    ) -> tuple[Pixels, Pixels, Pixels | None, str]:
        result = compare(studio, opened(clip), another, (event.index[0], event.index[1]), alike)
        return result.regions, result.components, result.matches, result.said

    frame.select(clicked_by(gr, clicked), [scene, other, likeness], [regions, components, matches, said])
    shown = Shown([*films, agreed], lambda: [None, None, ""], lambda made: [str(made[0]), str(made[1]), made[2]])
    running(gr, lambda clip, step, live: run_both(studio, clip, step, live), scene, every, buttons, shown, progress)
    return frame
