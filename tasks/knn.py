"""Weighted k-nearest-neighbor classification on frozen features (Wu et al. 2018, as DINO's eval_knn.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.images import read_rgb
from dino_dense import Picture
from dino_dense.config import command_line
from dino_dense.config.schema import path, runtime
from dino_dense.versions import versions
from tasks.harness import figures
from tasks.harness.command import main
from tasks.harness.session import Session
from tasks.harness.task import Outcome, Task
from tasks.images.labeled import LabeledSet, open_labeled
from tasks.images.options import ImageFeatureOptions
from tasks.scores.classification import METRICS, hits

if TYPE_CHECKING:
    from torch import Tensor

    from dino_dense import Backbone

STRIPS, STRIP_RESULTS = 6, 5  # number of pictures, and of neighbors in each
HEADLINE_K = 20  # the best k in the paper, which it reports


@dataclass(frozen=True)
class KnnConfig(ImageFeatureOptions):
    """Images, and constants of the vote"""

    data: str | None = path()
    """Folder with train/CLASS/* and val/CLASS/* (or test/); without it, the embedded set."""
    k: tuple[int, ...] = (10, 20, 100, 200)
    """Numbers of neighbors that vote (eval_knn.py --nb_knn). The headline is 20 if listed, else the first."""
    temperature: float = 0.07
    """A vote has the weight exp(cosine / temperature) (eval_knn.py --temperature)."""
    batch_size: int = runtime(64)
    """Images extracted at once; does not change the result."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.k or min(self.k) < 1 or self.temperature <= 0:
            raise ValueError(f"k {self.k} and temperature {self.temperature} must be positive.")


def knn_votes(
    train: Tensor, train_labels: Tensor, test: Tensor, *, k: Sequence[int], temperature: float, classes: int
) -> Iterator[tuple[int, Tensor]]:
    """Rank classes by the votes of the k nearest training images.

    Args:
        train: features [N, C], not necessarily normalized.
        train_labels: [N], ids in 0..classes-1.
        test: features [M, C]; the search runs on their device.
        k: numbers of neighbors, each at most N.
        temperature: a neighbor's vote is exp(cosine / temperature).
        classes: number of classes.

    Yields:
        For each k: k, and the class ids [M, classes] from most to least votes.

    Raises:
        ValueError: a k is larger than N.
    """
    import torch.nn.functional as F

    from dino_dense.neighbors.exact import nearest

    if max(k) > len(train):
        raise ValueError(f"k = {max(k)} neighbors, but there are only {len(train)} training images.")
    similarity, neighbors = nearest(F.normalize(test, dim=1), F.normalize(train, dim=1), max(k))  # [M, max k]
    labels = train_labels.to(test.device)[neighbors]
    # exp(s / T) may overflow in float32 for small T; a common factor of a query's votes does not change the ranking.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    for count in k:
        votes = weights.new_zeros(len(test), classes).scatter_add_(1, labels[:, :count], weights[:, :count])
        yield count, votes.argsort(dim=1, descending=True, stable=True)


def measure(backbone: Backbone, images: LabeledSet, config: KnnConfig, session: Session) -> Outcome:
    """Extract the features of both folders (or read them from the cache), and vote."""
    import pandas as pd
    import torch

    from tasks.images.features import CLS, square_features

    train, test = (
        square_features(backbone, part.paths, config, session, batch_size=config.batch_size, label=label)[CLS]
        for part, label in ((images.train, "train features"), (images.test, "test features"))
    )
    possible = [count for count in config.k if count <= len(train)] or [len(train)]
    targets = torch.tensor(images.test.labels)
    ranked = knn_votes(
        train,
        torch.tensor(images.train.labels),
        test.to(backbone.device),
        k=possible,
        temperature=config.temperature,
        classes=len(images.train.class_names),
    )
    # At most k classes have votes, so ranks beyond k are arbitrary (eval_knn.py).
    samples = {k: hits(order.cpu(), targets, images.test_names, places=k) for k, order in ranked}
    table = pd.DataFrame([{"k": k, **frame.mean(numeric_only=True)} for k, frame in samples.items()])
    headline = HEADLINE_K if HEADLINE_K in possible else possible[0]
    left_out = sorted(set(config.k) - set(possible))
    note = f"k = {headline}; every k is in knn.csv."
    if left_out:
        note += f" There are {len(train)} training images, so k = {', '.join(map(str, left_out))} is left out."
    return Outcome(
        tables={"knn": table},
        note=note,
        samples=samples[headline],
        to_draw=(train, test),
    )


def draw(images: LabeledSet, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """Draw test images with their nearest training images, alternating wrong and correct classifications."""
    import torch.nn.functional as F

    (train, test), samples = outcome.to_draw, outcome.samples
    assert samples is not None
    right = samples.index[samples["top-1"] > 0]
    chosen = [
        figures.evenly_spaced(list(part), STRIPS // 2) for part in (samples.index.difference(right), right) if len(part)
    ]
    pictures = []
    for query in [index for pair in zip_longest(*chosen) for index in pair if index is not None]:
        similarity = F.normalize(train, dim=1) @ F.normalize(test[query], dim=0)
        neighbors = similarity.topk(min(STRIP_RESULTS, len(train))).indices.tolist()
        file = folder / "strips" / f"{query}.jpg"
        figures.result_strip(
            file,
            np.asarray(read_rgb(images.test.paths[query])),
            [np.asarray(read_rgb(images.train.paths[index])) for index in neighbors],
            [images.train.labels[index] == images.test.labels[query] for index in neighbors],
        )
        verdict = "right" if query in right else "wrong"
        pictures.append(Picture(f"strips/{file.name}", f"{images.test_names[query]} and its nearest: vote {verdict}"))
    return tuple(pictures)


TASK = Task(
    name="knn",
    summary="Weighted k-nearest-neighbor classification of frozen class tokens (top-1).",
    source="DINO, arXiv 2104.14294, sec. 4.1; eval_knn.py.",
    config=KnnConfig,
    metrics=METRICS,
    open=open_labeled,
    measure=measure,
    draw=draw,
    smoke=KnnConfig(resize=64, crop=64),
    pieces=lambda config, backbone: frozenset({"cls1"}),
    versions=versions("image features", "neighbors", "classification scores"),
)

if __name__ == "__main__":
    command_line.run(lambda: main("knn"))
