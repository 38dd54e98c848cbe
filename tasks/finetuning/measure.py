"""A network's predictions for the test images, and tables of them. Shapes: N images, K classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn
from torch.utils.data import Dataset

from data.images import LabeledImages, read_rgb
from dino_dense import Backbone, distributed
from dino_dense.backbone.bytes import sent, statistics
from dino_dense.loaders import WorkerItems, read_items
from dino_dense.training.precision import autocast
from tasks.finetuning.config import FinetuneConfig
from tasks.harness.session import Session
from tasks.images.features import SCALING, Preprocessing
from tasks.scores.classification import TOPS

CONFUSION_CLASSES = 1000
"""Largest number of classes for the full matrix: a file of some megabytes."""


class Predictions(NamedTuple):
    """Predictions on the CPU, in the order of the images."""

    ranking: Tensor
    """int64 [N, min(5, K)]: class ids, most likely first."""
    confidence: Tensor
    """[N]: probability of the first class."""
    loss: Tensor
    """[N]: cross-entropy with the label, nats."""

    def top1(self, labels: Sequence[int]) -> float:
        """Top-1 accuracy, percent."""
        return 100 * float((self.ranking[:, 0] == torch.tensor(labels)).double().mean())


class _TestImages(Dataset[tuple[Tensor, int]]):
    def __init__(self, items: Sequence[tuple[Path, int]], preprocessing: Preprocessing) -> None:
        self.items, self.transform = items, preprocessing.transform()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.items[index]
        return self.transform(read_rgb(path)), label


@torch.no_grad()
def predict(
    network: nn.Module, backbone: Backbone, images: LabeledImages, config: FinetuneConfig, batch: int, session: Session
) -> Predictions:
    """Predict every image once, all processes together.

    Args:
        network: normalized images [b, 3, S, S] -> scores [b, K].
        backbone: provides the device and the pixel statistics.
        batch: batch size of a process.
    """
    items = list(zip(images.paths, images.labels, strict=True))
    dataset = _TestImages(distributed.even_share(items, session.world), Preprocessing(config.resize, config.crop))
    worker_items = WorkerItems(config.workers, lambda index: str(dataset.items[index][0]))
    device = backbone.device
    loader = read_items(
        dataset, worker_items, batch_size=batch, generator=torch.Generator(), pin_memory=not backbone.on_cpu
    )
    mean, std = statistics(backbone.mean, backbone.std, device)
    parts = []
    network.eval()
    with session.bar(len(dataset), "test", leave=False) as bar:
        for pixels, labels in loader:
            with autocast(device, config.amp):
                scores = network((sent(pixels, device, SCALING) - mean) / std).float()
            top = scores.softmax(dim=1).topk(min(max(TOPS), scores.shape[1]), dim=1)
            loss = F.cross_entropy(scores, labels.to(device, non_blocking=True), reduction="none")
            parts.append((top.indices, top.values[:, 0], loss))
            bar.update(len(pixels))
    gathered = (distributed.all_gather(torch.cat(part))[: len(items)].cpu() for part in zip(*parts, strict=True))
    return Predictions(*gathered)


def per_class(predictions: Predictions, images: LabeledImages) -> pd.DataFrame:
    """A row for each class: number of test images, accuracy in percent, and the most frequent wrong prediction.

    Classes without test images have no accuracy; classes without errors have no wrong prediction.
    """
    names = images.class_names
    frame = pd.DataFrame({"label": images.labels, "guess": predictions.ranking[:, 0].numpy()})
    frame["right"] = frame["label"] == frame["guess"]
    by_class = frame.groupby("label")["right"].agg(["size", "sum"]).reindex(range(len(names)), fill_value=0)
    wrong = frame[~frame["right"]].groupby(["label", "guess"]).size().sort_values(ascending=False, kind="stable")
    most = wrong.reset_index(name="times").drop_duplicates("label").set_index("label").reindex(range(len(names)))
    return pd.DataFrame(
        {
            "class": names,
            "n": by_class["size"],
            "correct": by_class["sum"],
            "accuracy": 100 * by_class["sum"] / by_class["size"].where(by_class["size"] > 0),
            "most_confused_with": [names[int(guess)] if guess == guess else None for guess in most["guess"]],
            "times": most["times"].fillna(0).astype(int),
        }
    )


def confusion(predictions: Predictions, images: LabeledImages) -> pd.DataFrame:
    """Numbers of test images: a row for each true class (column `class`), a column for each predicted class."""
    names = images.class_names
    counts = confusion_matrix(images.labels, predictions.ranking[:, 0].numpy(), labels=range(len(names)))
    table = pd.DataFrame(counts, columns=names)
    table.insert(0, "class", names, allow_duplicates=True)
    return table
