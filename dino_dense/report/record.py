"""A result as a typed record: metrics, checkpoint, data, config, and published numbers."""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from dino_dense.config.presets import changed_fields
from dino_dense.config.schema import with_new_names
from dino_dense.files import write_text

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
DIGEST = re.compile(r"[0-9a-f]{8,64}")
SHOWN_DIFFERENCES = 3


@dataclass(frozen=True)
class Metric:
    """A metric that a task declares."""

    name: str
    unit: str = "%"
    higher_is_better: bool = True
    low: float = 0.0
    """Smallest possible value, in the unit."""
    high: float = 100.0
    """Largest possible value, in the unit."""


@dataclass(frozen=True)
class Score:
    """A measured metric."""

    metric: str
    value: float
    n: int
    """Number of samples (objects, images) of the mean."""
    stderr: float | None = None
    """Standard error of the mean, in the metric's unit; None for a metric that is no mean over samples."""


@dataclass(frozen=True)
class Picture:
    """An image file of a report."""

    file: str
    """Path relative to the folder of the report, with forward slashes (JPEG or PNG)."""
    caption: str
    """One line on the content and its sample."""


@dataclass(frozen=True)
class Published:
    """A number from a paper, for one checkpoint on one data set under one protocol (`published.yaml`)."""

    task: str
    metric: str
    dataset: str
    protocol: str
    value: float
    source: str
    checkpoints: tuple[str, ...]
    """Identifiers of the checkpoint: its name in timm, or the SHA-256 of its file or weights (eight digits or more)."""
    differs: str = ""
    """Parts of the protocol that are unknown, or not as in the source; "" if there are none."""

    @property
    def benchmark(self) -> str:
        """Data set and protocol, for tables."""
        return f"{self.dataset}, preset {self.protocol}"


@functools.cache
def published_numbers() -> tuple[Published, ...]:
    """The registry of published numbers."""
    text = importlib.resources.files("dino_dense").joinpath("published.yaml").read_text()
    registry = yaml.safe_load(text)
    aliases = registry["checkpoints"]
    return tuple(
        Published(
            task=entry["task"],
            metric=metric,
            dataset=entry["dataset"],
            protocol=entry["protocol"],
            value=float(value),
            source=entry["source"],
            checkpoints=tuple(map(str, aliases[checkpoint])),
            differs=entry.get("differs", ""),
        )
        for entry in registry["numbers"]
        for checkpoint, values in entry["values"].items()
        for metric, value in values.items()
    )


