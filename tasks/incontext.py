"""Semantic segmentation by the labels of the nearest patches of a memory, nothing trained (mIoU)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data import DataError
from data.known_sets import part_name, part_set
from data.lists import read_list
from data.segmentation import VOID
from dino_dense import Metric, Picture, Score
from dino_dense.arrays import Pixels
from dino_dense.config import command_line
from dino_dense.config.schema import path, runtime
from dino_dense.versions import versions
from tasks.harness.command import main
from tasks.harness.session import DataFacts, Session
from tasks.harness.task import Outcome, Task, sized_by
from tasks.scores.matching import count_clusters
from tasks.scores.segmentation import Counts
from tasks.semantic.options import LabeledImages
from tasks.semantic.protocol import IncontextProtocol
from tasks.semantic.readings import Reading, mapping_of, pixel_reading, read_matrices, samples_of
from tasks.semantic.splits import LabeledSplits, draw_worst_and_best, open_splits

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

    from dino_dense import Backbone
    from tasks.semantic.memory import Builder, Memory

HELD_OUT = 10  # one of so many training images chooses among several neighbors and distances (CAPI)
READINGS = {"mIoU-own": "own", "mIoU-hungarian": "hungarian"}
Choice = tuple[int, str]


@dataclass(frozen=True)
class IncontextConfig(IncontextProtocol, LabeledImages):
    """Training images, and the size of a batch"""

    lists: tuple[str, ...] = path(())
    """Text files with names of training images, such as the published lists; a run for each. They replace
    --fraction."""
    batch_size: int = runtime(16)
    """Images whose patches are extracted and looked up at once."""


@dataclass(frozen=True)
class IncontextData:
    """The images, and the training images of each run."""

    splits: LabeledSplits
    subsets: tuple[tuple[int, ...], ...]
    facts: DataFacts


@dataclass(frozen=True)
class Run:
    """The result of one memory."""

    name: str
    choice: Choice
    matrices: Counts
    """[N, K, K] of the images to score; a column more for void where pixels vote."""
    memory: str
    lacking: tuple[str, ...]
    """Names of the classes that the images to score have and the memory has not."""


def open_data(config: IncontextConfig) -> IncontextData:
    """The two splits, and the training images of each run.

    Raises:
        DataError: see `open_splits`; a list names no image of the split.
    """
    splits = open_splits(config, zero_is_void=False)
    if config.lists:
        subsets = tuple(_listed(Path(file), splits) for file in config.lists)
        digest = hashlib.sha256(f"{splits.facts.sha256} {subsets}".encode()).hexdigest()
        dataset = part_set(splits.facts.dataset, [len(subset) for subset in subsets])
        return IncontextData(splits, subsets, replace(splits.facts, sha256=digest, dataset=dataset))
    count = len(splits.train) // config.fraction
    if count < 1:
        raise DataError(
            f"{splits.facts.root}: {len(splits.train)} training images have no part of 1/{config.fraction}. Lower "
            "--fraction."
        )
    if config.fraction == 1:
        return IncontextData(splits, (tuple(range(count)),) * len(config.draws), splits.facts)
    orders = [np.random.default_rng(draw).permutation(len(splits.train))[:count] for draw in config.draws]
    facts = replace(splits.facts, dataset=part_name(splits.facts.dataset, config.fraction))
    return IncontextData(splits, tuple(tuple(sorted(order.tolist())) for order in orders), facts)


def _listed(file: Path, splits: LabeledSplits) -> tuple[int, ...]:
    """Numbers of the training images that a text file names."""
    if not file.is_file():
        raise DataError(f"{file}: no such list of training images")
    numbers = {pair.name: index for index, pair in enumerate(splits.train)}
    names = [Path(line.split()[0]).stem for line in read_list(file) if line.strip()]
    unknown = [name for name in names if name not in numbers]
    if unknown or not names:
        raise DataError(
            f"{file}: {f'{unknown[0]!r} is no image of the training split' if unknown else 'the list is empty'}; "
            f"expected names of its {len(numbers)} images, a line each"
        )
    return tuple(numbers[name] for name in dict.fromkeys(names))


def measure(backbone: Backbone, data: IncontextData, config: IncontextConfig, session: Session) -> Outcome:
    """Fill a memory for each run, label every image to score, and read the confusion matrices."""
    from dino_dense.backbone.remembering import RememberingBackbone

    builder = builder_of(backbone, data.splits, config, session)
    if len(data.subsets) > 1:
        builder = replace(builder, remembering=RememberingBackbone(builder.backbone))
    runs, memory = [], None
    for number, images in enumerate(data.subsets):
        name = Path(config.lists[number]).stem if config.lists else f"draw {config.draws[number]}"
        memory = None  # one memory at a time
        run, memory = run_once(builder, images, number, name, config)
        runs.append(run)
    assert memory is not None
    return outcome_of(runs, data, config, partial(predict_picture, builder, memory, runs[-1].choice))


def builder_of(backbone: Backbone, splits: LabeledSplits, config: IncontextConfig, session: Session) -> Builder:
    """The reader of memories for this backbone, with the protocol's pixel statistics."""
    from tasks.semantic.memory import Builder
    from tasks.semantic.squares import side_of

    if config.mean is not None and config.std is not None:
        backbone = backbone.with_normalization(config.mean, config.std)
    size = side_of(config.size, backbone.patch_size)
    return Builder(backbone, splits, config, session, size, config.batch_size, config.workers)


