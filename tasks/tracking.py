"""Point tracking without training: each point goes to the most similar patch of each frame (TAP-Vid)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data import DataError
from data.known_sets import tracking_set
from data.sample.points import sample_tracks
from data.tracks import TrackedVideo, find_pickle, load_tracks
from dino_dense import Metric, Picture
from dino_dense.config import command_line
from dino_dense.config.schema import check_positive, path, runtime, selects
from dino_dense.matching.track_protocol import SIDE, TrackingProtocol
from dino_dense.versions import versions
from tasks.harness import figures
from tasks.harness.command import main
from tasks.harness.session import DataFacts, Session
from tasks.harness.task import Outcome, Task, file_list_hash
from tasks.scores.tracking import Queries, query_tracks, scored_frames, tracking_scores

if TYPE_CHECKING:
    from torch import Tensor

    from dino_dense import Backbone
    from dino_dense.arrays import Floats, Mask

METRICS = tuple(Metric(name) for name in ("delta", "AJ", "OA", "AJ (rule)", "OA (rule)"))
PICTURES = 4
FRAMES_PER_SECOND = 12
NEAR = 8  # pixels of the 256 x 256 frame: a point this near is drawn as right
DRAWN_SIDE = 512  # pixels of the overlay


@dataclass(frozen=True)
class TrackingConfig(TrackingProtocol):
    """Which videos, and every constant of the protocol"""

    data: str | None = path()
    """TAP-Vid's pickle (tapvid_davis.pkl, RGB-Stacking's), or the folder that holds it; without it, embedded videos."""
    max_videos: int | None = selects(None)
    """Use only this many videos, the first ones."""
    batch_size: int | None = runtime(None)
    """Frames whose features are computed at once; without it, 1 on a CPU and 8 on a GPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "max_videos", "batch_size")


class Videos(NamedTuple):
    """The videos that a config names."""

    items: list[TrackedVideo]
    facts: DataFacts


class _Measured(NamedTuple):
    """Queries of a video, their tracks, the points that the rule calls hidden, and the scores in percent."""

    queries: Queries
    tracks: Floats
    hidden: Mask
    row: dict[str, Any]
    by_track: dict[str, Any]


def measure(backbone: Backbone, videos: Videos, config: TrackingConfig, session: Session) -> Outcome:
    """Track the points of every video, and compare with where they are."""
    import pandas as pd

    own_share = session.share(videos.items)
    shown = session.progress(own_share, f"tracking ({config.mode})", unit="video")
    measured = session.collect((index, _measure(backbone, video, config)) for index, video in shown)
    table = pd.DataFrame([result.row for result in measured])
    return Outcome(
        tables={"per_video": table, "per_track": pd.concat([pd.DataFrame(result.by_track) for result in measured])},
        note=_note(config),
        samples=table[["sample", *(metric.name for metric in METRICS)]],
        to_draw=measured,
    )


def open_videos(config: TrackingConfig) -> Videos:
    """The videos that a config names; DataError if they cannot be used."""
    file = find_pickle(config.data) if config.data else sample_tracks()
    every = load_tracks(file)
    items = every[: config.max_videos]
    scored = [video for video in items if _can_be_scored(video, config)]
    if not scored:
        raise DataError(f"{file}: no point is visible in a frame that is scored ({config.mode}).")
    dataset = tracking_set(file, items) if config.data else None
    name = dataset or (file.name if config.data else "embedded tracks (not TAP-Vid)")
    if len(scored) < len(every):
        name += f" (part: {len(scored)} of {len(every)})"
    description = DataFacts(
        name=name,
        root=str(file),
        n=len(scored),
        unit="videos",
        sha256=file_list_hash(file.parent, [file], labels=(v.points.tobytes() + v.occluded.tobytes() for v in scored)),
        dataset=dataset if len(scored) == len(every) else None,
    )
    return Videos(scored, description)


def _queries(video: TrackedVideo, config: TrackingConfig) -> tuple[Queries, Mask]:
    """Queries in pixels of the 256 x 256 frame, and which frames of each are scored."""
    queries = query_tracks(video.points * SIDE, video.occluded, config.mode)
    return queries, scored_frames(queries.points, len(video), config.mode)


def _can_be_scored(video: TrackedVideo, config: TrackingConfig) -> bool:
    if config.mode == "strided" and video.occluded[:, ::5].all():
        return False
    queries, scored = _queries(video, config)
    return bool((scored & ~queries.occluded).any())


# --- Tracking ----------------------------------------------------------------------------------------------


def _measure(backbone: Backbone, video: TrackedVideo, config: TrackingConfig) -> _Measured:
    import torch

    from dino_dense.matching.tracks import cycle_distance, query_features, track_points

    features, size = _features(backbone, video, config), (SIDE, SIDE)
    queries, scored = _queries(video, config)
    points = torch.from_numpy(queries.points).float()
    tracks, cosine = track_points(features, query_features(features, points, size), size)
    if config.occlusion == "cycle":
        hidden = cycle_distance(features, points, tracks, size) > config.cycle_radius
    else:
        hidden = config.min_cosine > cosine.T
    return _scored(video, queries, scored, tracks.double().cpu().numpy(), hidden.cpu().numpy())


