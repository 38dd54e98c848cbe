"""Joints of a body carried along videos by label propagation (JHMDB: PCK)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np

from data.jhmdb import PoseVideo, load_jhmdb, source_of
from data.known_sets import pose_set
from data.sample.points import sample_joints
from dino_dense import Metric, Picture, Score
from dino_dense.config import command_line
from dino_dense.config.schema import check_positive, path, runtime, selects
from dino_dense.propagation.protocol import SquashedProtocol
from dino_dense.versions import versions
from tasks.harness import figures
from tasks.harness.command import main
from tasks.harness.session import DataFacts, Session
from tasks.harness.task import Outcome, Task, file_list_hash, sized_by
from tasks.scores.pose import ALPHAS, PoseDistances, met_joints, pose_distances

if TYPE_CHECKING:
    import pandas as pd

    from dino_dense import Backbone
    from dino_dense.arrays import Floats, Pixels

SHOWN = (0.1, 0.2)
METRICS = tuple(Metric(f"{kind}PCK@{alpha}") for kind in ("", "strict ") for alpha in SHOWN)
PICTURES = 4


@dataclass(frozen=True)
class JhmdbConfig(SquashedProtocol):
    """Which videos, and every constant of the protocol"""

    data: str | None = path()
    """List of videos (a line: folder of frames, joint_positions.mat), or its folder; without it, embedded videos."""
    max_videos: int | None = selects(None)
    """Use at most this many videos, evenly spaced."""
    batch_size: int | None = runtime(None)
    """Frames whose features are computed at once; without it, 1 on a CPU and 8 on a GPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "max_videos", "batch_size")


class Videos(NamedTuple):
    """The videos that a config names."""

    items: list[PoseVideo]
    facts: DataFacts


class _Measured(NamedTuple):
    """Joints of a video in pixels [T, K, 2], (-1, -1) if lost, and their distances."""

    joints: Floats
    distances: PoseDistances


def measure(backbone: Backbone, videos: Videos, config: JhmdbConfig, session: Session) -> Outcome:
    """Carry the joints of each first frame, and compare with where they are."""
    own_share = session.share(videos.items)
    shown = session.progress(own_share, "propagating", unit="video")
    measured = session.collect((index, _measure(backbone, video, config)) for index, video in shown)
    samples = _samples(videos.items, measured)
    from dino_dense.report.samples import score_samples

    scores = tuple(score_samples(samples, metric.name) for metric in METRICS)
    lost = 100 * float(np.mean(np.concatenate([one.distances.lost.ravel() for one in measured])))
    return Outcome(
        scores=tuple(Score(score.metric, score.value, score.n, score.stderr) for score in scores),
        tables={"per_joint": _per_joint(measured)},
        note=f"PCK is CRW's: a lost joint ({lost:.1f} % here) is left out; strict counts it as missed.",
        samples=samples,
        to_draw=measured,
    )


def open_videos(config: JhmdbConfig) -> Videos:
    """The videos that a config names; DataError if they cannot be used."""
    root = Path(config.data) if config.data else sample_joints()
    every = load_jhmdb(root)
    items = (
        every
        if config.max_videos is None
        else [every[k] for k in figures.evenly_spaced(range(len(every)), config.max_videos)]
    )
    dataset = pose_set(items) if config.data else None
    name = dataset or (root.name if config.data else "embedded joints (not JHMDB)")
    if len(items) < len(every):
        name += f" (part: {len(items)} of {len(every)})"
    base = root if root.is_dir() else root.parent
    files = [file for video in items for file in video.frames]
    description = DataFacts(
        name=name,
        root=str(root),
        n=len(items),
        unit="videos",
        sha256=file_list_hash(base, files, labels=(video.joints.tobytes() for video in items)),
        dataset=dataset,
    )
    return Videos(items, description)


def _measure(backbone: Backbone, video: PoseVideo, config: JhmdbConfig) -> _Measured:
    from dino_dense.propagation.joints import draw_joints, read_joints, with_background
    from dino_dense.propagation.squashed import grid_of, propagate

    grid = grid_of(backbone, config)
    height, width = video.size
    first = video.joints[0] / [width, height] * [grid[1], grid[0]]
    labels = with_background(draw_joints(first, grid))
    frames = (video.read(index) for index in range(len(video.frames)))
    cells = [read_joints(soft).cpu().numpy() for soft in propagate(backbone, config, frames, labels, config.batch_size)]
    predicted = np.stack(cells).astype(np.float64)
    lost = (predicted < 0).any(axis=-1, keepdims=True)
    pixels = np.where(lost, -1, predicted / [grid[1], grid[0]] * [width, height])
    return _Measured(pixels, pose_distances(predicted, video.joints, video.size, grid))


