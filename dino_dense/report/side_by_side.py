"""Values and pictures of single samples for two or more checkpoints: the page lists the largest differences first."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dino_dense.report.compare import read_samples
from dino_dense.report.pictures import read_pictures
from dino_dense.report.record import Metric, Picture
from dino_dense.report.samples import CLUSTER, metric_terms
from dino_dense.report.table import labels

if TYPE_CHECKING:
    from dino_dense.report.table import Entry

MOST_ROWS = 2000  # samples of a measure in the page
MOST_PICTURES = 24  # of a measure in the page
SIDE, QUALITY = (560, 560), 72  # of these pictures: largest width and height, and of JPEG
RANKS = 8  # of each two checkpoints' largest differences, whose pictures are in the page
DECIMALS = 4
NAME_ENDS = " :,("  # follow a sample's name in the caption of its picture

Pictured = dict[str, Picture]
"""Name of a sample -> its first picture."""


@dataclass(frozen=True)
class SampleTable:
    """A measure's values of single samples, for the checkpoints that were measured in the same way."""

    label: str
    metric: Metric
    values: pd.DataFrame
    """[n, checkpoints] in the metric's unit, NaN where a sample has no value; index: the samples' names."""
    total: int
    """Samples measured; `values` may have those with the largest differences only."""
    sure: int
    """The largest differences of each two checkpoints, in either direction, of which none is left out."""
    pictures: Mapping[tuple[str, str], tuple[Entry, Picture]] = field(default_factory=dict)
    """(sample, checkpoint) -> the picture, for samples with a picture of two checkpoints or more."""


def sample_tables(entries: Sequence[Entry]) -> list[SampleTable]:
    """The measures with values of single samples of two checkpoints or more.

    The value of a sample of a mean of ratios (mIoU) is this mean over its own classes. A report without readable
    samples, or measured in another way than the first of its measure, is left out.
    """
    tables = [_sample_table([entry for entry in entries if entry.label == label]) for label in labels(entries)]
    return [table for table in tables if table is not None]


def _sample_table(entries: Sequence[Entry]) -> SampleTable | None:
    measured = [entry for entry in entries if entry.report.status == "ok" and entry.report.data.get("sha256")]
    read: list[tuple[Entry, pd.DataFrame]] = []
    for entry in measured:
        if entry.report.protocol() != measured[0].report.protocol():
            continue
        try:
            read.append((entry, read_samples(entry)))
        except (ValueError, OSError):  # the comparison's section says why
            continue
    for metric in measured[0].report.metrics if len(read) > 1 else ():
        known = {entry.checkpoint: _values(samples, metric) for entry, samples in read}
        kept = {name: values for name, values in known.items() if values is not None}
        if len(kept) > 1:
            values = pd.DataFrame(kept).dropna(thresh=2)
            chosen, sure = _largest(values)
            pictures = _pictures([(entry, samples) for entry, samples in read if entry.checkpoint in kept], chosen)
            return SampleTable(entries[0].label, metric, chosen, len(values), sure, pictures)
    return None


def _values(samples: pd.DataFrame, metric: Metric) -> pd.Series | None:
    """The metric of each sample; None without values of single samples."""
    terms = metric_terms(samples, metric.name)
    if terms is None:
        return None
    return pd.Series(np.where(terms.counted, terms.value(terms.rows), np.nan), samples.index)


def _pairs(values: pd.DataFrame) -> Iterator[tuple[str, str]]:
    return itertools.combinations(map(str, values.columns), 2)


def _largest(values: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The rows with the largest differences of each two checkpoints, both ways, and how many of each pair are sure."""
    if len(values) <= MOST_ROWS:
        return values, len(values)
    pairs = list(_pairs(values))
    sure = max(1, MOST_ROWS // (2 * len(pairs)))
    chosen = np.zeros(len(values), bool)
    for a, b in pairs:
        difference = (values[b] - values[a]).to_numpy()
        known = np.flatnonzero(~np.isnan(difference))
        order = known[np.argsort(difference[known], kind="stable")]
        chosen[order[:sure]] = chosen[order[-sure:]] = True
    return values[chosen], sure


def _pictures(
    read: Sequence[tuple[Entry, pd.DataFrame]], values: pd.DataFrame
) -> dict[tuple[str, str], tuple[Entry, Picture]]:
    """Pictures of the samples with the largest differences, where both checkpoints of a pair have one."""
    own = {entry.checkpoint: (entry, _pictured(entry, samples)) for entry, samples in read}
    ranked = [(pair, _ranked(values, pair, own)) for pair in _pairs(values)]
    chosen: dict[tuple[str, str], tuple[Entry, Picture]] = {}
    for rank, (pair, samples) in itertools.product(range(RANKS), ranked):
        if rank < len(samples) and len(chosen) + 2 <= MOST_PICTURES:
            for name in pair:
                entry, pictured = own[name]
                chosen[samples[rank], name] = entry, pictured[samples[rank]]
    return chosen


def _ranked(values: pd.DataFrame, pair: tuple[str, str], own: Mapping[str, tuple[Entry, Pictured]]) -> list[str]:
    """The samples with pictures of both checkpoints, the largest difference first."""
    both = [name for name in own[pair[0]][1] if name in own[pair[1]][1] and name in values.index]
    differences = (values.loc[both, pair[1]] - values.loc[both, pair[0]]).abs().dropna()
    return [str(name) for name in differences.sort_values(ascending=False, kind="stable").index]


def _pictured(entry: Entry, samples: pd.DataFrame) -> Pictured:
    """The pictures of a report by sample: a caption begins with the name of a sample, or of its cluster."""
    if not entry.report.pictures:
        return {}
    members: dict[str, list[str]] = {}
    for sample, cluster in zip(map(str, samples.index), map(str, samples[CLUSTER]), strict=True):
        members.setdefault(cluster, []).append(sample)
    known = dict.fromkeys([*map(str, samples.index), *members])
    own = set(map(str, samples.index))
    pictured: Pictured = {}
    for picture in entry.report.pictures:
        begins = [name for name in known if _is_of(picture.caption, name)]
        if begins:
            name = max(begins, key=len)
            for sample in [name] if name in own else members[name]:
                pictured.setdefault(sample, picture)
    return pictured


def _is_of(caption: str, name: str) -> bool:
    return caption.startswith(name) and caption[len(name) : len(name) + 1] in ("", *NAME_ENDS)


def as_data(table: SampleTable) -> dict[str, Any]:
    """The table with its pictures as JSON types, for the page's script."""
    samples, names = list(map(str, table.values.index)), list(map(str, table.values.columns))
    pictures: list[dict[str, Any]] = []
    places: dict[int, int] = {}
    shown: dict[int, dict[int, int]] = {}
    for (sample, name), (entry, picture) in table.pictures.items():
        if id(picture) not in places:
            (small,) = read_pictures(entry.folder, [picture], SIDE, QUALITY)
            if not small.source:  # unreadable
                continue
            places[id(picture)] = len(pictures)
            pictures.append({"source": small.source, "width": small.width, "height": small.height})
        shown.setdefault(samples.index(sample), {})[names.index(name)] = places[id(picture)]
    rows = table.values.round(DECIMALS).astype(object).where(table.values.notna(), None)
    return {
        "label": table.label,
        "metric": table.metric.name,
        "unit": table.metric.unit,
        "higher": table.metric.higher_is_better,
        "checkpoints": names,
        "samples": samples,
        "values": rows.to_numpy().tolist(),
        "total": table.total,
        "sure": table.sure,
        "pictures": pictures,
        "shown": shown,
    }
