"""Semantic segmentation by a linear layer on frozen patch tokens (mIoU)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from data import DataError
from data.sample import sample_data
from data.segmentation import VOC_CLASSES, VOID, LabelledPixels, embedded_segmentation, load_voc_segmentation
from dino_dense import Backbone, Metric, Picture, Score, cli, distributed
from tasks import _figures
from tasks._pixel_probe import PixelProbe, predict, train_head
from tasks._scores.segmentation import Counts, class_iou, confusion, pixel_accuracy
from tasks._task import Context, DataFacts, Outcome, Task, file_list_hash, main

PICTURES = 6


@dataclass(frozen=True)
class SegprobeConfig(PixelProbe):
    """Which images"""

    data: str | None = None
    """Tree in VOC's layout: JPEGImages, SegmentationClass (255 is void), ImageSets/Segmentation; without it, the
    embedded pairs (classes ground and object)."""
    train_split: str = "train"
    """List under ImageSets/Segmentation to train on."""
    split: str = "val"
    """List under ImageSets/Segmentation to score."""
    workers: int = 0
    """Processes that read images beside the main one."""


@dataclass(frozen=True)
class _Pixels:
    """The images, and how many classes they have."""

    train: list[LabelledPixels]
    val: list[LabelledPixels]
    class_names: tuple[str, ...]
    facts: DataFacts


def run(backbone: Backbone | None, config: SegprobeConfig, context: Context) -> Outcome:
    """Train the layer, apply it to every image of the split, and score."""
    assert backbone is not None
    if config.crop % backbone.patch_size:
        near = round(config.crop / backbone.patch_size) * backbone.patch_size
        raise ValueError(
            f"crop is {config.crop}: expected a multiple of {backbone.name}'s patch size {backbone.patch_size}, "
            f"such as {max(near, backbone.patch_size)}"
        )
    pixels = open_pixels(config)
    context.bind(pixels.facts)
    classes = len(pixels.class_names)
    head, curve = train_head(backbone, config, context, pixels.train, classes, config.workers)
    matrix, per_image = _evaluate(backbone, head, config, context, pixels)
    iou = class_iou(matrix)
    samples = pd.DataFrame({"sample": pixels.class_names, "mIoU": iou})
    pictures = _draw(backbone, head, config, context, pixels, per_image, curve) if context.world.is_main else ()
    seen = samples["mIoU"].dropna()
    spread = float(seen.std()) / len(seen) ** 0.5 if len(seen) > 1 else None
    return Outcome(
        scores=(
            Score("mIoU", float(seen.mean()), len(seen), spread),
            Score("accuracy", pixel_accuracy(matrix), len(pixels.val)),
        ),
        data=pixels.facts,
        tables={"per_class": _per_class(matrix, pixels), "per_image": per_image, "curve": curve},
        note="mIoU is the mean over classes of one confusion matrix over all pixels; n counts the classes.",
        samples=samples,
        pictures=pictures,
    )


def open_pixels(config: SegprobeConfig) -> _Pixels:
    """The two splits, every training mask looked at for its classes.

    Raises:
        DataError: a split cannot be used, or a validation image has a class that training never saw.
    """
    if config.data is None:
        root = sample_data().saliency
        train, val = embedded_segmentation(sample_data())
        names: tuple[str, ...] = ("ground", "object")
    else:
        root = Path(config.data)
        train, val = (load_voc_segmentation(root, split) for split in (config.train_split, config.split))
        names = _class_names(train, val)
    files = [file for pair in (*train, *val) for file in (pair.image, pair.mask)]
    facts = DataFacts(
        name=f"{root.resolve().name} {config.split}" if config.data else "embedded pairs",
        root=str(root),
        n=len(val),
        unit="images",
        sha256=file_list_hash(root, files),
    )
    return _Pixels(train, val, names, facts)


def _class_names(train: Sequence[LabelledPixels], val: Sequence[LabelledPixels]) -> tuple[str, ...]:
    """Names of the ids 0 to the highest; VOC's where there are as many."""
    highest = max(_highest_id(pair) for pair in train)
    for pair in val:
        if _highest_id(pair) > highest:
            raise DataError(
                f"{pair.mask}: class id {_highest_id(pair)}, but the training masks have none above {highest}. Are "
                "these masks of classes (SegmentationClass), not of objects?"
            )
    if highest < 1:
        raise DataError(f"{train[0].mask.parent}: the training masks hold one class only; expected two or more")
    return VOC_CLASSES if highest + 1 == len(VOC_CLASSES) else tuple(f"class {index}" for index in range(highest + 1))


