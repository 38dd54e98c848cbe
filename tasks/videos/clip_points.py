"""Track points of the first frame through a user's clip, and write the tracks with an overlay video.

Each point goes to the most similar patch of each frame (`dino_dense.matching.tracks`). Memory does not grow with the
length of the clip: frames are streamed.

Shapes: P points (x, y) in pixels of the frames, H x W pixels.
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from data import DataError
from data.clips import Clip, ClipFrame
from data.video_writer import VideoWriter
from dino_dense import Backbone
from dino_dense.arrays import Floats, Mask, Pixels
from dino_dense.files import write_text
from dino_dense.maps import to_input
from dino_dense.matching.track_protocol import SIDE, TrackingProtocol
from dino_dense.matching.tracks import cycle_distance, query_features, track_points
from dino_dense.objects.maps_ahead import default_batch
from dino_dense.pipeline import drawn_ahead, in_batches
from dino_dense.progress import progress
from tasks.harness import figures

HIDDEN_SHARE = TrackingProtocol().cycle_radius / SIDE
"""A point is hidden where the patch that was found leads back to farther than this from the point, as a share of the
frame's shorter side (the rule `cycle` of tasks.tracking, ours)."""
TRAIL = 12  # frames of a track that are drawn behind a point
Tell = Callable[[int, int], None]


class TrackedFrame(NamedTuple):
    """A frame of a clip, and where the points are in it."""

    frame: ClipFrame
    points: Floats
    """[P, 2]: centers of patches; in the first frame the points as given."""
    cosine: Floats
    """[P], with the point's feature in the first frame."""
    hidden: Mask
    """[P]"""


def read_points(text: str, clip: Clip) -> Floats:
    """Points [P, 2] of the first frame from a text "x,y;x,y", in pixels of the frame.

    Raises:
        ValueError: the text has no such form, or a number is not finite.
        DataError: a point lies outside the frame.
    """
    points = []
    for part in text.split(";"):
        try:
            x, y = map(float, part.split(","))
        except ValueError:
            raise ValueError(f"points are {text!r}: expected x,y;x,y (two numbers a point), found {part!r}") from None
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"points are {text!r}: {part!r} is no place in a picture")
        points.append((x, y))
    check_points(points, clip)
    return np.array(points, np.float64)


def check_points(points: Sequence[tuple[float, float]], clip: Clip) -> None:
    """DataError for a point outside the frames of a clip."""
    height, width = clip.size
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise DataError(
                f"{clip.path}: point ({x:g}, {y:g}) is outside the frames of {width}x{height} pixels (width x height)."
            )


def carry_points(
    backbone: Backbone, clip: Clip, points: Floats, resolution: int | None, *, batch_size: int | None = None
) -> Generator[TrackedFrame]:
    """Yield every frame of a clip with the points.

    Args:
        points: [P, 2] of the first frame, inside it.
        resolution: short side of the network's input, pixels; None: the clip's own.
        batch_size: frames whose features are computed at once; default: 1 on a CPU, 8 on a GPU.

    Raises:
        DataError: a frame is unusable.
        ValueError: the features are not finite.
    """
    side, most = resolution or min(clip.size), batch_size or default_batch(backbone)
    starts = torch.from_numpy(np.concatenate([np.zeros((len(points), 1)), points[:, ::-1]], axis=1)).float()
    first = queries = None
    with closing(drawn_ahead(clip, ahead=2 * most)) as frames:
        for batch in in_batches(frames, lambda frame: frame.rgb.shape, most):
            maps = backbone.extract(torch.cat([to_input(backbone, frame.rgb, side) for frame in batch])).patches
            if not bool(maps.isfinite().all()):
                raise ValueError(
                    "the backbone gave features that are not finite numbers: check its weights, or use fp32"
                )
            begins = first is None
            if first is None or queries is None:
                first, queries = maps[:1], query_features(maps[:1], starts, clip.size)
            tracks, cosine = track_points(maps, queries, clip.size)
            cycle = cycle_distance(
                torch.cat([first, maps]), starts, torch.cat([tracks[:, :1], tracks], dim=1), clip.size
            )
            places, alike = tracks.double().cpu().numpy(), cosine.double().cpu().numpy()
            hidden = (cycle[:, 1:] > HIDDEN_SHARE * min(clip.size)).cpu().numpy()
            if begins:
                places[:, 0], hidden[:, 0] = points, False
            yield from (
                TrackedFrame(frame, places[:, index], alike[index], hidden[:, index])
                for index, frame in enumerate(batch)
            )


def write_tracks(carried: Iterator[TrackedFrame], clip: Clip, out: Path, *, tell: Tell | None = None) -> str:
    """Write OUT/NAME_tracks.mp4, .jpg (first, middle, last frame) and .csv, the last when all else is written.

    The table has a row for each frame and point: point (1 to P), frame (its number in the source), name, seconds, x, y,
    cosine and hidden.

    Args:
        tell: called with (frames done, total frames) after each frame; default: a progress bar.

    Returns:
        A note on the mp4.

    Raises:
        OSError: a file cannot be written.
    """
    trails: list[Floats] = []
    strip: list[Pixels] = []
    rows: list[pd.DataFrame] = []
    shown = {0, (len(clip) - 1) // 2, len(clip) - 1}
    with ExitStack() as stack:
        film = stack.enter_context(VideoWriter(out / f"{clip.name}_tracks.mp4", clip.size, clip.shown_rate))
        done = tell or _bar(stack, clip)
        for number, (index, tracked) in enumerate(zip(clip.indices, carried, strict=True)):
            trails = [*trails[-TRAIL:], tracked.points]
            drawn = _drawn(tracked, trails)
            film.add(drawn, tracked.frame.seconds)
            if number in shown:
                strip.append(drawn)
            rows.append(_rows(tracked, index))
            done(number + 1, len(clip))
    figures.strip(out / f"{clip.name}_tracks.jpg", strip)
    write_text(out / f"{clip.name}_tracks.csv", pd.concat(rows).to_csv(index=False))
    return f" {film.note}" if film.note else ""


def _drawn(tracked: TrackedFrame, trails: Sequence[Floats]) -> Pixels:
    colors = [figures.point_color(number) for number in range(len(tracked.points))]
    return figures.tracks_over(tracked.frame.rgb, np.stack(trails, axis=1), colors, tracked.hidden)


def _rows(tracked: TrackedFrame, index: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "point": np.arange(1, len(tracked.points) + 1),
            "frame": index,
            "name": tracked.frame.name,
            "seconds": round(tracked.frame.seconds, 4),
            "x": tracked.points[:, 0].round(2),
            "y": tracked.points[:, 1].round(2),
            "cosine": tracked.cosine.round(4),
            "hidden": tracked.hidden,
        }
    )


def _bar(stack: ExitStack, clip: Clip) -> Tell:
    bar = stack.enter_context(progress(len(clip), unit="frame", desc=clip.name))
    return lambda done, total: bar.update()
