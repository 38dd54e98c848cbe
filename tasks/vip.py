"""Parts of a body carried along videos by label propagation (VIP: mIoU)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data.known_sets import parts_set
from data.masks import VOID_ID
from data.sample.points import sample_parts
from data.vip import CLASSES, ParsedVideo, load_vip
from dino_dense import Metric, Picture
from dino_dense.config import command_line
from dino_dense.config.schema import check_positive, path, runtime, selects
from dino_dense.propagation.protocol import SquashedProtocol
from dino_dense.versions import versions
from tasks.harness import figures
from tasks.harness.command import main
from tasks.harness.session import DataFacts, Session
from tasks.harness.task import Outcome, Task, file_list_hash, sized_by

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from dino_dense import Backbone
    from dino_dense.arrays import Pixels

METRICS = tuple(Metric(name) for name in ("mIoU", "pixel accuracy", "mean accuracy", "weighted IoU"))
PICTURES = 4


@dataclass(frozen=True)
class VipConfig(SquashedProtocol):
    """Which videos, and every constant of the protocol"""

    image_size: int = 560
    """Side of the square frames, pixels, rounded to whole patches (CRW 560)."""
    context_frames: int = 4
    """Most recent frames used as context besides frame 0, which fills it at first (CRW 4)."""
    data: str | None = path()
    """Folder of VIP (Images, Category_ids); without it, embedded videos."""
    split: str = selects("val")
    """List lists/SPLIT_videos.txt; without a list, val is every video."""
    max_videos: int | None = selects(None)
    """Use at most this many videos, evenly spaced."""
    batch_size: int | None = runtime(None)
    """Frames whose features are computed at once; without it, 1 on a CPU and 8 on a GPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "max_videos", "batch_size")


class Videos(NamedTuple):
    """The videos that a config names."""

    items: list[ParsedVideo]
    facts: DataFacts


class _Measured(NamedTuple):
    """Pixels of a video by true class (rows) and predicted class, and predictions of a few frames."""

    matrix: npt.NDArray[np.int64]
    shown: dict[int, Pixels]


def measure(backbone: Backbone, videos: Videos, config: VipConfig, session: Session) -> Outcome:
    """Carry the classes of each first frame, and compare with those of all frames."""
    from dino_dense.report.samples import score_samples
    from tasks.scores.segmentation import class_accuracy, class_iou, pixel_accuracy, weighted_iou

    own_share = session.share(videos.items)
    shown = session.progress(own_share, "propagating", unit="video")
    measured = session.collect((index, _measure(backbone, video, config)) for index, video in shown)
    matrices = np.stack([one.matrix for one in measured])
    total = matrices.sum(0)
    samples = _samples(videos.items, matrices)
    values = {
        "mIoU": float(np.nanmean(class_iou(total))),
        "pixel accuracy": pixel_accuracy(total),
        "mean accuracy": float(np.nanmean(class_accuracy(total))),
        "weighted IoU": float(weighted_iou(total)),
    }
    from dino_dense import Score

    error = score_samples(samples, "mIoU").stderr
    return Outcome(
        scores=tuple(
            Score(name, value, len(measured), error if name == "mIoU" else None) for name, value in values.items()
        ),
        tables={"per_class": _per_class(total)},
        note="One matrix over all frames of all videos, the given first ones too, as CRW's script counts.",
        samples=samples,
        to_draw=measured,
    )


def open_videos(config: VipConfig) -> Videos:
    """The videos that a config names; DataError if they cannot be used."""
    root = Path(config.data) if config.data else sample_parts()
    every = load_vip(root, config.split)
    items = (
        every
        if config.max_videos is None
        else [every[k] for k in figures.evenly_spaced(range(len(every)), config.max_videos)]
    )
    dataset = parts_set(items) if config.data and config.split == "val" else None
    name = dataset or (root.resolve().name if config.data else "embedded parts (not VIP)")
    if len(items) < len(every):
        name += f" (part: {len(items)} of {len(every)})"
    files = [file for video in items for file in (*video.frames, *video.masks)]
    description = DataFacts(
        name=name,
        root=str(root),
        n=len(items),
        unit="videos",
        sha256=file_list_hash(root, files),
        dataset=dataset,
    )
    return Videos(items, description)


