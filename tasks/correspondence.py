"""Semantic correspondence: the same part in another image, by the most similar patch (PCK)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data import DataError
from data.images import image_size, read_rgb, read_upright
from data.keypoints import KeypointPair, Layout, load_pairs
from data.known_sets import keypoint_set
from data.sample.points import sample_pairs
from dino_dense import Metric, Picture
from dino_dense.backbone.grid import fit
from dino_dense.config import command_line
from dino_dense.config.schema import path, runtime, selects
from dino_dense.matching.protocol import ALPHAS, MatchProtocol
from dino_dense.versions import versions
from tasks.harness import figures
from tasks.harness.command import main
from tasks.harness.session import DataFacts, Session
from tasks.harness.task import Outcome, Task, file_list_hash, sized_by
from tasks.scores.keypoints import distances, hits

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from dino_dense import Backbone
    from dino_dense.arrays import Floats, Mask, Pixels

HEADLINE = 0.1
METRICS = (
    Metric(f"PCK@{HEADLINE}"),
    *(Metric(f"PCK@{alpha}") for alpha in ALPHAS if alpha != HEADLINE),
    Metric(f"point-PCK@{HEADLINE}"),
    Metric(f"class-PCK@{HEADLINE}"),
)
PICTURES = 6
LEVEL_NAMES = ("easy", "medium", "hard")


@dataclass(frozen=True)
class CorrespondenceConfig(MatchProtocol):
    """Which pairs, and every constant of the protocol"""

    data: str | None = path()
    """Folder of SPair-71k, AP-10K (as GeoAware-SC prepares it), PF-PASCAL or PF-WILLOW; without it, embedded pairs."""
    layout: Layout = selects("auto")
    """spair, ap10k, pfpascal, pfwillow, or auto: look."""
    split: str = selects("test")
    """Folder under PairAnnotation, or the beginning of the list's name: test, val, trn, test_cross_species, ..."""
    categories: tuple[str, ...] | None = selects(None)
    """Use only these categories: a,b,c."""
    max_pairs: int | None = selects(None)
    """Use at most this many pairs of each category, evenly spaced (Probe3D takes 200 at random)."""
    pair: tuple[str, str] | None = path()
    """Two images of your own, A B, in place of --data: points of A are searched for in B, and nothing is scored."""
    points: tuple[float, ...] | None = selects(None)
    """With --pair: points of A in pixels, x,y; repeat the option for further points."""
    max_memory: int = runtime(1024)
    """Memory for the features of images, MiB; images of pairs that do not fit are extracted again."""
    batch_size: int | None = runtime(None)
    """Images whose features are computed at once; without it, 1 on a CPU and 8 on a GPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_pairs", "max_memory", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}: expected 1 or more")
        if (self.pair is None) != (self.points is None):
            raise ValueError("pair and points belong together: give --pair A B and --points x,y")
        if self.points is not None and (len(self.points) % 2 or not self.points):
            raise ValueError(f"points are {self.points}: expected x and y of each")


class Pairs(NamedTuple):
    """The pairs that a config names."""

    items: list[KeypointPair]
    facts: DataFacts
    own: bool = False
    """Whether it is the user's own pair: it has no truth, and its images are turned upright."""


class _Measured(NamedTuple):
    """Predicted points of a pair, errors in multiples of the longer side of the box, and hits by alpha."""

    predicted: Floats
    errors: Floats
    hits: dict[float, Mask]


def measure(backbone: Backbone, pairs: Pairs, config: CorrespondenceConfig, session: Session) -> Outcome:
    """Find the points of each source image in its target image, and compare with where they are."""
    side = fit((config.image_size, config.image_size), backbone.patch_size, "nearest").size[0]
    most = _images_in_memory(backbone, side, config)
    chunks = session.share(list(_chunks(pairs.items, most)))
    shown = session.progress(chunks, config.rules, unit="group")
    results = session.collect(
        (index, _measure_chunk(backbone, chunk, pairs.own, side, config)) for index, chunk in shown
    )
    measured = [result for chunk in results for result in chunk]
    note = _note(config, side)
    matches = _matches(pairs, measured)
    if pairs.own:
        return Outcome(
            note=f"Not scored: your own pair has no truth. {note}", tables={"matches": matches}, to_draw=measured
        )
    samples = _samples(pairs.items, measured)
    from dino_dense.report.samples import score_samples

    return Outcome(
        scores=tuple(score_samples(samples, metric.name) for metric in METRICS),
        tables={
            "per_category": _per_category(pairs.items, measured),
            "by_variation": _by_variation(pairs.items, measured),
            "matches": matches,
        },
        note=note,
        samples=samples,
        to_draw=measured,
    )


