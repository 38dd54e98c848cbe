"""Points inside masks: the share of tracked points, and of matches some frames apart, that stay inside the object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from data import DataError
from data.davis import VideoSequence, load_davis
from data.sample import sample_data
from dino_dense import Metric, Picture
from dino_dense.config import command_line
from dino_dense.config.schema import check_positive, path, runtime, selects
from tasks.harness import figures
from tasks.harness.command import main
from tasks.harness.session import DataFacts, Session
from tasks.harness.task import Outcome, Task, file_list_hash, sized_by

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from dino_dense import Backbone
    from dino_dense.arrays import Floats, Mask, Pixels

METRICS = (Metric("stays inside"), Metric("match inside"))
PICTURES = 4
TRAIL = 5  # frames of a track that are drawn behind a point


@dataclass(frozen=True)
class InsideProtocol:
    """Which points are followed, and how (ours)"""

    short_side: int = 448
    """Short side of the network's input, pixels; each side is rounded to whole patches."""
    points: int = 100
    """Points of the objects of a frame, drawn at random among their pixels."""
    gap: int = 20
    """Frames between the two frames of a match."""
    pairs: int = 10
    """Pairs of frames of a sequence, evenly spaced; each with points of its own."""

    def __post_init__(self) -> None:
        check_positive(self, "short_side", "points", "gap", "pairs")


@dataclass(frozen=True)
class InsideConfig(InsideProtocol):
    """Which videos, and every constant of the protocol"""

    data: str | None = path()
    """Root of a DAVIS tree (ImageSets, JPEGImages, Annotations); without it, the embedded set."""
    year: Literal[2016, 2017] = selects(2017)
    """2016: one foreground, any value above 0; 2017: ids, 255 is void."""
    split: str = selects("val")
    """List under ImageSets/YEAR: val, train, ..."""
    sequences: tuple[str, ...] | None = selects(None)
    """Use only these sequences of the split: a,b,c."""
    max_frames: int | None = selects(None)
    """Use only the first frames of each sequence."""
    resolution: str = selects("480p")
    """Folder under JPEGImages and Annotations."""
    batch_size: int | None = runtime(None)
    """Frames whose features are computed at once; without it, 1 on a CPU and 8 on a GPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "max_frames", "batch_size")


class Videos(NamedTuple):
    """The sequences that a config names."""

    items: list[VideoSequence]
    facts: DataFacts


class _Points(NamedTuple):
    """Points of one frame."""

    frame: int
    places: Floats
    """[P, 2]: x, y in pixels."""
    objects: Pixels
    """[P]: ids."""


class _Measured(NamedTuple):
    """One sequence."""

    tracks: Floats
    """[P, T, 2]: x, y of the points of the first frame."""
    inside: Mask
    """[P, T]"""
    present: Mask
    """[P, T]: whether the point's object is in the frame."""
    match_inside: Mask
    """[M] over all pairs of frames, of points whose object is in the second."""
    chance: float
    """Share of the frame that the objects take, mean over points and frames where they are."""


def measure(backbone: Backbone, videos: Videos, config: InsideConfig, session: Session) -> Outcome:
    """Follow the points of every sequence, and look which mask they are in."""
    import pandas as pd

    own_share = session.share(videos.items)
    shown = session.progress(own_share, "following points", unit="video")
    measured = session.collect(
        (index, _measure(backbone, video, index, config, session.seed)) for index, video in shown
    )
    rows = [_row(video, result) for video, result in zip(videos.items, measured, strict=True)]
    table = pd.DataFrame(rows)
    return Outcome(
        tables={"per_video": table, "by_frame": _by_frame(videos.items, measured)},
        note=_note(config, table),
        samples=table[["sample", *(metric.name for metric in METRICS)]],
        to_draw=measured,
    )


