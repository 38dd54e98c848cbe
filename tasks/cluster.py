"""Semantic segmentation without labels: k-means of patch tokens, clusters matched to classes (mIoU)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from data import DataError
from data.known_sets import pixel_set
from data.masks import VOID_ID
from data.segmentation import LabeledPixels
from dino_dense import Metric, Picture, Score
from dino_dense.arrays import Pixels
from dino_dense.config import command_line
from dino_dense.config.schema import runtime
from dino_dense.versions import versions
from tasks.harness.command import main
from tasks.harness.session import DataFacts, Session
from tasks.harness.task import Outcome, Task, sized_by
from tasks.scores.matching import Mapping, count_clusters
from tasks.semantic.options import LabeledImages
from tasks.semantic.readings import Matrices, mapping_of, read_matrices, samples_of
from tasks.semantic.splits import LabeledSplits, draw_maps, open_splits

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image
    from torch import Tensor

    from dino_dense import Backbone

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class ClusterConfig(LabeledImages):
    """Clustering of patches (defaults: NeCo's eval_overcluster.py, which is Leopart's)"""

    size: int = 448
    """Side of the square that images are stretched to, pixels, cut to whole patches; masks to the nearest pixel."""
    mean: Triple | None = (0.485, 0.456, 0.406)
    """RGB mean subtracted from images in [0, 1]; null for mean and std: those of the network."""
    std: Triple | None = (0.229, 0.224, 0.225)
    """RGB std images are divided by."""
    clusters: int = 500
    """Number of clusters K; 0: the number of classes (published: 0, 150, 300, 500)."""
    components: int = 50
    """Principal components of the standardized tokens that are clustered."""
    iterations: int = 100
    """Largest number of iterations of k-means."""
    starts: int = 5
    """Starts of k-means; the best result is used."""
    points_per_cluster: int = 256
    """k-means is fitted on at most this many patches for each cluster, drawn at random; 0: on all patches
    (faiss.Kmeans, max_points_per_centroid)."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of k-means, with a run for each; the score is the mean of the runs."""
    side: int = 100
    """Side of the square at which clusters and masks are compared, pixels; both are resized to the nearest pixel."""
    matching: Literal["auto", "hungarian", "precision"] = "auto"
    """How clusters become classes. hungarian: one cluster for one class, so that the sum of IoUs is largest; further
    clusters become class 0. precision: each cluster becomes its most frequent class. auto: hungarian if there are as
    many clusters as classes, else precision."""
    absent: Literal["zero", "left out"] = "zero"
    """Treatment of a class that no pixel has and none is predicted to have. zero: its IoU counts as 0 in the mean; left
    out: it is not counted."""
    batch: int = 32
    """Batch size of the reference; it only decides which images drop_last leaves out."""
    drop_last: bool = True
    """Leave out the images of the last batch if it is not full, as the reference does: 9 of VOC's 1,449."""
    batch_size: int = runtime(16)
    """Images extracted at once."""

    def __post_init__(self) -> None:
        for name in ("size", "components", "iterations", "starts", "side", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 1 or more")
        if self.clusters < 0 or self.points_per_cluster < 0 or not self.seeds:
            raise ValueError(
                f"clusters {self.clusters}, points_per_cluster {self.points_per_cluster}, seeds {self.seeds}: expected "
                "0 or more, and a seed"
            )
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")


@dataclass(frozen=True)
class ClusterData:
    """The images to cluster."""

    splits: LabeledSplits
    facts: DataFacts
    left_out: int
    """Images of the last batch that are left out."""


@dataclass(frozen=True)
class Run:
    """The result of k-means with one seed."""

    seed: int
    maps: npt.NDArray[np.int32]
    """Clusters of the patches, int32 [N, h, w]."""
    matrices: Matrices
    """[N, classes, K]"""
    objective: float


def open_data(config: ClusterConfig) -> ClusterData:
    """The split to score; the training split is read where only masks say how many classes there are.

    Raises:
        DataError: see `open_splits`; there are fewer images than a batch of which the last is dropped.
    """
    splits = open_splits(config, zero_is_void=False)
    kept = len(splits.val) // config.batch * config.batch if config.drop_last else len(splits.val)
    if not kept:
        raise DataError(
            f"{splits.facts.root}: {len(splits.val)} images are fewer than a batch of {config.batch}, and the last "
            "batch is dropped. Give --drop-last false."
        )
    left_out = len(splits.val) - kept
    dataset = pixel_set([pair.image for pair in splits.val]) if config.data else None
    splits = replace(splits, val=splits.val[:kept])
    return ClusterData(splits, replace(splits.facts, n=kept, dataset=dataset), left_out)


def measure(backbone: Backbone, data: ClusterData, config: ClusterConfig, session: Session) -> Outcome:
    """Cluster the patch tokens of all images once a seed, match clusters to classes, and read the IoUs."""
    count = config.clusters or len(data.splits.class_names)
    tokens, truth, grid = tokens_of(backbone, data.splits, config, session)
    size = f"{len(tokens):,} patches of {tokens.shape[1]} values, {tokens.numel() * 4 / 2**20:.0f} MiB"
    points = prepared(tokens, config.components)
    seeds = session.progress(session.share(config.seeds), "k-means", unit="run")
    runs = session.collect((i, run_once(points, truth, grid, count, seed, config, data.splits)) for i, seed in seeds)
    return outcome_of(runs, data, config, count, size)


def tokens_of(
    backbone: Backbone, splits: LabeledSplits, config: ClusterConfig, session: Session
) -> tuple[Tensor, Pixels, tuple[int, int]]:
    """Patch tokens [N*h*w, D] of all images on the CPU, their masks [N, side, side], and the grid (h, w)."""
    from einops import rearrange

    from dino_dense.probes.readout import nearest_labels
    from tasks.semantic.memory import joined
    from tasks.semantic.squares import Squares, labeled_batches, shared_keys, side_of

    if config.mean is not None and config.std is not None:
        backbone = backbone.with_normalization(config.mean, config.std)
    side = side_of(config.size, backbone.patch_size)
    squares = Squares(splits.val, side, "bilinear")
    keys, rows = shared_keys(session, range(len(splits.val))), []
    with session.bar(len(keys), "patch tokens", leave=False) as bar:
        for batch in labeled_batches(backbone, squares, keys, batch_size=config.batch_size, workers=config.workers):
            tokens = rearrange(batch.patches, "b d h w -> b (h w) d").cpu()
            masks = splits.truth(nearest_labels(batch.ids, config.side).numpy())
            rows += [(position, (tokens[index], masks[index])) for index, position in enumerate(batch.positions)]
            bar.update(len(batch.positions))
    parts = session.collect(rows)
    rows.clear()
    truth = np.stack([part[1] for part in parts])
    tokens_of_images = [part[0] for part in parts]
    parts.clear()
    return joined(tokens_of_images), truth, (side // backbone.patch_size, side // backbone.patch_size)


def prepared(tokens: Tensor, components: int) -> Tensor:
    """Tokens [N, D], standardized, as their leading principal components [N, components]."""
    from dino_dense.clustering import fit_components, fit_scaling

    standardized = fit_scaling(tokens).apply(tokens)
    return fit_components(standardized, components).apply(standardized)


def run_once(
    points: Tensor,
    truth: Pixels,
    grid: tuple[int, int],
    count: int,
    seed: int,
    config: ClusterConfig,
    splits: LabeledSplits,
) -> Run:
    """Cluster points [N*h*w, P] with one seed, and compare with the masks [N, side, side]."""
    import torch

    from dino_dense.clustering import assign, cluster
    from dino_dense.probes.readout import nearest_labels
    from dino_dense.training.seeds import generator

    most = config.points_per_cluster * count
    part = points
    if 0 < most < len(points):
        part = points[torch.randperm(len(points), generator=generator(seed, len(points)))[:most]]
    fitted = cluster(part, count, seed, starts=config.starts, iterations=config.iterations)
    maps = assign(points, fitted.centers).view(-1, *grid).int()
    large = nearest_labels(maps, config.side).numpy()
    classes = len(splits.class_names)
    matrices = np.stack(
        [
            count_clusters(ours, masks, classes, count, VOID_ID).astype(np.int32)
            for ours, masks in zip(large, truth, strict=True)
        ]
    )
    return Run(seed, maps.numpy(), matrices, fitted.objective / len(part))


def mapping_for(run: Run, config: ClusterConfig, classes: int, count: int) -> Mapping:
    """The class of each cluster of a run."""
    automatic = "hungarian" if count == classes else "precision"
    return mapping_of(run.matrices, automatic if config.matching == "auto" else config.matching)


def outcome_of(runs: Sequence[Run], data: ClusterData, config: ClusterConfig, count: int, size: str) -> Outcome:
    """The mean of the runs, their spread, and what a reader must know."""
    import pandas as pd

    names = data.splits.class_names
    mappings = [mapping_for(run, config, len(names), count) for run in runs]
    readings = [read_matrices(run.matrices, m, config.absent) for run, m in zip(runs, mappings, strict=True)]
    values = [reading.mean() for reading in readings]
    images = [pair.name for pair in data.splits.val]
    samples = samples_of({"mIoU": readings}, names, images, [f"seed {run.seed}" for run in runs])
    spread = f" (standard deviation {np.std(values, ddof=1):.2f})" if len(values) > 1 else ""
    lost = f" {data.left_out} images of the last batch are left out (--drop-last)." if data.left_out else ""
    used = [len(set(mapping[mapping >= 0].tolist())) for mapping in mappings]
    note = (
        f"{count} clusters of {size}; {len(names)} classes, of which {min(used)} to {max(used)} get a cluster. mIoU of "
        f"seeds {', '.join(str(run.seed) for run in runs)}: {', '.join(f'{value:.2f}' for value in values)}{spread}."
        f"{lost}"
    )
    rows = [
        {"seed": run.seed, "mIoU": value, "mean squared distance": run.objective, "classes with a cluster": classes}
        for run, value, classes in zip(runs, values, used, strict=True)
    ]
    iou = np.mean([reading.class_iou() for reading in readings], axis=0)
    predicted = dict(zip(images, np.maximum(mappings[0], 0)[runs[0].maps].astype(np.uint8), strict=True))
    return Outcome(
        tables={
            "runs": pd.DataFrame(rows),
            "per_class": pd.DataFrame({"class": names, "IoU": iou}),
            "per_image": per_image(runs[0], mappings[0], images),
        },
        scores=score_of(samples),
        note=note,
        samples=samples,
        to_draw=predicted,
    )


def score_of(samples: pd.DataFrame) -> tuple[Score, ...]:
    """The one score."""
    from dino_dense.report.samples import score_samples

    return (score_samples(samples, "mIoU"),)


def per_image(run: Run, mapping: Mapping, images: Sequence[str]) -> pd.DataFrame:
    """A row an image: its own mIoU in percent under the first seed."""
    import pandas as pd

    return pd.DataFrame({"image": list(images), "mIoU": read_matrices(run.matrices, mapping, "left out").of_images()})


def draw(data: ClusterData, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """The images of lowest and highest mIoU under the first seed."""
    from tasks.harness.figures import enlarge

    def predict(pair: LabeledPixels, image: Image.Image) -> Pixels:
        return enlarge(outcome.to_draw[pair.name], (image.height, image.width))

    return draw_maps(predict, data.splits, outcome.tables["per_image"], folder)


TASK = Task(
    name="cluster",
    summary="Semantic segmentation without labels: k-means of patch tokens, clusters matched to classes (mIoU).",
    source="Leopart, arXiv 2204.13101, and NeCo, arXiv 2408.11054: experiments/overcluster.",
    config=ClusterConfig,
    metrics=(Metric("mIoU"),),
    open=open_data,
    measure=measure,
    draw=draw,
    at_size=sized_by("size"),
    upsamples=True,
    smoke=ClusterConfig(
        size=96, mean=None, std=None, clusters=0, components=8, starts=2, seeds=(0, 1), drop_last=False
    ),
    versions=versions("clustering", "matched classes"),
)

if __name__ == "__main__":
    command_line.run(lambda: main("cluster"))