def open_pairs(config: CorrespondenceConfig) -> Pairs:
    """The pairs that a config names; DataError if they cannot be used."""
    if config.pair is not None:
        return _own_pair(config)
    root = Path(config.data) if config.data else sample_pairs()
    every = load_pairs(root, config.layout, config.split, config.categories)
    items = every if config.max_pairs is None else _thinned(every, config.max_pairs)
    dataset = keypoint_set(items) if config.data else None
    name = dataset or (root.resolve().name if config.data else "embedded pairs (not SPair-71k)")
    if len(items) < len(every):
        name += f" (part: {len(items)} of {len(every)})"
    files = sorted({file for pair in items for file in (pair.source, pair.target)})
    description = DataFacts(
        name=name,
        root=str(root),
        n=len(items),
        unit="pairs",
        sha256=file_list_hash(root, files, labels=map(_annotation, items)),
        dataset=dataset,
    )
    return Pairs(items, description)


def _annotation(pair: KeypointPair) -> str:
    """All that a pair's files of annotations say of it."""
    return repr((pair.name, pair.category, pair.source_points, pair.target_points, pair.limit))


def _own_pair(config: CorrespondenceConfig) -> Pairs:
    assert config.pair is not None
    assert config.points is not None
    source, target = map(Path, config.pair)
    sizes = []
    for file in (source, target):
        image_size(file)  # says what is wrong with a file
        height, width = read_upright(file).shape[:2]
        sizes.append((height, width))
    points = tuple(zip(config.points[::2], config.points[1::2], strict=True))
    height, width = sizes[0]
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise DataError(
                f"{source}: point ({x:g}, {y:g}) is outside the image of {width}x{height} (width x height)."
            )
    ids = tuple(str(number) for number in range(len(points)))
    pair = KeypointPair("pair", "own", source, target, points, (), ids, sizes[0], sizes[1], 1.0)
    description = DataFacts(
        name=f"own pair {source.name}, {target.name}",
        root=str(source.parent),
        n=1,
        unit="pairs",
        sha256=file_list_hash(source.parent, [source, target]),
    )
    return Pairs([pair], description, own=True)


def _thinned(pairs: Sequence[KeypointPair], most: int) -> list[KeypointPair]:
    """At most so many pairs of each category, evenly spaced."""
    by_category: dict[str, list[KeypointPair]] = {}
    for pair in pairs:
        by_category.setdefault(pair.category, []).append(pair)
    return [rows[rank] for rows in by_category.values() for rank in figures.evenly_spaced(range(len(rows)), most)]


# --- Matching ----------------------------------------------------------------------------------------------