def open_videos(config: InsideConfig) -> Videos:
    """The sequences that a config names; DataError if they cannot be used."""
    root = Path(config.data) if config.data else sample_data().davis
    items = load_davis(
        root, config.year, config.split, config.sequences, config.max_frames, resolution=config.resolution
    )
    bare = [video.name for video in items if not video.has_ground_truth]
    if bare:
        raise DataError(f"{root}: no masks beyond the first frame in {', '.join(bare)}. Leave them out (--sequences).")
    if all(len(video) <= config.gap for video in items):
        raise DataError(
            f"{root}: no sequence has more than {config.gap} frames, so none has two frames so far apart. Use a "
            "smaller --gap."
        )
    files = [file for video in items for file in (*video.frames, *video.masks) if file is not None]
    frames = sum(map(len, items))
    name = f"DAVIS-{config.year} {config.split}" if config.data else "embedded videos (not DAVIS)"
    if config.data:
        name += f" ({len(items)} sequences, {frames} frames)"
    description = DataFacts(
        name=name, root=str(root), n=len(items), unit="sequences", sha256=file_list_hash(root, files)
    )
    return Videos(items, description)


# --- One sequence ------------------------------------------------------------------------------------------


def _measure(backbone: Backbone, video: VideoSequence, index: int, config: InsideConfig, seed: int) -> _Measured:
    """Follow the points frame by frame; only their features are kept."""
    rng = np.random.default_rng([seed, index])
    followed = _drawn(video, 0, config.points, rng)
    assert followed is not None, "load_davis wants an object in the first mask"
    drawn = [followed, *_pairs(video, config, rng)]
    known: dict[int, Tensor] = {}  # number in `drawn` -> features of the points
    tracks, inside, present, matches, shares = [], [], [], [], []
    for frame, maps in _features(backbone, video, config):
        mask = video.read_mask(frame)
        for number, points in enumerate(drawn):
            if points.frame == frame:
                known[number] = _queries(maps, points, video.size)
            if number and points.frame + config.gap == frame:
                places = _nearest(maps, known.pop(number), video.size)
                seen = np.isin(points.objects, mask)
                matches.append((_ids_at(mask, places) == points.objects)[seen])
        tracks.append(_nearest(maps, known[0], video.size))
        inside.append(_ids_at(mask, tracks[-1]) == followed.objects)
        present.append(np.isin(followed.objects, mask))
        shares += [float((mask == identity).mean()) for identity in followed.objects[present[-1]]]
    return _Measured(
        np.stack(tracks, axis=1),
        np.stack(inside, axis=1),
        np.stack(present, axis=1),
        np.concatenate(matches) if matches else np.zeros(0, bool),
        float(np.mean(shares)),
    )


def _queries(maps: Tensor, points: _Points, size: tuple[int, int]) -> Tensor:
    """Features [P, D] of points in their frame [1, D, h, w] of `size` (H, W)."""
    import torch

    from dino_dense.matching.tracks import query_features

    rows = np.column_stack([np.zeros(len(points.places)), points.places[:, ::-1]])
    return query_features(maps, torch.from_numpy(rows).float(), size)


def _nearest(maps: Tensor, queries: Tensor, size: tuple[int, int]) -> Floats:
    """Centers (x, y) [P, 2] of the most similar patches of a frame [1, D, h, w] of `size` (H, W), pixels."""
    from dino_dense.matching.tracks import track_points

    return np.asarray(track_points(maps, queries, size)[0][:, 0].double().cpu().numpy())


def _features(backbone: Backbone, video: VideoSequence, config: InsideConfig) -> Iterator[tuple[int, Tensor]]:
    """Each frame's number and patch features [1, D, h, w]."""
    from dino_dense.maps import to_input
    from dino_dense.objects.maps_ahead import default_batch, maps_ahead

    ahead = maps_ahead(
        range(len(video)),
        video.read_frame,
        lambda rgb: to_input(backbone, rgb, config.short_side)[0],
        lambda batch: backbone.extract(batch).patches,
        config.batch_size or default_batch(backbone),
    )
    for frame, _, features in ahead:
        yield frame, features[None]


def _pairs(video: VideoSequence, config: InsideConfig, rng: np.random.Generator) -> Iterator[_Points]:
    """The points of the first frame of each pair that shows an object."""
    starts = range(max(0, len(video) - config.gap))
    for start in figures.evenly_spaced(starts, config.pairs) if starts else []:
        if (points := _drawn(video, start, config.points, rng)) is not None:
            yield points