def _highest_id(pair: LabelledPixels) -> int:
    ids = pair.read_ids()
    return int(ids[ids != VOID].max(initial=0))


def _evaluate(
    backbone: Backbone, head: nn.Module, config: SegprobeConfig, context: Context, pixels: _Pixels
) -> tuple[Counts, pd.DataFrame]:
    """One confusion matrix [K, K] over all pixels, and each image's own mIoU; the processes share the images."""
    classes = len(pixels.class_names)
    numbers = list(range(len(pixels.val)))
    matrices = []
    bar = tqdm(distributed.even_share(numbers, context.world), unit="image", desc="segmenting")
    bar.disable = bar.disable or not context.world.is_main
    for index in bar:
        picture, ids = pixels.val[index].read()
        matrices.append(torch.from_numpy(confusion(predict(backbone, head, picture, config), ids, classes)))
    gathered = distributed.all_gather(torch.stack(matrices).to(backbone.device))[: len(numbers)].cpu().numpy()
    rows = [
        (pair.name, float(np.nanmean(class_iou(m))), pixel_accuracy(m))
        for pair, m in zip(pixels.val, gathered, strict=True)
    ]
    return gathered.sum(0), pd.DataFrame(rows, columns=["image", "mIoU", "accuracy"])


def _per_class(matrix: Counts, pixels: _Pixels) -> pd.DataFrame:
    """A row a class: its name, IoU and accuracy in percent, and its pixels."""
    there = matrix.sum(1)
    accuracy = np.divide(100 * np.diag(matrix), there, out=np.full(len(there), np.nan), where=there > 0)
    return pd.DataFrame({"class": pixels.class_names, "IoU": class_iou(matrix), "accuracy": accuracy, "pixels": there})


def _draw(
    backbone: Backbone,
    head: nn.Module,
    config: SegprobeConfig,
    context: Context,
    pixels: _Pixels,
    per_image: pd.DataFrame,
    curve: pd.DataFrame,
) -> tuple[Picture, ...]:
    """Worst and best images beside their truth, and the learning curve."""
    pictures = []
    means = per_image.set_index("image")["mIoU"].dropna()
    pairs = {pair.name: pair for pair in pixels.val}
    for name in map(str, _figures.worst_and_best_first(means)[:PICTURES]):
        pair = pairs[name]
        image, truth = pair.read()
        frame = np.asarray(image)
        path = context.folder("overlays") / f"{pair.name}.jpg"
        truth = np.where(truth == VOID, 0, truth)
        _figures.mask_strip(path, [(frame, predict(backbone, head, image, config)), (frame, truth.astype(np.uint8))])
        pictures.append(Picture(f"overlays/{path.name}", f"{name}: mIoU {means[name]:.1f}; prediction, then truth"))
    _figures.curves(context.folder() / "curve.png", curve.set_index("step")[["loss"]], "step")
    return (*pictures, Picture("curve.png", "Loss of the linear layer"))


TASK = Task(
    name="segprobe",
    summary="Semantic segmentation by a linear layer on frozen patch tokens (mIoU).",
    source="Linear segmentation of DINOv3, arXiv 2508.10104, App. D; PASCAL VOC's mIoU.",
    config=SegprobeConfig,
    metrics=(Metric("mIoU"), Metric("accuracy")),
    run=run,
    smoke=SegprobeConfig(steps=60, crop=96, augment=False, lr=1e-2),
    free=frozenset({"workers"}),
)

if __name__ == "__main__":
    cli.run(lambda: main("segprobe"))
