"""A visitor's clip: the frame on view, the marks on any frame, and the points to track."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from data.clips import Clip
from data.masks import read_ids
from dino_dense.arrays import Pixels
from dino_dense.propagation.both_ways import GivenMasks, present
from tasks.harness import figures
from tasks.studio_page.live import Live

MOST_UNDONE = 30  # changes that can be taken back


@dataclass
class OpenClip:
    """The clip of a visitor."""

    folder: Path
    """Folder of the clip and the results of the last run."""
    clip: Clip
    frame: Pixels
    """[H, W, 3], the frame on view."""
    index: int = 0
    """Number of the frame on view."""
    marks: dict[int, GivenMasks] = field(default_factory=dict)
    """Masks of the marked frames, by number."""
    masks: Path | None = None
    """Folder of the masks of the last run."""
    points: list[tuple[int, int, int, int]] = field(default_factory=list)
    """(point, frame, x, y) of the points to track, in the order of the clicks; pixels. Points are counted from 1, and a
    point may be on several frames."""
    before: list[tuple[int, dict[int, GivenMasks]]] = field(default_factory=list)
    """Frame on view and `marks` before each of the last changes, the latest last."""
    features: dict[int, tuple[int, Tensor]] = field(default_factory=dict)
    """Number of a backbone -> frame, and its features [C, h, w]."""
    live: Live = field(default_factory=Live)
    """The run that goes on, or the last."""

    @property
    def ids(self) -> Pixels:
        """Ids [H, W] of the frame on view: its marks; if it has none, its masks of the last run."""
        if self.index in self.marks:
            return self.marks[self.index].ids
        file = self.masks / f"{self.clip.frame_name(self.index)}.png" if self.masks else None
        return read_ids(file) if file is not None and file.is_file() else np.zeros(self.clip.size, np.uint8)

    def go(self, index: int) -> None:
        """View another frame; a number outside the clip means its first or last frame.

        Raises:
            DataError: the frame is unusable.
        """
        index = min(max(index, 0), self.length - 1)
        if index != self.index:
            self.frame = next(iter(self.clip.frames(range(index, index + 1)))).rgb
            self.index = index

    def step(self, every: int, by: int) -> None:
        """View the next frame that is used with every n-th frame (`by` 1), or the previous (-1)."""
        number = self.index // every + 1 if by > 0 else (self.index - 1) // every
        self.go(min(number, (self.length - 1) // every) * every)

    @property
    def length(self) -> int:
        """Number of frames."""
        return len(self.clip)

    def mark(self, where: npt.NDArray[np.bool_] | slice, identity: int) -> None:
        """Give pixels of the frame on view to an object (0: to none); `undo` takes it back.

        From then on the frame is marked: all its masks count as they are on view.
        """
        ids = self.ids.copy()
        named = self.marks[self.index].objects if self.index in self.marks else present(ids)
        ids[where] = identity
        self._change({**self.marks, self.index: GivenMasks(ids, named | ({identity} - {0}))})

    def put(self, ids: Pixels) -> None:
        """Mark the frame on view with ids [H, W]; `undo` takes it back."""
        self._change({**self.marks, self.index: GivenMasks.of(ids)})

    def clear(self) -> None:
        """Take all marks of the frame on view away; `undo` takes it back."""
        self._change({index: marks for index, marks in self.marks.items() if index != self.index})

    def _change(self, marks: Mapping[int, GivenMasks]) -> None:
        self.before = [*self.before[1 - MOST_UNDONE :], (self.index, self.marks)]
        self.marks = dict(marks)

    def undo(self) -> None:
        """Take the last change back, and view its frame; does nothing if there is none."""
        if self.before:
            index, self.marks = self.before.pop()
            self.go(index)

    def seen(self) -> Pixels:
        """The frame on view, overlaid with its objects."""
        return figures.overlay(self.frame, self.ids)

    def said(self) -> str:
        """Frame on view, and the marked frames."""
        marked = ", ".join(str(index) for index in sorted(self.marks)) or "none"
        said = f"Frame {self.index}, the last is {self.length - 1}. Marked frames: {marked}."
        spotted = ", ".join(str(index) for index in sorted({index for _, index, *_ in self.points}))
        return f"{said} Frames with points: {spotted}." if spotted else said

    def spot(self, x: int, y: int, corrects: int = 0) -> None:
        """Put a point to track on the frame on view: a new one, or the point numbered `corrects`, which moves there.

        Raises:
            ValueError: there is no point of this number.
        """
        count = max((point for point, *_ in self.points), default=0)
        if not 0 <= corrects <= count:
            raise ValueError(f"point {corrects}: expected 0 for a new point, or the number of one, up to {count}")
        point = corrects or count + 1
        self.points = [place for place in self.points if place[:2] != (point, self.index)]
        self.points.append((point, self.index, x, y))

    def undo_point(self) -> None:
        """Take the last point away, and view its frame; does nothing if there is none."""
        if self.points:
            self.go(self.points.pop()[1])

    def seen_points(self) -> Pixels:
        """The frame on view with its points to track."""
        here = np.array([place for place in self.points if place[1] == self.index], np.float64).reshape(-1, 4)
        return points_over(self.frame, here[:, 2:], np.zeros(len(here), bool), (here[:, 0].astype(int) - 1).tolist())

    def close(self) -> None:
        """Stop its run, and remove its files."""
        self.live.stop.set()
        shutil.rmtree(self.folder, ignore_errors=True)


def points_over(
    frame: Pixels, points: npt.NDArray, hidden: npt.NDArray, numbers: Sequence[int] | None = None
) -> Pixels:
    """A frame with points [P, 2]; hidden ones [P] are rings. A point's number (default its row) gives its color."""
    colors = [figures.point_color(number) for number in (range(len(points)) if numbers is None else numbers)]
    return figures.tracks_over(frame, points.reshape(-1, 1, 2), colors, hidden)