def _drawn(video: VideoSequence, frame: int, count: int, rng: np.random.Generator) -> _Points | None:
    """Points at the centers of random pixels of the objects of a frame; None if there is no object."""
    mask = video.read_mask(frame)
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return None
    chosen = rng.choice(len(rows), count, replace=len(rows) < count)
    places = np.column_stack([columns[chosen], rows[chosen]]).astype(np.float64) + 0.5
    return _Points(frame, places, mask[rows[chosen], columns[chosen]])


def _ids_at(mask: Pixels, places: Floats) -> Pixels:
    """Ids [P] of a mask [H, W] at points (x, y) [P, 2]."""
    columns, rows = np.minimum(places.astype(int), [mask.shape[1] - 1, mask.shape[0] - 1]).T
    return mask[rows, columns]


# --- Tables ------------------------------------------------------------------------------------------------


def _row(video: VideoSequence, result: _Measured) -> dict[str, object]:
    later = result.present[:, 1:]
    return {
        "sample": video.name,
        "stays inside": 100 * float(result.inside[:, 1:][later].mean()) if later.any() else np.nan,
        "match inside": 100 * float(result.match_inside.mean()) if len(result.match_inside) else np.nan,
        "chance": 100 * result.chance,
        "points": len(result.tracks),
        "frames": result.tracks.shape[1],
        "matches": len(result.match_inside),
    }


def _by_frame(videos: Sequence[VideoSequence], measured: Sequence[_Measured]) -> pd.DataFrame:
    """Share of points inside by sequence and frame, percent; empty where no object is in the frame."""
    import pandas as pd

    rows = []
    for video, result in zip(videos, measured, strict=True):
        for frame in range(1, result.tracks.shape[1]):
            seen = result.present[:, frame]
            share = 100 * float(result.inside[seen, frame].mean()) if seen.any() else np.nan
            rows.append({"video": video.name, "frame": frame, "inside": share})
    return pd.DataFrame(rows, columns=["video", "frame", "inside"])


def _note(config: InsideConfig, table: pd.DataFrame) -> str:
    return (
        f"{config.points} points of the first frame, each taken to the most similar patch of every later frame; and "
        f"points of {config.pairs} frames, found {config.gap} frames later. Inside: the center of that patch is in the "
        f"mask of the same object. A place drawn at random is inside in {table['chance'].mean():.1f} %. Means over "
        "sequences. Ours."
    )


# --- Pictures ----------------------------------------------------------------------------------------------


def draw(videos: Videos, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """First, middle and last frame of the worst and best sequences: green points are inside, red ones are not."""
    assert outcome.samples is not None
    measured: Sequence[_Measured] = outcome.to_draw
    values = outcome.samples["stays inside"]
    pictures = []
    for rank, label in enumerate(figures.worst_and_best_first(values.dropna())[:PICTURES]):
        index = int(str(label))
        video, case = videos.items[index], {0: " (worst)", 1: " (best)"}.get(rank, "") if len(values) > 1 else ""
        tiles = [_overlay(video, measured[index], frame) for frame in (0, len(video) // 2, len(video) - 1)]
        figures.strip(folder / "overlays" / f"{video.name}.jpg", tiles)
        caption = f"{video.name}{case}: {values[index]:.1f} % stay inside; green is inside, red outside"
        pictures.append(Picture(f"overlays/{video.name}.jpg", caption))
    return tuple(pictures)


def _overlay(video: VideoSequence, result: _Measured, frame: int) -> Pixels:
    rgb = figures.overlay(video.read_frame(frame), video.read_mask(frame), opacity=0.25)
    colors = [figures.RIGHT if answer else figures.WRONG for answer in result.inside[:, frame]]
    trails = result.tracks[:, max(0, frame - TRAIL) : frame + 1]
    return figures.tracks_over(rgb, trails, colors, ~result.present[:, frame])


TASK = Task(
    name="inside",
    summary="Points inside masks: the share of tracked points and of matches that stay inside the object.",
    source="Ours, on DAVIS; tracking as zero-shot on TAP-Vid, arXiv 2408.13575.",
    config=InsideConfig,
    metrics=METRICS,
    open=open_videos,
    measure=measure,
    draw=draw,
    at_size=sized_by("short_side"),
    smoke=InsideConfig(short_side=96, points=30, gap=2, pairs=1, max_frames=4),
)

if __name__ == "__main__":
    command_line.run(lambda: main("inside"))
