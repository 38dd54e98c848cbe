"""A task is a value: open the data, measure a backbone on them, draw; with its config and its metrics."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
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
    """Without any, the runner takes the means of `samples` (`mean_scores`)."""
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    """Further tables by file name without ending; the runner writes each as CSV."""
    note: str = ""
    """What a reader must know to read the number."""
    samples: pd.DataFrame | None = None
    """What paired comparisons of two checkpoints draw from (`dino_dense.report.samples`): a row a sample, its unique
    name in `sample`; in `cluster` the video, original or landmark that it was drawn with, where there is one; a column
    a metric, named as the metric and in its unit, whose mean over the rows with a value is that metric's score."""
    to_draw: Any = None
    """For `draw`, beside the tables: features, masks, boxes."""
    pictures: tuple[Picture, ...] = ()
    """Image files of the results folder, added by the runner."""


def no_pictures(data: Any, outcome: Outcome, folder: Path) -> Sequence[Picture]:
    """Of a task that draws nothing."""
    return ()


@dataclass(frozen=True)
class Task(Generic[Config, Data]):
    """One way to measure a backbone: a value, found by its module's name.

    The runner opens the data, claims the results folder, measures, takes means, draws, and writes the report. All
    processes open and measure; the main one alone draws.
    """

    name: str
    """The module's name: `python -m tasks.NAME`."""
    summary: str
    """One line, for help texts and tables."""
    source: str
    """The paper or script whose protocol this is."""
    config: type[Config]
    """Frozen dataclass, every field defaulted and documented."""
    metrics: tuple[Metric, ...]
    """Declared metrics; the first is the headline."""
    open: Callable[[Config], Data]
    """List and check the files that a config names: without a backbone, and writing nothing. DataError or ValueError
    for what cannot be used."""
    measure: Callable[[Backbone, Data, Config, Session], Outcome]
    """The science."""
    smoke: Config
    """A config that takes seconds on the embedded data."""
    draw: Callable[[Data, Outcome, Path], Sequence[Picture]] = no_pictures
    """Write image files below a folder; the first pictures say most."""
    needs_backbone: Callable[[Config], bool] = lambda config: True
    """Whether a run with this config uses a backbone at all."""
    measure_files: Callable[[Data, Config, Session], Outcome] | None = None
    """In place of `measure` where no backbone is used: score what others made."""
    moved: Callable[[Sequence[str]], tuple[str, list[str]] | None] = lambda words: None
    """Of the words of a command line: the command of ours that does this now, and its words; None for this task."""
    pieces: Callable[[Config, Backbone], frozenset[str]] = lambda config, backbone: frozenset()
    """Pieces of image features (`_features`) that a run asks for, so that tasks on one data set share one pass."""

    versions: Mapping[str, int] = field(default_factory=dict)
    """Of all that makes its numbers but the backbone; each goes up when a number changes (`dino_dense.versions`)."""

    def free_fields(self) -> tuple[str, ...]:
        """Fields that comparisons let differ: those that change no number, and paths, whose files the data name."""
        return tuple(sorted(schema.fields_of(self.config, "runtime") | schema.fields_of(self.config, "path")))


@dataclass(frozen=True)
class Command:
    """A command that draws and measures nothing: a value, found by its module's name."""

    name: str
    """The module's name: `python -m tasks.NAME`."""
    summary: str
    """One line, for help texts."""
    main: Callable[[Sequence[str] | None], int]
    """Parse the arguments (those of the process without), run, print. The exit status."""


def mean_scores(samples: pd.DataFrame) -> tuple[Score, ...]:
    """A score a metric column of an `Outcome.samples`: the mean over rows with a value, its error over clusters."""
    from dino_dense.report.samples import score_samples

    return tuple(score_samples(samples, name) for name in samples.columns.drop(["sample", "cluster"], errors="ignore"))


def file_list_hash(root: Path, files: Sequence[Path]) -> str:
    """SHA-256 over relative names and sizes: says which files a number was measured on."""
    digest = hashlib.sha256()
    for file in files:
        name = Path(os.path.relpath(file, root)).as_posix()  # a data set's images may lie beside its annotations
        try:
            size = file.stat().st_size
        except FileNotFoundError:
            raise FileNotFoundError(f"{file}: a link to nowhere, or gone since it was listed. Restore it.") from None
        digest.update(f"{name}\0{size}\n".encode())
    return digest.hexdigest()
