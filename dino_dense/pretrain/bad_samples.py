"""Unreadable pictures: replaced, listed, and counted."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from dino_dense.files import write_text
from dino_dense.pretrain.options import SHARE, Options, Ranges

BAD_SAMPLES_FILE = "bad_samples.csv"
FIELDS = ("step", "sample", "replaced_by", "reason")


@dataclass(frozen=True)
class BadSampleOptions(Options):
    """Unreadable pictures"""

    on_bad_sample: Literal["skip", "raise"] = "skip"
    """For an unreadable picture: skip = replace it in the batch by a random other picture (drawn from the seed) and
    list it in bad_samples.csv; raise = stop. (not in main_dino)"""
    max_bad_samples: float = 0.01
    """Stop if more than this share of the images is bad. (not in main_dino)"""

    RANGES: ClassVar[Ranges] = {"max_bad_samples": SHARE}


class BadSample(NamedTuple):
    """An unreadable image, and its replacement in the batch."""

    image: int
    """Index into the source."""
    replaced_by: int
    reason: str


class BadSamplesError(ValueError):
    """More bad samples than the limit of the run."""


class BadSamples:
    """RUN/bad_samples.csv: each bad sample once, with the first step that read it.

    Args:
        run: the run folder.
        start_step: optimizer steps already done; later rows of an earlier part of the run are dropped.
        n_images: number of images in the source.
        most: largest share of bad images.
        writes: whether this process writes the file.
    """

    def __init__(self, run: Path, start_step: int, n_images: int, most: float, *, writes: bool) -> None:
        self.writes = writes
        self.path, self.n_images, self.most = run / BAD_SAMPLES_FILE, n_images, most
        self.rows: dict[str, Mapping[str, Any]] = {}
        if self.path.is_file():
            with self.path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["step"]) <= start_step]
            self.rows = {row["sample"]: row for row in rows}
            self._write()

    def add(self, rows: Sequence[tuple[int, str, str, str]]) -> str | None:
        """Add the bad samples since the last call, as rows of FIELDS. Returns a warning if there are new ones.

        Raises:
            BadSamplesError: too many images are bad.
        """
        new = [dict(zip(FIELDS, row, strict=True)) for row in sorted(rows) if row[1] not in self.rows]
        if not new:
            return None
        for row in new:
            self.rows.setdefault(str(row["sample"]), row)
        self._write()
        count = f"{len(self.rows)} of {self.n_images} images are bad"
        if len(self.rows) > self.most * self.n_images:
            raise BadSamplesError(
                f"{self.path}: {count}, more than {self.most:.1%} (--max-bad-samples); the last is "
                f"{new[-1]['sample']}: {new[-1]['reason']} Repair or remove them, or raise the limit, then resume."
            )
        return f"WARNING: {count} and replaced ({self.path}); the last: {new[-1]['reason']}"

    def _write(self) -> None:
        if not self.writes:
            return
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, FIELDS)
        writer.writeheader()
        writer.writerows(self.rows.values())
        write_text(self.path, text.getvalue())
