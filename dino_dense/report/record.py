"""A result as a typed record: what was measured, on what, how, and what others published."""

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
OFFICIAL = ("timm:", "hf-hub:timm/", "hf_hub:timm/")
"""How a checkpoint is called that timm itself distributes, so that its name is true."""
DIGEST = re.compile(r"[0-9a-f]{8,64}")
SHOWN_DIFFERENCES = 3


@dataclass(frozen=True)
class Metric:
    """A number that a task declares it will return."""

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
    """How many samples (objects, images) the value is a mean over."""
    stderr: float | None = None
    """Standard error of that mean, in the metric's unit; None where the metric is no mean over samples."""


@dataclass(frozen=True)
class Picture:
    """An image file that shows what a number means."""

    file: str
    """Path relative to the folder of the report, with forward slashes (JPEG or PNG)."""
    caption: str
    """One line: what is seen, and of which sample."""


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
    """What says that a network is this checkpoint: a name of timm's, or the SHA-256 of its file or of its weights, or
    the first eight hexadecimal digits or more."""
    differs: str = ""
    """What of the protocol is not known, or not as in the paper; "" where all of it is the paper's."""

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
    """What a reader must know to read the number: embedded data, no ground truth, ..."""
    config: Mapping[str, Any] = field(default_factory=dict)
    checkpoint: Mapping[str, Any] = field(default_factory=dict)
    """spec, name, sha256, architecture facts, step where known."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """name, root, n, unit of n, sha256 of the file list, dataset (the published one this is, or null)."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_mib: float = 0.0
    pictures: tuple[Picture, ...] = ()
    """Beside this report; the first ones say most."""
    samples: str = ""
    """File beside this report with the values of single samples (see `tasks.Outcome.samples`); "" if none."""
    free: tuple[str, ...] = ()
    """Fields of the config that change no number, and paths: comparisons let them differ."""
    presets: tuple[str, ...] = ()
    """The protocols `configs/protocols/TASK_PRESET.yaml` whose constants the config has."""
    schema: int = SCHEMA_VERSION

    def published(self, metric: str) -> Published | None:
        """The published number for this metric and checkpoint, on the data measured here or on the only data it has."""
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
        spec = str(self.checkpoint.get("spec"))
        if spec.startswith(OFFICIAL) and self.checkpoint.get("name") in checkpoints:
            return True
        digests = [str(self.checkpoint.get(key) or "") for key in ("sha256", "weights_sha256")]
        prefixes = tuple(known for known in checkpoints if DIGEST.fullmatch(known))
        return any(digest.startswith(prefixes) for digest in digests if digest)

    def is_on(self, published: Published) -> bool:
        """Whether this was measured on the same data under the same protocol as a published number."""
        return not self.differences(published)

    def differences(self, published: Published) -> tuple[str, ...]:
        """What keeps this number from being compared with a published one of its checkpoint; () where nothing does.

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
        """The config, without what changes no number and the place of the data, which `data` identifies."""
        return {key: value for key, value in self.config.items() if key not in {*self.free, "data"}}

    def protocol(self) -> str:
        """Task, data and settings: equal for two reports whose numbers may be compared."""
        return json.dumps([self.task, self.data.get("sha256"), _plain(self.settings())], sort_keys=True)

    def to_frame(self) -> pd.DataFrame:
        """One row a score (one row in all for a failure), with provenance and the published number."""
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
        """The columns a person reads, empty ones left out, numbers to two places."""
        columns = ["metric", "value", "unit", "stderr", "n", "published", "difference", "differs"]
        columns += ["published_on", "source"]
        frame = self.to_frame()
        frame = frame[[name for name in columns if name in frame and frame[name].notna().any()]]
        return frame.map(lambda x: x if not isinstance(x, float) else "" if math.isnan(x) else f"{x:.2f}")

    def to_json(self) -> str:
        """The whole record; not-a-number becomes null, since JSON has none."""
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
        """A page for people: the table, then what is needed to repeat it."""
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
        """Write `results.csv`, `report.json` and `report.md` into a folder, each whole or not at all."""
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "results.csv", self.to_frame().to_csv(index=False))
        write_text(out / "report.json", self.to_json() + "\n")
        write_text(out / "report.md", self.to_markdown())


def beside(folder: Path, name: str) -> Path:
    """The file that a report in this folder names.

    Raises:
        ValueError: the name leads out of the folder: a report is not to be trusted with other files.
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
    """Only what JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)
