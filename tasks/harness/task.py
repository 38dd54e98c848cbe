"""The definition of a task: functions to open data, measure a backbone and draw, with config and metrics."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from dino_dense.config import schema
from dino_dense.report import Score
from tasks.harness.session import OpenedData, Session

if TYPE_CHECKING:
    import pandas as pd

    from dino_dense import Backbone, Metric, Picture

Config = TypeVar("Config")
Data = TypeVar("Data", bound=OpenedData)


@dataclass(frozen=True)
class Outcome:
    """The result of a measurement."""

    scores: tuple[Score, ...] = ()
    """If empty, the runner computes the means of `samples` (`mean_scores`)."""
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """Additional tables by file name without suffix; the runner writes each as CSV."""
    note: str = ""
    """Facts that a reader needs to interpret the number."""
    samples: pd.DataFrame | None = None
    """The table for paired comparisons of two checkpoints (`dino_dense.report.samples`), with a row for each sample.
    Columns: `sample` (unique name); `cluster` (video, original or landmark of dependent samples; optional; a pair of
    images has a `second cluster` too); and for each metric its values in its unit, with the score as their mean over
    the rows with a value."""
    to_draw: Any = None
    """Additional data for `draw`: features, masks, boxes."""
    pictures: tuple[Picture, ...] = ()
    """Image files in the results folder, added by the runner."""


def no_pictures(data: Any, outcome: Outcome, folder: Path) -> Sequence[Picture]:
    """The `draw` of a task without pictures."""
    return ()


@dataclass(frozen=True)
class Task(Generic[Config, Data]):
    """A way to measure a backbone, found by its module's name.

    The runner opens the data, claims the results folder, measures, computes means, draws, and writes the report. All
    processes open and measure; only the main process draws.
    """

    name: str
    """The module's name: `python -m tasks.NAME`."""
    summary: str
    """One line, for help texts and tables."""
    source: str
    """The paper or script of the protocol."""
    config: type[Config]
    """Frozen dataclass with a default and a docstring for each field."""
    metrics: tuple[Metric, ...]
    """Declared metrics; the first is the headline."""
    open: Callable[[Config], Data]
    """List and check the files of a config, without a backbone and without writing. Raises DataError or ValueError for
    unusable data or settings."""
    measure: Callable[[Backbone, Data, Config, Session], Outcome]
    """Measure the backbone on the data."""
    smoke: Config
    """A config for a run of seconds on the embedded data."""
    draw: Callable[[Data, Outcome, Path], Sequence[Picture]] = no_pictures
    """Write image files below a folder; the most important pictures come first."""
    needs_backbone: Callable[[Config], bool] = lambda config: True
    """Whether a run with this config uses a backbone."""
    measure_files: Callable[[Data, Config, Session], Outcome] | None = None
    """Replaces `measure` in runs without a backbone: scores existing files."""
    moved: Callable[[Sequence[str]], tuple[str, list[str]] | None] = lambda words: None
    """Command-line words -> the command that replaces this task for them, and its words; None for this task."""
    at_size: Callable[[Config, int, Backbone], Config] | None = None
    """The config with another side of the network's input, pixels, for `--sizes` (`sized_by`); None: this task cannot
    be swept over sizes."""
    fixed_layers: str = ""
    """Why the task reads no other layers than its own; "" if it reads those of `--layers`."""
    pieces: Callable[[Config, Backbone], frozenset[str]] = lambda config, backbone: frozenset()
    """Pieces of image features (`tasks.images.features`) that a run needs, so that tasks on a data set share a pass."""

    upsamples: bool = False
    """Whether it measures patch tokens on any grid, so that they may be upsampled (--upsampler)."""
    versions: Mapping[str, int] = field(default_factory=dict)
    """Versions of the code that makes its numbers, without the backbone's (`dino_dense.versions`); raise a version when
    a number changes."""

    def free_fields(self) -> tuple[str, ...]:
        """Fields that may differ in a comparison: fields that change no number, and paths (the data are compared)."""
        return tuple(sorted(schema.fields_of(self.config, "runtime") | schema.fields_of(self.config, "path")))


def sized_by(*names: str) -> Callable[[Any, int, Backbone], Any]:
    """`Task.at_size` for a config with a field that is the side of the network's input, pixels.

    Args:
        names: fields; the first that a config has set is changed, else the first.
    """

    def at_size(config: Any, size: int, backbone: Backbone) -> Any:
        used = next((name for name in names if getattr(config, name) is not None), names[0])
        return dataclasses.replace(config, **{used: size})

    return at_size


@dataclass(frozen=True)
class Command:
    """A command that only draws, found by its module's name."""

    name: str
    """The module's name: `python -m tasks.NAME`."""
    summary: str
    """One line, for help texts."""
    main: Callable[[Sequence[str] | None], int]
    """Parse the arguments (default: the process's), run, print. Returns the exit status."""


def mean_scores(samples: pd.DataFrame) -> tuple[Score, ...]:
    """A score for each metric column of `Outcome.samples`: the mean over rows with a value, the error over clusters."""
    from dino_dense.report.samples import NO_METRICS, score_samples

    return tuple(score_samples(samples, name) for name in samples.columns.drop(NO_METRICS, errors="ignore"))


def file_list_hash(root: Path, files: Sequence[Path], labels: Iterable[str | bytes] = ()) -> str:
    """SHA-256 over relative names and sizes: identifies the files of a measurement.

    Args:
        labels: what other files say of them, in order: points, names of a list.
    """
    digest = hashlib.sha256()
    for file in files:
        name = Path(os.path.relpath(file, root)).as_posix()  # a data set's images may lie beside its annotations
        try:
            size = file.stat().st_size
        except FileNotFoundError:
            raise FileNotFoundError(f"{file}: a broken link, or removed since it was listed. Restore it.") from None
        digest.update(f"{name}\0{size}\n".encode())
    for label in labels:
        digest.update(label.encode() if isinstance(label, str) else label)
    return digest.hexdigest()
