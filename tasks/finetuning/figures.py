"""Pictures of a fine-tuned classifier."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix

from data.images import LabeledImages, read_rgb
from tasks.finetuning.measure import Predictions

SHOWN_CLASSES = 100
"""Largest number of classes with readable names."""
NUMBERED_CLASSES = 15
"""Largest number of classes with numbers in the cells."""
HARDEST = 12
COLUMNS = 6
THUMBNAIL = 256  # pixels


def draw_confusion(path: Path, predictions: Predictions, images: LabeledImages) -> int:
    """Write the confusion matrix, rows in percent; if there are many classes, of the classes with most errors.

    Returns:
        Number of shown classes.
    """
    labels, guesses = np.array(images.labels), predictions.ranking[:, 0].numpy()
    mistakes = np.bincount(labels[labels != guesses], minlength=len(images.class_names))
    chosen = np.sort(np.argsort(-mistakes, kind="stable")[:SHOWN_CLASSES])
    names = [images.class_names[index] for index in chosen]
    counts = confusion_matrix(labels, guesses, labels=chosen)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 4 + 0.14 * len(names)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    size = 9 if len(names) <= NUMBERED_CLASSES else 6
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set(xlabel="taken for", ylabel="class")
    for (row, column), count in np.ndenumerate(counts) if len(names) <= NUMBERED_CLASSES else ():
        color = "white" if shares[row, column] > 50 else "black"
        axes.text(column, row, count, ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(image, label="% of the class's images", shrink=0.8)
    figure.savefig(path, dpi=120)
    return len(names)


def draw_hardest(path: Path, predictions: Predictions, images: LabeledImages) -> Sequence[int]:
    """Write the test images with the largest loss, with their true and predicted classes.

    Returns:
        Their indices.
    """
    hardest: list[int] = predictions.loss.argsort(descending=True, stable=True)[:HARDEST].tolist()
    rows = -(-len(hardest) // COLUMNS)
    figure = Figure(figsize=(2 * COLUMNS, 2.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for panel in panels:
        panel.axis("off")
    for panel, index in zip(panels, hardest, strict=False):
        picture = read_rgb(images.paths[index])
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        guess, true = int(predictions.ranking[index, 0]), images.labels[index]
        taken_for = f"{images.class_names[guess]} {100 * float(predictions.confidence[index]):.0f} %"
        panel.imshow(picture)
        color = "black" if guess == true else "firebrick"
        panel.set_title(f"{images.class_names[true]}\n→ {taken_for}", fontsize=7, color=color)
    figure.savefig(path, dpi=120)
    return hardest