@dataclass(frozen=True)
class Report:
    """One task on one checkpoint."""

    task: str
    status: Literal["ok", "failed"]
    metrics: tuple[Metric, ...] = ()
    scores: tuple[Score, ...] = ()
    error: str = ""
    note: str = ""
    """Facts that a reader needs to interpret the number: embedded data, no ground truth, ..."""
    config: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    """spec, name, sha256, architecture, step if known; official: whether timm itself distributes it."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """name, root, n, unit of n, sha256 of the file list, dataset (name of the published data set, or null)."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_mib: float = 0.0
    pictures: tuple[Picture, ...] = ()
    """Pictures in the report's folder, the most important first."""
    samples: str = ""
    """File in the report's folder with the values of single samples (see `tasks.Outcome.samples`); "" if none."""
    free: tuple[str, ...] = ()
    """Config fields that may differ in a comparison: they change no number, or are paths."""
    presets: tuple[str, ...] = ()
    """The protocols `configs/protocols/TASK_PRESET.yaml` that match the config."""
    schema: int = SCHEMA_VERSION

    def published(self, metric: str) -> Published | None:
        """The published number for this metric and checkpoint: on the same data, else the only published number."""
        candidates = [
            entry
            for entry in published_numbers()
            if entry.task == self.task and entry.metric == metric and self._is_of(entry.checkpoints)
        ]
        same = [
            entry
            for entry in candidates
            if entry.dataset == self.data.get("dataset") and entry.protocol in self.presets
        ]
        return next(iter(same or (candidates if len(candidates) == 1 else [])), None)

    def _is_of(self, checkpoints: Sequence[str]) -> bool:
        """Whether these weights are a published checkpoint: by digest, or by name where the hub's own entry was loaded.

        A file's or another repository's metadata may repeat the name of the network that it was fine-tuned from.
        """
        if self.checkpoint.get("official") and self.checkpoint.get("name") in checkpoints:
            return True
        digests = [str(self.checkpoint.get(key) or "") for key in ("sha256", "weights_sha256")]
        prefixes = tuple(known for known in checkpoints if DIGEST.fullmatch(known))
        return any(digest.startswith(prefixes) for digest in digests if digest)

    def is_on(self, published: Published) -> bool:
        """Whether data and protocol are those of a published number."""
        return not self.differences(published)

    def differences(self, published: Published) -> tuple[str, ...]:
        """The differences that prevent a comparison with a published number of this checkpoint; () if there are none.

        "data", the fields of the config, "features" (other layers than the last, or no norm), and what is not known of
        the published protocol.
        """
        data = ("data",) if published.dataset != self.data.get("dataset") else ()
        fields: tuple[str, ...] = ()
        if published.protocol not in self.presets:
            fields = changed_fields(self.task, published.protocol, self.config) or ("protocol",)
        features = ("features",) if "features" in self.checkpoint else ()
        return (*data, *fields, *features, *((published.differs,) if published.differs else ()))

    def settings(self) -> dict[str, Any]:
        """The config without fields that change no number and paths of data (which `data` identifies)."""
        return {key: value for key, value in self.config.items() if key not in {*self.free, "data"}}

    def protocol(self) -> str:
        """Task, data and settings as a key: equal for two comparable reports."""
        return json.dumps([self.task, self.data.get("sha256"), _plain(self.settings())], sort_keys=True)

    def to_frame(self) -> pd.DataFrame:
        """A row for each score (one row for a failure), with provenance and the published number."""
        import pandas as pd

        shared = {
            "task": self.task,
            "checkpoint": self.checkpoint.get("spec", ""),
            "data": self.data.get("name", ""),
        }
        tail = {
            "status": self.status,
            "error": self.error,
            "note": self.note,
            "seconds": round(self.seconds, 2),
            "sha256": self.checkpoint.get("sha256", ""),
        }
        if not self.scores:
            return pd.DataFrame([{**shared, **tail}])
        units = {metric.name: metric for metric in self.metrics}
        return pd.DataFrame([{**shared, **self._score_row(s, units[s.metric]), **tail} for s in self.scores])

    def _score_row(self, score: Score, metric: Metric) -> dict[str, Any]:
        row: dict[str, Any] = {
            "metric": score.metric,
            "value": score.value,
            "unit": metric.unit,
            "stderr": score.stderr,
            "n": score.n,
            "higher_is_better": metric.higher_is_better,
            "published": None,
            "difference": None,
            "differs": None,
            "published_on": None,
            "source": None,
        }
        known = self.published(score.metric)
        if known is not None:
            row |= {"published": known.value, "published_on": known.benchmark, "source": known.source}
            if differs := self.differences(known):
                row["differs"] = _few(differs)
            else:
                row["difference"] = score.value - known.value
        return row

    def readable(self) -> pd.DataFrame:
        """The non-empty columns for display, numbers with two decimal places."""
        columns = ["metric", "value", "unit", "stderr", "n", "published", "difference", "differs"]
        columns += ["published_on", "source"]
        frame = self.to_frame()
        frame = frame[[name for name in columns if name in frame and frame[name].notna().any()]]
        return frame.map(lambda x: x if not isinstance(x, float) else "" if math.isnan(x) else f"{x:.2f}")

    def to_json(self) -> str:
        """The whole record as JSON; NaN becomes null."""
        return json.dumps(_plain(asdict(self)), indent=2, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Report:
        """The inverse of `to_json`.

        Raises:
            ValueError: the text was written by a later version.
        """
        record = json.loads(text)
        if record.get("schema", 0) > SCHEMA_VERSION:
            raise ValueError(f"report schema {record['schema']}; this version reads up to {SCHEMA_VERSION}.")
        record["config"] = with_new_names(record.get("config", {}))
        record["metrics"] = tuple(Metric(**metric) for metric in record["metrics"])
        record["scores"] = tuple(
            Score(**{**score, "value": math.nan if score["value"] is None else score["value"]})
            for score in record["scores"]
        )
        record["pictures"] = tuple(Picture(**picture) for picture in record.get("pictures", ()))
        record |= {name: tuple(record.get(name, ())) for name in ("free", "presets")}
        known = {item.name for item in fields(Report)}
        return Report(**{name: value for name, value in record.items() if name in known})

    def to_markdown(self) -> str:
        """A readable page: the table, then all that is needed to repeat the run."""
        title = f"# {self.task} · {self.checkpoint.get('spec', '')}"
        lines = [title, ""]
        if self.status == "failed":
            lines += [f"**Failed:** {self.error}", ""]
        if self.note:
            lines += [f"**Note:** {self.note}", ""]
        if self.scores:
            lines += [self.readable().to_markdown(index=False, disable_numparse=True), ""]
        for heading, record in (
            ("Checkpoint", self.checkpoint),
            ("Data", self.data),
            ("Config", self.config),
            ("Environment", {**self.environment, "seconds": round(self.seconds, 2)}),
        ):
            rows = [f"| {key} | {_cell(value)} |" for key, value in record.items()]
            lines += [f"## {heading}", "", "| | |", "|---|---|", *rows, ""]
        return "\n".join(lines)

    def write(self, out: Path) -> None:
        """Write `results.csv`, `report.json` and `report.md` into a folder, each atomically."""
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "results.csv", self.to_frame().to_csv(index=False))
        write_text(out / "report.json", self.to_json() + "\n")
        write_text(out / "report.md", self.to_markdown())


def beside(folder: Path, name: str) -> Path:
    """The file with this name in a report's folder.

    Raises:
        ValueError: the name leads out of the folder; reports are not trusted.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{folder}: the report names {name!r}, expected a file in its own folder.")
    return path


def _few(words: Sequence[str]) -> str:
    """The first words, and how many more there are."""
    more = len(words) - SHOWN_DIFFERENCES
    return ", ".join(words[:SHOWN_DIFFERENCES]) + (f" and {more} more" if more > 0 else "")


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def _plain(value: Any) -> Any:
    """A value with JSON types only."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
