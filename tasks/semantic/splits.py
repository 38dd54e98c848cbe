"""Images with a class for every pixel, for the semantic tasks: open, score, draw.

Shapes: K classes, H x W pixels of an image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from data.known_sets import pixel_set
from data.sample import sample_data
from data.segmentation import VOID, LabeledPixels, class_names, count_classes, embedded_segmentation
from data.segmentation_layouts import open_labeled
from dino_dense import Picture
from dino_dense.arrays import Pixels
from tasks.harness import figures
from tasks.harness.session import DataFacts, Session
from tasks.harness.task import file_list_hash
from tasks.scores.segmentation import Counts, class_iou, confusion, pixel_accuracy
from tasks.semantic.options import LabeledImages
from tasks.semantic.readings import mapping_of, pixel_reading, read_matrices, samples_of

if TYPE_CHECKING:
    import pandas as pd

PICTURES = 6

Predict = Callable[[Image.Image], Pixels]
"""RGB picture of any size -> class ids uint8 [H, W]."""


@dataclass(frozen=True)
class LabeledSplits:
    """The images to train on, the images to score, and the names of their K classes."""

    train: list[LabeledPixels]
    val: list[LabeledPixels]
    class_names: tuple[str, ...]
    facts: DataFacts
    has_other: bool = False
    """Whether class 0 is "other", which is labeled but not scored (ADE20K)."""

    def truth(self, ids: Pixels) -> Pixels:
        """Class ids [...] with `VOID` for pixels that are not scored."""
        return np.where(ids == 0, VOID, ids).astype(np.uint8) if self.has_other else ids


def open_splits(images: LabeledImages, *, zero_is_void: bool = True) -> LabeledSplits:
    """Open both splits of a data set, or the embedded pairs without `data`.

    If the layout does not define the number of classes, every mask is read.

    Args:
        zero_is_void: for ADE20K: whether class 0 ("other") is void, or a class.

    Raises:
        DataError: a split is unusable, or a validation image has a class that is missing in training.
    """
    other = False
    if images.data is None:
        root = sample_data().saliency
        train, val = embedded_segmentation(sample_data())
        names: tuple[str, ...] = ("ground", "object")
    else:
        root = Path(images.data)
        lists = [
            open_labeled(root, split, images.layout, classes=images.coco_classes, zero_is_void=zero_is_void)
            for split in (images.train_split, images.split)
        ]
        train, val, other = lists[0].pairs, lists[1].pairs, lists[0].has_other
        names = lists[0].class_names or class_names([*train, *val], count_classes(train, val))
    files = [file for pair in (*train, *val) for file in (pair.image, pair.mask)]
    description = DataFacts(
        name=f"{root.resolve().name} {images.split}" if images.data else "embedded pairs",
        root=str(root),
        n=len(val),
        unit="images",
        sha256=file_list_hash(root, files),
        dataset=pixel_set([pair.image for pair in val], [pair.image for pair in train]) if images.data else None,
    )
    return LabeledSplits(train, val, names, description, other)


def evaluate(
    predict: Predict,
    splits: LabeledSplits,
    session: Session,
    compared: Callable[[Pixels], Pixels] = lambda ids: ids,
) -> tuple[Counts, pd.DataFrame]:
    """The confusion matrix [N, K, K] and the scores of each image; the processes share the images.

    Args:
        compared: class ids of an image -> those that its prediction is compared with.
    """
    import pandas as pd

    def measured(pair: LabeledPixels) -> Counts:
        picture, ids = pair.read()
        return confusion(predict(picture), compared(ids), len(splits.class_names))

    share = session.progress(session.share(splits.val), "segmenting")
    matrices = session.collect((index, measured(pair)) for index, pair in share)
    rows = [
        (pair.name, float(np.nanmean(class_iou(m))), pixel_accuracy(m))
        for pair, m in zip(splits.val, matrices, strict=True)
    ]
    return np.stack(matrices), pd.DataFrame(rows, columns=["image", "mIoU", "accuracy"])


def image_samples(matrices: Counts, splits: LabeledSplits, absent: str = "left out") -> pd.DataFrame:
    """Each image's contribution to mIoU and accuracy over all pixels, from confusion matrices [N, K, K].

    Args:
        absent: whether classes in no image and no prediction are left out, or count as "zero".
    """
    reading = read_matrices(matrices, mapping_of(matrices, "own"), absent)
    readings = {"mIoU": [reading], "accuracy": [pixel_reading(matrices)]}
    return samples_of(readings, splits.class_names, [pair.name for pair in splits.val], [""])


def per_class(matrix: Counts, splits: LabeledSplits) -> pd.DataFrame:
    """A row for each class: its name, IoU and accuracy in percent, and its splits."""
    import pandas as pd

    there = matrix.sum(1)
    accuracy = np.divide(100 * np.diag(matrix), there, out=np.full(len(there), np.nan), where=there > 0)
    return pd.DataFrame({"class": splits.class_names, "IoU": class_iou(matrix), "accuracy": accuracy, "pixels": there})


def draw_worst_and_best(
    predict: Predict, splits: LabeledSplits, per_image: pd.DataFrame, folder: Path
) -> tuple[Picture, ...]:
    """Draw the images of lowest and highest mIoU: the prediction, then the truth."""
    return draw_maps(lambda pair, image: predict(image), splits, per_image, folder)


def draw_maps(
    predict: Callable[[LabeledPixels, Image.Image], Pixels],
    splits: LabeledSplits,
    per_image: pd.DataFrame,
    folder: Path,
) -> tuple[Picture, ...]:
    """`draw_worst_and_best` with a prediction function that also gets the labeled image."""
    pictures = []
    means = per_image.set_index("image")["mIoU"].dropna()
    pairs = {pair.name: pair for pair in splits.val}
    for name in map(str, figures.worst_and_best_first(means)[:PICTURES]):
        pair = pairs[name]
        image, truth = pair.read()
        frame = np.asarray(image)
        path = folder / "overlays" / f"{pair.name}.jpg"
        truth = np.where(truth == VOID, 0, truth)
        figures.mask_strip(path, [(frame, predict(pair, image)), (frame, truth.astype(np.uint8))])
        pictures.append(Picture(f"overlays/{path.name}", f"{name}: mIoU {means[name]:.1f}; prediction, then truth"))
    return tuple(pictures)