def _images_in_memory(backbone: Backbone, side: int, config: CorrespondenceConfig) -> int:
    cells = (side // backbone.patch_size) ** 2
    return max(2, config.max_memory * 2**20 // (4 * backbone.embed_dim * cells))


def _chunks(pairs: Sequence[KeypointPair], most: int) -> Iterator[list[KeypointPair]]:
    """Consecutive pairs of one category with at most so many images."""
    chunk: list[KeypointPair] = []
    images: set[Path] = set()
    for pair in pairs:
        more = images | {pair.source, pair.target}
        if chunk and (len(more) > most or pair.category != chunk[0].category):
            yield chunk
            chunk, more = [], {pair.source, pair.target}
        chunk.append(pair)
        images = more
    if chunk:
        yield chunk


def _measure_chunk(
    backbone: Backbone, chunk: Sequence[KeypointPair], own: bool, side: int, config: CorrespondenceConfig
) -> list[_Measured]:
    files = list(dict.fromkeys(file for pair in chunk for file in (pair.source, pair.target)))
    maps = dict(_features(backbone, files, own, side, config))
    return [_measure(maps[pair.source], maps[pair.target], pair, backbone.patch_size, config) for pair in chunk]


def _features(
    backbone: Backbone, files: Sequence[Path], own: bool, side: int, config: CorrespondenceConfig
) -> Iterator[tuple[Path, Tensor]]:
    """Patch features [D, g, g] of each image as a square."""
    import torch

    from dino_dense.matching.rules import as_square
    from dino_dense.objects.maps_ahead import default_batch, maps_ahead

    def read(file: Path) -> Pixels:
        rgb = read_upright(file) if own else np.asarray(read_rgb(file))
        return as_square(rgb, side, config.rules)

    ahead = maps_ahead(
        files,
        read,
        lambda square: torch.from_numpy(np.array(square)).permute(2, 0, 1),
        lambda batch: backbone.extract(batch).patches,
        config.batch_size or default_batch(backbone),
    )
    for file, _, features in ahead:
        yield file, features


def _measure(source: Tensor, target: Tensor, pair: KeypointPair, patch: int, config: CorrespondenceConfig) -> _Measured:
    from dino_dense.matching.rules import match

    matches = match(
        config.rules,
        (source, target),
        (pair.source_size, pair.target_size),
        np.array(pair.source_points, np.float64),
        np.array(pair.target_points, np.float64) if pair.target_points else None,
        pair.limit,
        patch=patch,
        soft=config.soft,
    )
    if matches.truth is None:
        return _Measured(matches.points, np.full(len(matches.points), np.nan), {})
    distance = distances(matches.predicted, matches.truth)
    strict = config.rules != "dift"
    right = {alpha: hits(distance, matches.limit, alpha, strict=strict) for alpha in ALPHAS}
    return _Measured(matches.points, distance / matches.limit, right)


# --- Tables ------------------------------------------------------------------------------------------------


def _samples(pairs: Sequence[KeypointPair], measured: Sequence[_Measured]) -> pd.DataFrame:
    """A row a pair: its share of right points by alpha, and hits and points of its category."""
    import pandas as pd

    from dino_dense.report.samples import CLUSTER, SECOND_CLUSTER, ratio_columns

    columns: dict[str, Any] = {
        "sample": _names(pairs),
        CLUSTER: [_image_name(pair.source) for pair in pairs],
        SECOND_CLUSTER: [_image_name(pair.target) for pair in pairs],
    }
    for alpha in ALPHAS:
        columns[f"PCK@{alpha}"] = [100 * float(result.hits[alpha].mean()) for result in measured]
    right = np.array([result.hits[HEADLINE].sum() for result in measured])
    count = np.array([len(result.predicted) for result in measured])
    categories = list(dict.fromkeys(pair.category for pair in pairs))
    member = np.array([[pair.category == category for category in categories] for pair in pairs])
    columns |= ratio_columns(f"point-PCK@{HEADLINE}", ["all"], right[:, None], count[:, None])
    columns |= ratio_columns(f"class-PCK@{HEADLINE}", categories, member * right[:, None], member * count[:, None])
    return pd.DataFrame(columns)


def _image_name(file: Path) -> str:
    return f"{file.parent.name}/{file.stem}"


def _names(pairs: Sequence[KeypointPair]) -> list[str]:
    """A name for each pair, its own where that is unique."""
    names = [f"{pair.category}/{pair.name}" for pair in pairs]
    return names if len(set(names)) == len(names) else [f"{name}#{rank}" for rank, name in enumerate(names)]


def _per_category(pairs: Sequence[KeypointPair], measured: Sequence[_Measured]) -> pd.DataFrame:
    """PCK per image and per point of each category, and of all, percent."""
    import pandas as pd

    names = ["all", *dict.fromkeys(pair.category for pair in pairs)]
    chosen = ([r for p, r in zip(pairs, measured, strict=True) if name in ("all", p.category)] for name in names)
    return pd.DataFrame([{"category": name, **_pck_row(rows)} for name, rows in zip(names, chosen, strict=True)])


def _by_variation(pairs: Sequence[KeypointPair], measured: Sequence[_Measured]) -> pd.DataFrame:
    """PCK by how much view and size differ, of each category and of all; empty where the annotations do not say."""
    import pandas as pd

    rows = []
    for kind in ("viewpoint", "scale"):
        for level, word in enumerate(LEVEL_NAMES):
            same = [(p, r) for p, r in zip(pairs, measured, strict=True) if getattr(p, kind) == level]
            for name in ("all", *dict.fromkeys(pair.category for pair, _ in same)):
                chosen = [result for pair, result in same if name in ("all", pair.category)]
                if chosen:
                    rows.append({"variation": kind, "level": word, "category": name, **_pck_row(chosen)})
    columns = ["variation", "level", "category", *_pck_row(measured[:1])]
    return pd.DataFrame(rows, columns=columns)


def _pck_row(rows: Sequence[_Measured]) -> dict[str, float]:
    values: dict[str, float] = {"pairs": len(rows), "points": sum(len(row.predicted) for row in rows)}
    for alpha in ALPHAS:
        right = [row.hits[alpha] for row in rows]
        values[f"per_image@{alpha}"] = 100 * float(np.mean([one.mean() for one in right]))
        values[f"per_point@{alpha}"] = 100 * float(np.concatenate(right).mean())
    return values


def _matches(pairs: Pairs, measured: Sequence[_Measured]) -> pd.DataFrame:
    """A row a point: where it is in the source, where it was found in the target, and the error."""
    import pandas as pd

    rows = []
    for name, pair, result in zip(_names(pairs.items), pairs.items, measured, strict=True):
        for index, (x, y) in enumerate(pair.source_points):
            row = {"pair": name, "point": pair.point_ids[index], "x": x, "y": y}
            row |= {"predicted_x": result.predicted[index, 0], "predicted_y": result.predicted[index, 1]}
            if not pairs.own:
                row |= {"error": result.errors[index], f"right@{HEADLINE}": bool(result.hits[HEADLINE][index])}
            rows.append(row)
    return pd.DataFrame(rows)


def _note(config: CorrespondenceConfig, side: int) -> str:
    return (
        f"Rules of {config.rules} at {side}x{side} pixels. PCK is the mean over pairs of each pair's share of right "
        "points; point-PCK is over all points; class-PCK is the mean over categories of that (Probe3D's recall)."
    )


# --- Pictures ----------------------------------------------------------------------------------------------


def draw(pairs: Pairs, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """Pairs with lines from each point to where it was found: green is right, red is wrong; worst and best first."""
    measured: Sequence[_Measured] = outcome.to_draw
    if pairs.own:
        order, captions = [0], ["your pair: each point and where it was found"]
    else:
        assert outcome.samples is not None
        values = outcome.samples[f"PCK@{HEADLINE}"]
        order = [int(str(label)) for label in figures.worst_and_best_first(values)[:PICTURES]]
        cases = {0: " (worst)", 1: " (best)"} if len(values) > 1 else {}
        captions = [
            f"{pairs.items[index].category}{cases.get(rank, '')}: PCK@{HEADLINE} {values[index]:.1f}; green is right"
            for rank, index in enumerate(order)
        ]
    pictures = []
    for index, caption in zip(order, captions, strict=True):
        pair, result = pairs.items[index], measured[index]
        images = [
            read_upright(file) if pairs.own else np.asarray(read_rgb(file)) for file in (pair.source, pair.target)
        ]
        right = None if pairs.own else result.hits[HEADLINE]
        file = folder / "matches" / f"{pair.category}_{pair.name}.jpg".replace("/", "_")
        figures.match_strip(file, images[0], images[1], np.array(pair.source_points), result.predicted, right)
        pictures.append(Picture(f"matches/{file.name}", caption))
    return tuple(pictures)


TASK = Task(
    name="correspondence",
    summary="Semantic correspondence of keypoints between two images (PCK).",
    source="Probe3D, arXiv 2404.08636; DIFT, arXiv 2306.03881; GeoAware-SC, arXiv 2311.17034; SPair-71k, 1908.10543.",
    config=CorrespondenceConfig,
    metrics=METRICS,
    open=open_pairs,
    measure=measure,
    draw=draw,
    at_size=sized_by("image_size"),
    upsamples=True,
    smoke=CorrespondenceConfig(image_size=192, max_pairs=2),
    versions=versions("matching", "keypoint scores"),
)

if __name__ == "__main__":
    command_line.run(lambda: main("correspondence"))
