"""Semantic segmentation by a linear layer on frozen patch tokens (mIoU)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dino_dense import Metric, Picture, Score
from dino_dense.backbone.grid import check_whole
from dino_dense.config import command_line
from dino_dense.probes.protocol import PixelProbe
from dino_dense.versions import versions
from tasks.harness import figures
from tasks.harness.runner import main
from tasks.harness.session import Session
from tasks.harness.task import Outcome, Task, sized_by
from tasks.scores.segmentation import class_iou, pixel_accuracy
from tasks.semantic.options import LabeledImages
from tasks.semantic.splits import LabeledSplits, draw_worst_and_best, evaluate, image_samples, open_splits, per_class

if TYPE_CHECKING:
    import pandas as pd

    from dino_dense import Backbone
    from dino_dense.probes.pixels import LinearHead


@dataclass(frozen=True)
class SegprobeConfig(PixelProbe, LabeledImages):
    """A linear layer on patch tokens"""


def open_data(config: SegprobeConfig) -> LabeledSplits:
    """Open both splits of a config; raises the errors of `open_splits`."""
    return open_splits(config)


def measure(backbone: Backbone, splits: LabeledSplits, config: SegprobeConfig, session: Session) -> Outcome:
    """Train the layer, predict every image of the split, and score."""
    import numpy as np

    from dino_dense.probes.pixels import predict, train_head
    from dino_dense.report.samples import score_samples

    check_whole("crop", config.crop, backbone.patch_size, backbone.name)

    def score(head: LinearHead) -> float:
        matrices, _ = evaluate(partial(predict, backbone, head, config=config), splits, session)
        return float(np.nanmean(class_iou(matrices.sum(0))))

    trained = train_head(
        backbone,
        config,
        splits.train,
        len(splits.class_names),
        state=session.folder("head") / "last.safetensors",
        world=session.world,
        seed=session.seed,
        workers=config.workers,
        score=score,
    )
    predict_one = partial(predict, backbone, trained.head, config=config)
    matrices, per_image = evaluate(predict_one, splits, session)
    matrix = matrices.sum(0)
    samples = image_samples(matrices, splits)
    errors = {name: score_samples(samples, name).stderr for name in ("mIoU", "accuracy")}
    return Outcome(
        scores=(
            Score("mIoU", float(np.nanmean(class_iou(matrix))), len(samples), errors["mIoU"]),
            Score("accuracy", pixel_accuracy(matrix), len(samples), errors["accuracy"]),
        ),
        tables={
            "per_class": per_class(matrix, splits),
            "per_image": per_image,
            "curve": trained.curve,
            **({"evaluations": trained.evaluations} if len(trained.evaluations) else {}),
        },
        note="mIoU is the mean over classes of one confusion matrix over all pixels; n counts the images."
        + _chosen_note(trained.evaluations),
        samples=samples,
        to_draw=predict_one,
    )


def _chosen_note(evaluations: pd.DataFrame) -> str:
    """Which of the layers is reported, where it was chosen."""
    if not len(evaluations):
        return ""
    best, last = evaluations.iloc[int(evaluations["score"].to_numpy().argmax())], evaluations.iloc[-1]
    return (
        f" The layer after step {best['step']:g} is the best of {len(evaluations)} evaluations on these very images, "
        f"as DINOv3 reports; the last has {last['score']:.2f}."
    )


def draw(splits: LabeledSplits, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """Draw the images of lowest and highest mIoU, and the loss curve."""
    figures.curves(folder / "curve.png", outcome.tables["curve"].set_index("step")[["loss"]], "step")
    worst_and_best = draw_worst_and_best(outcome.to_draw, splits, outcome.tables["per_image"], folder)
    return (*worst_and_best, Picture("curve.png", "Loss of the linear layer"))


TASK = Task(
    name="segprobe",
    summary="Semantic segmentation by a linear layer on frozen patch tokens (mIoU).",
    source="Linear segmentation of DINOv3, arXiv 2508.10104, App. D; dinov3/eval/segmentation; PASCAL VOC's mIoU.",
    config=SegprobeConfig,
    metrics=(Metric("mIoU"), Metric("accuracy")),
    open=open_data,
    measure=measure,
    draw=draw,
    at_size=sized_by("crop"),
    smoke=SegprobeConfig(steps=60, crop=96, augment=False, lr=1e-2, evaluations=1, window="whole"),
    versions=versions("pixel probe", "segmentation scores"),
)

if __name__ == "__main__":
    command_line.run(lambda: main("segprobe"))