def _features(backbone: Backbone, video: TrackedVideo, config: TrackingConfig) -> Tensor:
    """Patch features [T, D, grid, grid] of the frames."""
    import torch
    import torch.nn.functional as F

    from dino_dense.backbone.bytes import sent
    from dino_dense.objects.maps_ahead import default_batch, maps_ahead

    side = config.grid * backbone.patch_size

    def patches(frames: Tensor) -> Tensor:
        pixels = sent(frames, backbone.device)
        return backbone.extract(F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)).patches

    frames = maps_ahead(
        range(len(video)),
        lambda index: video.read(index, SIDE),
        lambda rgb: torch.from_numpy(np.array(rgb)).permute(2, 0, 1),
        patches,
        config.batch_size or default_batch(backbone),
    )
    return torch.stack([features for _, _, features in frames])


def _scored(video: TrackedVideo, queries: Queries, scored: Mask, tracks: Floats, hidden: Mask) -> _Measured:
    """Scores with every point predicted visible, as published, and with the rule."""
    shown = np.zeros_like(hidden)
    row: dict[str, Any] = {"sample": video.name}
    for suffix, predicted in (("", shown), (" (rule)", hidden)):
        scores = tracking_scores(queries.targets, queries.occluded, tracks, predicted, scored)
        row |= {f"{name}{suffix}": 100 * float(value) for name, value in _renamed(scores).items()}
    with np.errstate(invalid="ignore", divide="ignore"):  # a track without a visible point in a scored frame
        single = tracking_scores(queries.targets, queries.occluded, tracks, hidden, scored, by_track=True)
    by_track = {"video": video.name, "track": queries.tracks, "frame": queries.points[:, 0].astype(int)}
    by_track |= {
        f"{name} (rule)": 100 * value for name, value in _renamed(single).items() if name in ("delta", "AJ", "OA")
    }
    return _Measured(queries, tracks, hidden, row, by_track)


def _renamed(scores: dict[str, Any]) -> dict[str, Any]:
    """TAP-Vid's names as people write them."""
    short = {"average_pts_within_thresh": "delta", "average_jaccard": "AJ", "occlusion_accuracy": "OA"}
    return {short.get(name, name): value for name, value in scores.items()}


def _note(config: TrackingConfig) -> str:
    rules = {
        "cycle": f"its patch does not lead back to within {config.cycle_radius:g} pixels of the query",
        "cosine": f"its cosine is below {config.min_cosine:g}",
    }
    return (
        "delta, AJ and OA predict every point visible, as published zero-shot numbers do. With (rule), ours, a point "
        f"is hidden where {rules[config.occlusion]}. Means over videos; distances in 256x256 frames."
    )


# --- Pictures ----------------------------------------------------------------------------------------------


def draw(videos: Videos, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """Films of the worst and best videos with every track over them, and of each film three frames."""
    assert outcome.samples is not None
    results: Sequence[_Measured] = outcome.to_draw
    values = outcome.samples["delta"]
    pictures = []
    for rank, label in enumerate(figures.worst_and_best_first(values)[:PICTURES]):
        index = int(str(label))
        video, case = videos.items[index], {0: " (worst)", 1: " (best)"}.get(rank, "") if len(values) > 1 else ""
        name = video.name.replace("/", "_")
        _film(folder / "overlays" / f"{name}.mp4", folder / "overlays" / f"{name}.jpg", video, results[index])
        caption = (
            f"{video.name}{case}: delta {values[index]:.1f}; green is within {NEAR} pixels, rings are hidden (rule)"
        )
        pictures.append(Picture(f"overlays/{name}.jpg", caption))
    return tuple(pictures)


def _film(film: Path, strip: Path, video: TrackedVideo, result: _Measured) -> None:
    """A video with its tracks, and its first, middle and last frame beside each other."""
    from data.video_writer import VideoWriter

    kept = []
    with VideoWriter(film, (DRAWN_SIDE, DRAWN_SIDE), Fraction(FRAMES_PER_SECOND)) as writer:
        for frame in range(len(video)):
            drawn = figures.tracks_over(video.read(frame, DRAWN_SIDE), *_marks(result, frame))
            writer.add(drawn, frame / FRAMES_PER_SECOND)
            if frame in (0, len(video) // 2, len(video) - 1):
                kept.append(drawn)
    figures.save(strip, np.hstack(kept))


def _marks(result: _Measured, frame: int) -> tuple[Floats, list[tuple[int, int, int]], Mask]:
    """Tracks up to a frame [Q, t, 2] in pixels of the overlay, green if right at it, and which are hidden."""
    started = result.queries.points[:, 0] <= frame
    error = np.linalg.norm(result.tracks[:, frame] - result.queries.targets[:, frame], axis=1)
    right = (error < NEAR) & ~result.queries.occluded[:, frame]
    scale = DRAWN_SIDE / SIDE
    first = max(0, frame - 5)
    colors = [figures.RIGHT if answer else figures.WRONG for answer in right[started]]
    return result.tracks[started, first : frame + 1] * scale, colors, result.hidden[started, frame]


def at_size(config: TrackingConfig, size: int, backbone: Backbone) -> TrackingConfig:
    """As many patches as fit on a side of the network's input, pixels."""
    return replace(config, grid=max(1, round(size / backbone.patch_size)))


TASK = Task(
    name="tracking",
    summary="Point tracking by the most similar patch (TAP-Vid: delta, AJ, OA).",
    source="TAP-Vid, arXiv 2211.03726; zero-shot tracking of frozen features, arXiv 2408.13575.",
    config=TrackingConfig,
    metrics=METRICS,
    open=open_videos,
    measure=measure,
    draw=draw,
    at_size=at_size,
    smoke=TrackingConfig(grid=64, max_videos=1),
    versions=versions("tracks", "tracking scores"),
)

if __name__ == "__main__":
    command_line.run(lambda: main("tracking"))