def _samples(videos: Sequence[PoseVideo], measured: Sequence[_Measured]) -> pd.DataFrame:
    """A row a video: joints met and counted, of each joint."""
    import pandas as pd

    from dino_dense.report.samples import CLUSTER, ratio_columns

    joints = [f"joint{k}" for k in range(measured[0].joints.shape[1])]
    columns: dict[str, object] = {"sample": _names(videos), CLUSTER: [source_of(video.name) for video in videos]}
    for kind in ("", "strict "):
        met, counted = zip(*(met_joints(one.distances, SHOWN, strict=bool(kind)) for one in measured), strict=True)
        for number, alpha in enumerate(SHOWN):
            hits = np.stack([values[number] for values in met])
            columns |= ratio_columns(f"{kind}PCK@{alpha}", joints, hits, np.stack(counted))
    return pd.DataFrame(columns)


def _names(videos: Sequence[PoseVideo]) -> list[str]:
    names = [video.name for video in videos]
    return names if len(set(names)) == len(names) else [f"{name}#{k}" for k, name in enumerate(names)]


def _per_joint(measured: Sequence[_Measured]) -> pd.DataFrame:
    """A row a joint and its mean: PCK by alpha, as published and strict, percent."""
    import pandas as pd

    from tasks.scores.pose import pck

    distances = [one.distances for one in measured]
    names = [*map(str, range(measured[0].joints.shape[1])), "mean"]
    columns: dict[str, object] = {"joint": names}
    for kind in ("", "strict "):
        for alpha, row in zip(ALPHAS, pck(distances, strict=bool(kind)), strict=True):
            columns[f"{kind}PCK@{alpha}"] = row
    return pd.DataFrame(columns)


def draw(videos: Videos, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """Draw three frames of the worst and best videos: rings are true joints, discs are propagated joints."""
    import pandas as pd

    measured: Sequence[_Measured] = outcome.to_draw
    shares = []
    for one in measured:
        met, counted = met_joints(one.distances, SHOWN[:1], strict=True)
        shares.append(100 * met[0].sum() / counted.sum())
    values = pd.Series(shares)
    pictures = []
    for rank, label in enumerate(figures.worst_and_best_first(values)[:PICTURES]):
        index = int(str(label))
        video, case = videos.items[index], {0: " (worst)", 1: " (best)"}.get(rank, "") if len(values) > 1 else ""
        file = folder / "overlays" / f"{index:04d}.jpg"
        frames = figures.evenly_spaced(range(len(video.frames)), 3)
        figures.save(file, np.hstack([_marked(video, measured[index], frame) for frame in frames]))
        caption = f"{video.name}{case}: strict PCK@{SHOWN[0]} {values[index]:.1f}; rings are the true joints"
        pictures.append(Picture(f"overlays/{file.name}", caption))
    return tuple(pictures)


def _marked(video: PoseVideo, result: _Measured, frame: int) -> Pixels:
    scale = 240 / video.size[0]
    drawn = cv2.resize(video.read(frame), (round(video.size[1] * scale), 240), interpolation=cv2.INTER_AREA)
    for true, predicted in zip(video.joints[frame], result.joints[frame], strict=True):
        cv2.circle(drawn, tuple(int(v) for v in np.round(true * scale)), 5, figures.PLAIN, 1, cv2.LINE_AA)
        if (predicted >= 0).all():
            end = tuple(int(v) for v in np.round(predicted * scale))
            cv2.line(drawn, tuple(int(v) for v in np.round(true * scale)), end, figures.WRONG, 1, cv2.LINE_AA)
            cv2.circle(drawn, end, 3, figures.RIGHT, -1, cv2.LINE_AA)
    return np.asarray(drawn, np.uint8)


TASK = Task(
    name="jhmdb",
    summary="Human pose by label propagation (JHMDB: PCK, as published and strict).",
    source="CRW, arXiv 2006.14613; videowalk data/jhmdb.py, eval/eval_pck.py.",
    config=JhmdbConfig,
    metrics=METRICS,
    open=open_videos,
    measure=measure,
    draw=draw,
    at_size=sized_by("image_size"),
    smoke=JhmdbConfig(image_size=320, max_videos=2),
    versions=versions("propagation", "joints", "pose scores"),
)

if __name__ == "__main__":
    command_line.run(lambda: main("jhmdb"))
