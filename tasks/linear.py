"""Linear classification of frozen features: SGD with a grid of learning rates, or logistic regression."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dino_dense import Picture
from dino_dense.config import command_line
from dino_dense.versions import versions
from tasks.harness import figures
from tasks.harness.command import main
from tasks.harness.session import Session
from tasks.harness.task import Outcome, Task
from tasks.images.labeled import LabeledSet, open_labeled
from tasks.images.linear_config import LinearConfig
from tasks.scores.classification import METRICS, hits

if TYPE_CHECKING:
    from dino_dense import Backbone

CHOSEN_ON = {
    "val": "the test images",
    "heldout": "a tenth of the training images, of each class",
    "random": "a random tenth of the training images",
}
WIDE = 768  # from this width on (ViT-B), the paper uses the last block only, with its mean patch token


def pieces_of(config: LinearConfig, backbone: Backbone) -> tuple[str, ...]:
    """The pieces of features to join, in order.

    Raises:
        ValueError: the backbone has fewer blocks.
    """
    from tasks.images.features import cls_pieces

    wide, uniform = backbone.embed_dim >= WIDE, backbone.uniform_width
    blocks = config.blocks or (min(4, backbone.depth) if uniform and not wide else 1)
    if blocks > backbone.depth:
        raise ValueError(f"blocks is {blocks}, but {backbone.name} has {backbone.depth}; lower it.")
    # If layers differ in width, the pooled feature is the mean patch already.
    mean = config.mean_patch if config.mean_patch is not None else wide and uniform
    return (*cls_pieces(blocks), *(("mean",) if mean else ()))


def measure(backbone: Backbone, images: LabeledSet, config: LinearConfig, session: Session) -> Outcome:
    """Train all candidates, and report the best."""
    from tasks.images.linear_probe import LinearProbe

    pieces = pieces_of(config, backbone)
    probe = LinearProbe(backbone, config, session, images, pieces)
    fit = probe.by_lbfgs if config.solver == "lbfgs" else probe.by_sgd
    candidates, scores_of, curve = fit()
    best = int(candidates["selection"].to_numpy().argmax())  # the first of equals
    scores = scores_of(best)
    samples = hits(scores.topk(min(5, scores.shape[1])).indices, probe.test.labels, images.test_names)
    chosen = candidates.iloc[best]
    kind = "lr" if config.solver == "sgd" else "C"
    where = CHOSEN_ON[config.selection]
    if kind == "C" and config.selection != "val":
        where += ", then fitted again on all"
    note = f"{' + '.join(pieces)}; {kind} {chosen[kind]:g}, chosen on {where}, of {len(candidates)} in candidates.csv."
    if best in (0, len(candidates) - 1) and len(candidates) > 1:
        note += " That is the end of the grid: a wider one may find better."
    if kind == "lr":
        note += " Accuracy after the last epoch; eval_linear.py reports its best epoch's."
    if kind == "C" and not chosen["converged"]:
        note += " L-BFGS stopped before it converged."
    return Outcome(samples=samples, tables={"candidates": candidates}, note=note, to_draw=curve)


def draw(images: LabeledSet, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """Draw the learning curve of the chosen head; nothing for logistic regression."""
    if outcome.to_draw is None:
        return ()
    figures.curves(folder / "curve.png", outcome.to_draw.rows, "epoch")
    caption = f"Linear head, learning rate {outcome.to_draw.rate:g} after scaling: training loss, accuracy"
    return (Picture("curve.png", caption),)


TASK = Task(
    name="linear",
    summary="Linear classification of frozen features (top-1).",
    source="DINO, arXiv 2104.14294, sec. 4.1; eval_linear.py; logistic regression: ours, or dinov2's (preset dinov2).",
    config=LinearConfig,
    metrics=METRICS,
    open=open_labeled,
    measure=measure,
    draw=draw,
    smoke=LinearConfig(features="cached", resize=64, crop=64, epochs=20, batch_size=256),
    pieces=lambda config, backbone: frozenset(pieces_of(config, backbone)),
    versions=versions("image features", "class probe", "classification scores"),
)

if __name__ == "__main__":
    command_line.run(lambda: main("linear"))
