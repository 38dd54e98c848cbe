"""Semantic segmentation by a linear layer on frozen patch tokens (mIoU)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dino_dense import Metric, Picture, Score
from dino_dense.arrays import Pixels
from dino_dense.backbone.grid import check_whole
from dino_dense.config import command_line
from dino_dense.probes.protocol import PixelProbe
from dino_dense.versions import versions
from tasks.harness import figures
from tasks.harness.command import main
from tasks.harness.session import Session
from tasks.harness.task import Outcome, Task, sized_by
from tasks.scores.segmentation import Counts, mean_iou, pixel_accuracy
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
    from dino_dense.backbone.remembering import RememberingBackbone
    from dino_dense.probes.pixels import joined, predict, train_head
    from dino_dense.report.samples import score_samples

    check_whole("crop", config.crop, backbone.patch_size, backbone.name)
    config, backbone = config.with_steps(len(splits.train)), joined(backbone, config)
    looking = RememberingBackbone(backbone) if config.evaluations > 1 else backbone

    def looked_at(head: LinearHead) -> tuple[Counts, pd.DataFrame]:
        return evaluate(partial(predict, looking, head, config=config), splits, session, partial(compared, config))

    def score(head: LinearHead) -> float:
        return mean_iou(looked_at(head)[0].sum(0), config.absent)

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
    matrices, per_image = looked_at(trained.head)
    matrix = matrices.sum(0)
    samples = image_samples(matrices, splits, config.absent)
    errors = {name: score_samples(samples, name).stderr for name in ("mIoU", "accuracy")}
    return Outcome(
        scores=(
            Score("mIoU", mean_iou(matrix, config.absent), len(samples), errors["mIoU"]),
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
        to_draw=partial(predict, backbone, trained.head, config=replace(config, side=None)),
    )


def compared(config: PixelProbe, ids: Pixels) -> Pixels:
    """Class ids [H, W] of an image as its prediction is compared with: at the side of the protocol, if it has one."""
    import torch

    from dino_dense.probes.pixels import stretched_ids
    from dino_dense.probes.readout import nearest_labels

    if config.side is None:
        return ids
    square: Pixels = nearest_labels(torch.from_numpy(stretched_ids(ids, config.crop))[None], config.side)[0].numpy()
    return square


def _chosen_note(evaluations: pd.DataFrame) -> str:
    """Which of the layers is reported, where it was chosen."""
    if not len(evaluations):
        return ""
    best, last = evaluations.iloc[int(evaluations["score"].to_numpy().argmax())], evaluations.iloc[-1]
    return (
        f" The layer after step {best['step']:g} is the best of {len(evaluations)} evaluations on these very images, "
        f"as DINOv3 and NeCo report; the last has {last['score']:.2f}."
    )


def draw(splits: LabeledSplits, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """Draw the images of lowest and highest mIoU, and the loss curve."""
    figures.curves(folder / "curve.png", outcome.tables["curve"].set_index("step")[["loss"]], "step")
    worst_and_best = draw_worst_and_best(outcome.to_draw, splits, outcome.tables["per_image"], folder)
    return (*worst_and_best, Picture("curve.png", "Loss of the linear layer"))


TASK = Task(
    name="segprobe",
    summary="Semantic segmentation by a linear layer on frozen patch tokens (mIoU).",
    source="Linear segmentation of DINOv3, arXiv 2508.10104, App. D, dinov3/eval/segmentation; others by --preset.",
    config=SegprobeConfig,
    metrics=(Metric("mIoU"), Metric("accuracy")),
    open=open_data,
    measure=measure,
    draw=draw,
    at_size=sized_by("crop"),
    upsamples=True,
    smoke=SegprobeConfig(steps=60, crop=96, augment=False, lr=1e-2, evaluations=1, window="whole"),
    versions=versions("pixel probe", "segmentation scores"),
)

if __name__ == "__main__":
    command_line.run(lambda: main("segprobe"))