def _measure(backbone: Backbone, video: ParsedVideo, config: VipConfig) -> _Measured:
    from PIL import Image

    from dino_dense.propagation.labels import decode_labels, encode_labels
    from dino_dense.propagation.squashed import grid_of, propagate
    from tasks.scores.segmentation import confusion

    grid = grid_of(backbone, config)
    side = grid[0] * backbone.patch_size, grid[1] * backbone.patch_size
    first = video.read_classes(0)
    known = np.array([0, *(value for value in np.unique(first) if 0 < value < VOID_ID)], np.uint8)
    channels = np.searchsorted(known, np.where(first == VOID_ID, 0, first)).astype(np.uint8)
    labels = encode_labels(channels, grid, len(known) - 1, "bilinear")
    frames = (video.read_frame(index) for index in range(len(video.frames)))
    matrix, shown = np.zeros((CLASSES, CLASSES), np.int64), {}
    kept = figures.evenly_spaced(range(len(video.frames)), 3)
    for index, soft in enumerate(propagate(backbone, config, frames, labels, config.batch_size)):
        truth = video.read_classes(index)
        small = known[decode_labels(soft, backbone.patch_size, side, "bilinear", "none", "original")]
        # CRW saves predictions at the squashed size; its scorer resizes them by PIL.
        predicted = np.array(Image.fromarray(small).resize((truth.shape[1], truth.shape[0]), Image.Resampling.NEAREST))
        matrix += confusion(predicted, truth, CLASSES)
        if index in kept:
            shown[index] = predicted
    return _Measured(matrix, shown)


def _samples(videos: Sequence[ParsedVideo], matrices: npt.NDArray[np.int64]) -> pd.DataFrame:
    """A row a video: hits and unions of each class that is somewhere, true or predicted."""
    import pandas as pd

    from dino_dense.report.samples import ratio_columns

    hits = np.einsum("nkk->nk", matrices)
    unions = matrices.sum(1) + matrices.sum(2) - hits
    there = np.flatnonzero(unions.sum(0))
    columns: dict[str, Any] = {"sample": [video.name for video in videos]}
    return pd.DataFrame(columns | ratio_columns("mIoU", [f"class{k}" for k in there], hits[:, there], unions[:, there]))


def _per_class(total: npt.NDArray[np.int64]) -> pd.DataFrame:
    import pandas as pd

    from tasks.scores.segmentation import class_accuracy, class_iou

    return pd.DataFrame(
        {"class": range(CLASSES), "IoU": class_iou(total), "accuracy": class_accuracy(total), "pixels": total.sum(1)}
    )


def draw(videos: Videos, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """Draw three frames of the worst and best videos: propagated classes above, true classes below."""
    import pandas as pd

    from tasks.scores.segmentation import class_iou

    measured: Sequence[_Measured] = outcome.to_draw
    values = pd.Series([float(np.nanmean(class_iou(one.matrix))) for one in measured])
    pictures = []
    for rank, label in enumerate(figures.worst_and_best_first(values)[:PICTURES]):
        index = int(str(label))
        video, case = videos.items[index], {0: " (worst)", 1: " (best)"}.get(rank, "") if len(values) > 1 else ""
        file = folder / "overlays" / f"{video.name}.jpg"
        strips = [
            np.hstack([figures.overlay(video.read_frame(k), _without_void(classes)) for k, classes in row])
            for row in (
                measured[index].shown.items(),
                [(k, video.read_classes(k)) for k in measured[index].shown],
            )
        ]
        figures.save(file, np.vstack(strips))
        caption = f"{video.name}{case}: mIoU {values[index]:.1f}; propagated above, true below"
        pictures.append(Picture(f"overlays/{file.name}", caption))
    return tuple(pictures)


def _without_void(classes: Pixels) -> Pixels:
    return np.where(classes == VOID_ID, 0, classes).astype(np.uint8)


TASK = Task(
    name="vip",
    summary="Parts of a body by label propagation (VIP: mIoU).",
    source="CRW, arXiv 2006.14613; videowalk data/vos.py, eval/eval_vip.py.",
    config=VipConfig,
    metrics=METRICS,
    open=open_videos,
    measure=measure,
    draw=draw,
    at_size=sized_by("image_size"),
    smoke=VipConfig(image_size=240, max_videos=2),
    versions=versions("propagation", "segmentation scores"),
)

if __name__ == "__main__":
    command_line.run(lambda: main("vip"))