def run_once(
    builder: Builder, images: Sequence[int], number: int, name: str, config: IncontextConfig
) -> tuple[Run, Memory]:
    """Fill one memory, choose neighbors and distance, and label the images to score.

    Raises:
        ValueError: the memory is empty, or smaller than the number of neighbors, or no training image has a class that
            is to be scored.
    """
    seed = config.draws[number] if not config.lists else number
    memory, choice = chosen(builder, images, seed)
    memory = memory.to(builder.backbone.device)
    splits = builder.splits
    lacking = lacking_classes(builder, memory)
    if lacking and len(images) == len(splits.train):
        raise ValueError(
            f"the memory lacks {lacking[0]}, which images to score have ({splits.facts.root}): no patch of the "
            f"{len(images)} training images shows it. Add images that do, take --memory-size 0, or leave the class out "
            "of the masks."
        )
    matrices = label_images(builder, memory, choice, "val", range(len(splits.val)))
    return Run(name, choice, matrices, memory.size(), lacking), memory


def chosen(builder: Builder, images: Sequence[int], seed: int) -> tuple[Memory, Choice]:
    """The memory, and the best number of neighbors and distance on held out training images, if there are several."""
    from tasks.semantic.memory import merged

    choices = builder.config.choices
    if len(choices) == 1:
        return builder.read(images, seed), choices[0]
    order = np.random.default_rng([builder.session.seed, seed]).permutation(len(images))
    held = [images[index] for index in order[: len(images) // HELD_OUT]]
    rest = [images[index] for index in order[len(images) // HELD_OUT :]]
    if not held:
        raise ValueError(
            f"{len(images)} training images are too few to hold one of {HELD_OUT} out: give one --neighbors and one "
            "--distance."
        )
    memory = builder.read(rest, seed)
    here = memory.to(builder.backbone.device)
    scores = [mean_of_present(label_images(builder, here, choice, "train", held)) for choice in choices]
    return merged(memory, builder.read(held, seed, memory.scaling)), choices[int(np.argmax(scores))]


def mean_of_present(matrices: Counts) -> float:
    """Mean IoU in percent over the classes that are there or predicted; predictions keep their class."""
    return read_matrices(matrices, mapping_of(matrices, "own"), "left out").mean()


def lacking_classes(builder: Builder, memory: Memory) -> tuple[str, ...]:
    """Names of the classes that the images to score have and the memory has not."""
    splits, session = builder.splits, builder.session
    there = session.collect(
        [(i, set(np.unique(splits.truth(pair.read_ids())).tolist())) for i, pair in session.share(splits.val)]
    )
    lacking = set().union(*there) - {VOID} - memory.classes()
    return tuple(splits.class_names[index] for index in sorted(lacking) if index < len(splits.class_names))


def label_images(builder: Builder, memory: Memory, choice: Choice, part: str, images: Sequence[int]) -> Counts:
    """Confusion matrices int32 [N, K, K] of images of the part train or val; votes have one more class, void."""
    from tasks.semantic.memory import predict_squares
    from tasks.semantic.squares import Squares, labeled_batches, shared_keys

    splits, config = builder.splits, builder.config
    classes = len(splits.class_names) + (config.readout == "vote")
    squares = Squares(splits.val if part == "val" else splits.train, builder.size, config.interpolation)
    keys = shared_keys(builder.session, images)
    results: list[tuple[int, Counts]] = []
    with builder.session.bar(len(keys), "labeling", leave=part == "val") as bar:
        for batch in labeled_batches(
            builder.looking(augment=False), squares, keys, batch_size=builder.batch_size, workers=builder.workers
        ):
            predicted = predict_squares(memory, batch.patches, config, *choice).numpy()
            predicted = np.where(predicted == VOID, classes - 1, predicted)
            for position, ours, ids in zip(batch.positions, predicted, batch.ids.numpy(), strict=True):
                counts = count_clusters(ours, splits.truth(ids), classes, classes, VOID)
                results.append((position, counts.astype(np.int32)))
            bar.update(len(batch.positions))
    return np.stack(builder.session.collect(results))


def predict_picture(builder: Builder, memory: Memory, choice: Choice, picture: Image.Image) -> Pixels:
    """Class ids uint8 [H, W] of a picture: of its square, to the nearest pixel."""
    import torch
    from torchvision.transforms import v2

    from tasks.semantic.memory import predict_squares
    from tasks.semantic.squares import MODES

    size = [builder.size, builder.size]
    square = v2.functional.resize(v2.functional.pil_to_tensor(picture), size, MODES[builder.config.interpolation])
    patches = builder.backbone.extract(square[None]).patches
    ids = predict_squares(memory, patches, builder.config, *choice)
    large = torch.nn.functional.interpolate(ids[None].float(), (picture.height, picture.width), mode="nearest")
    return large[0, 0].to(torch.uint8).numpy()


def outcome_of(
    runs: Sequence[Run], data: IncontextData, config: IncontextConfig, predict: Callable[[Image.Image], Pixels]
) -> Outcome:
    """Scores as means over runs, every reading of each run, and what a reader must know."""
    names = data.splits.class_names
    extra = ("void",) if config.readout == "vote" else ()

    def of_runs(matching: str, absent: str) -> list[Reading]:
        return [
            read_matrices(run.matrices, mapping_of(run.matrices, matching), absent, counted=len(names)) for run in runs
        ]

    headline = of_runs(config.matching, config.absent)
    readings = {
        "mIoU": headline,
        **{metric: of_runs(matching, config.absent) for metric, matching in READINGS.items()},
        "accuracy": [pixel_reading(run.matrices) for run in runs],
    }
    images = [pair.name for pair in data.splits.val]
    labels = [run.name for run in runs] if len(runs) > 1 else [""]
    samples = samples_of(readings, [*names, *extra], images, labels)
    return Outcome(
        scores=scores_of(samples),
        tables={
            "readings": readings_table(runs, of_runs),
            "per_class": per_class(headline, [*names, *extra]),
            "per_image": per_image(of_runs(config.matching, "left out")[-1], images),
        },
        note=note_of(runs, headline, config),
        samples=samples,
        to_draw=predict,
    )


def scores_of(samples: pd.DataFrame) -> tuple[Score, ...]:
    """A score for each declared metric."""
    from dino_dense.report.samples import score_samples

    return tuple(score_samples(samples, metric.name) for metric in METRICS)


def readings_table(runs: Sequence[Run], of_runs: Callable[[str, str], list[Reading]]) -> pd.DataFrame:
    """mIoU of each run under every matching and treatment of absent classes."""
    import pandas as pd

    rows = [
        {"run": run.name, "neighbors": run.choice[0], "distance": run.choice[1], "memory": run.memory} for run in runs
    ]
    for matching in ("own", "hungarian"):
        for absent in ("zero", "left out"):
            for row, reading in zip(rows, of_runs(matching, absent), strict=True):
                row[f"mIoU {matching}, absent {absent}"] = reading.mean()
    return pd.DataFrame(rows)


def per_class(readings: Sequence[Reading], names: Sequence[str]) -> pd.DataFrame:
    """A row a class: its IoU in percent, the mean over runs."""
    import pandas as pd

    return pd.DataFrame({"class": list(names), "IoU": np.mean([reading.class_iou() for reading in readings], axis=0)})


def per_image(reading: Reading, images: Sequence[str]) -> pd.DataFrame:
    """A row an image: its own mIoU in percent, over the classes that are there or predicted in it."""
    import pandas as pd

    return pd.DataFrame({"image": list(images), "mIoU": reading.of_images()})


def note_of(runs: Sequence[Run], readings: Sequence[Reading], config: IncontextConfig) -> str:
    """Memory, neighbors, spread and lacking classes."""
    from dino_dense.neighbors.exact import SEARCH_BYTES

    values = [reading.mean() for reading in readings]
    spread = f" (standard deviation {np.std(values, ddof=1):.2f})" if len(values) > 1 else ""
    neighbors = ", ".join(dict.fromkeys(f"{run.choice[0]} by {run.choice[1]}" for run in runs))
    parts = [
        f"Memory: {runs[-1].memory}; the search takes up to {SEARCH_BYTES // 2**20} MiB more.",
        f"Neighbors: {neighbors}.",
        f"mIoU of {len(runs)} run{'s' * (len(runs) > 1)}: {', '.join(f'{value:.2f}' for value in values)}{spread}.",
        f"Matching {config.matching}, absent classes {config.absent}; readings.csv has the others.",
    ]
    for run in runs:
        if run.lacking:
            parts.append(f"The memory of {run.name} lacks {len(run.lacking)} classes: {', '.join(run.lacking[:5])}.")
    return " ".join(parts)


def draw(data: IncontextData, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """The images of lowest and highest mIoU."""
    return draw_worst_and_best(outcome.to_draw, data.splits, outcome.tables["per_image"], folder)


METRICS = (Metric("mIoU"), *map(Metric, READINGS), Metric("accuracy"))
TASK = Task(
    name="incontext",
    summary="Semantic segmentation by the labels of the nearest patches of a memory, nothing trained (mIoU).",
    source="Hummingbird, arXiv 2306.01667, as open-hummingbird-eval runs it; DIP, CAPI by --preset.",
    config=IncontextConfig,
    metrics=METRICS,
    open=open_data,
    measure=measure,
    draw=draw,
    at_size=sized_by("size"),
    upsamples=True,
    smoke=IncontextConfig(size=96, mean=None, std=None, augment=False, epochs=1, memory_size=2000, neighbors=(10,)),
    versions=versions("memory", "matched classes"),
)

if __name__ == "__main__":
    command_line.run(lambda: main("incontext"))
