"""Track points through a user's clip, and write the tracks with an overlay video.

Each point is given on a frame of its own. It goes to the most similar patch of each frame, earlier or later
(`dino_dense.matching.tracks`). A point may be given again on other frames, which corrects it: each frame then goes by
the nearest frame on which the point is given. Memory does not grow with the length of the clip: frames are streamed. It
grows with the number of frames that have points: their features are kept.

Shapes: P points, given in G >= P places (x, y) in pixels of the frames, H x W pixels.
"""

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from data import DataError
from data.clips import Clip, ClipFrame
from data.video_writer import VideoWriter
from dino_dense import Backbone
from dino_dense.arrays import Floats, Mask, Pixels
from dino_dense.files import write_text
from dino_dense.maps import to_input
from dino_dense.matching.track_protocol import SIDE, TrackingProtocol
from dino_dense.matching.tracks import query_features, track_points, way_back
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
    """[P, 2]: centers of patches; where it is given, a point as given."""
    cosine: Floats
    """[P], with the point's feature in the nearest frame where it is given."""
    hidden: Mask
    """[P]"""


def read_points(text: str, clip: Clip) -> Floats:
    """Places [G, 4] (point, frame, x, y) from a text "x,y;x,y@FRAME;2=x,y@FRAME".

    Pixels, and a frame's number in the source (default 0). A place without "2=" is a new point, counted from 1.

    Raises:
        ValueError: the text has no such form, or a number is not finite.
        DataError: see `check_points`.
    """
    places: list[tuple[int, int, float, float]] = []
    count = 0
    for part in text.split(";"):
        named, corrects, rest = part.rpartition("=")
        spot, at, frame = rest.partition("@")
        try:
            x, y = map(float, spot.split(","))
            index = int(frame) if at else 0
            count += not corrects
            point = int(named) if corrects else count
        except ValueError:
            raise ValueError(
                f"points are {text!r}: expected x,y;x,y (two numbers a point; x,y@12 for frame 12; 2=x,y@12 to correct "
                f"point 2 there), found {part!r}"
            ) from None
        if not (math.isfinite(x) and math.isfinite(y)):
            raise ValueError(f"points are {text!r}: {part!r} is no place in a picture")
        if not 1 <= point <= count:
            raise ValueError(
                f"points are {text!r}: {part!r} corrects point {point}, and points 1 to {count} stand before"
            )
        places.append((point, index, x, y))
    check_points(places, clip)
    return np.array(places, np.float64)


def check_points(places: Sequence[tuple[int, int, float, float]], clip: Clip) -> None:
    """DataError for a place (point, frame, x, y) outside the frames, or a second place of a point in a frame."""
    height, width = clip.size
    last = len(clip.source.seconds) - 1
    for point, frame, x, y in places:
        if not (0 <= x < width and 0 <= y < height):
            raise DataError(
                f"{clip.path}: point ({x:g}, {y:g}) is outside the frames of {width}x{height} pixels (width x height)."
            )
        if not 0 <= frame <= last:
            raise DataError(f"{clip.path}: a point of frame {frame}; the frames are 0 to {last}.")
        if sum(other[:2] == (point, frame) for other in places) > 1:
            raise DataError(f"{clip.path}: point {point} is given twice on frame {frame}. Leave one out.")


def carry_points(
    backbone: Backbone, clip: Clip, points: Floats, resolution: int | None, *, batch_size: int | None = None
) -> Generator[TrackedFrame]:
    """Yield every frame of a clip with the points.

    Args:
        points: [G, 4]: point (1 to P), frame (its number in the source), x, y inside it. The frame need not be in the
            clip's selection.
        resolution: short side of the network's input, pixels; None: the clip's own.
        batch_size: frames whose features are computed at once; default: 1 on a CPU, 8 on a GPU.

    Raises:
        DataError: a frame is unusable.
        ValueError: the features are not finite.
    """
    most = batch_size or default_batch(backbone)
    read = partial(_maps, backbone, resolution or min(clip.size))
    sought = _Sought.of(points, clip, read)
    indices = iter(clip.indices)
    with closing(drawn_ahead(clip, ahead=2 * most)) as frames:
        for batch in in_batches(frames, lambda frame: frame.rgb.shape, most):
            tracks, alike, hidden = sought.find(read(batch), clip.size)
            for number, (index, frame) in enumerate(zip(islice(indices, len(batch)), batch, strict=True)):
                nearest = _nearest(points, index)
                given = points[nearest, 1] == index
                there = np.where(given[:, None], points[nearest, 2:], tracks[nearest, number])
                yield TrackedFrame(frame, there, alike[number, nearest], hidden[nearest, number] & ~given)


def _nearest(points: Floats, index: int) -> npt.NDArray[np.int64]:
    """[P]: the place, of each point's, whose frame is the nearest to a frame; of two, the earlier."""
    order = np.lexsort((points[:, 1], abs(points[:, 1] - index), points[:, 0]))
    return order[np.unique(points[order, 0], return_index=True)[1]]


def _maps(backbone: Backbone, side: int, frames: Sequence[ClipFrame]) -> Tensor:
    """Features [T, D, h, w] of frames of one size."""
    maps = backbone.extract(torch.cat([to_input(backbone, frame.rgb, side) for frame in frames])).patches
    if not bool(maps.isfinite().all()):
        raise ValueError("the backbone gave features that are not finite numbers: check its weights, or use fp32")
    return maps


class _Sought(NamedTuple):
    """The places, with the features of the frames on which they are given."""

    homes: Tensor
    """[K, D, h, w]"""
    queries: Tensor
    """[G, D]"""
    starts: Tensor
    """[G, 2]: x, y."""
    at: npt.NDArray[np.int64]
    """[G]: their number among the homes."""

    @classmethod
    def of(cls, points: Floats, clip: Clip, read: Callable[[Sequence[ClipFrame]], Tensor]) -> "_Sought":
        given, at = np.unique(points[:, 1].astype(np.int64), return_inverse=True)
        homes = torch.cat([read(list(clip.frames(range(index, index + 1)))) for index in given.tolist()])
        queries = query_features(homes, torch.from_numpy(np.column_stack([at, points[:, [3, 2]]])).float(), clip.size)
        return cls(homes, queries, torch.from_numpy(points[:, 2:]).float(), at)

    def find(self, maps: Tensor, size: tuple[int, int]) -> tuple[Floats, Floats, Mask]:
        """Positions [G, T, 2] in features [T, D, h, w] of frames of `size`, cosines [T, G], hidden ones [G, T]."""
        tracks, cosine = track_points(maps, self.queries, size)
        back = tracks.new_empty(tracks.shape[:2])
        for number, home in enumerate(self.homes):
            rows = torch.from_numpy(np.flatnonzero(self.at == number))
            back[rows] = way_back(home, self.starts[rows], maps, tracks[rows], size)
        hidden = back > HIDDEN_SHARE * min(size)
        return tracks.double().cpu().numpy(), cosine.double().cpu().numpy(), hidden.cpu().numpy()


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
