"""Image retrieval by cosine similarity of frozen class tokens: revisited Oxford and Paris, or any class folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from data import DataError
from data.images import VAL_FOLDERS, class_folders, read_rgb, split_folder
from data.revisited import Revisited, is_revisited, load_revisited
from data.sample import sample_data
from dino_dense import Picture
from dino_dense.config import command_line
from dino_dense.config.schema import constant, idle_fields, path, runtime, selects
from dino_dense.versions import versions
from tasks.harness import figures
from tasks.harness.command import main
from tasks.harness.session import DataFacts, Session
from tasks.harness.task import Outcome, Task, file_list_hash
from tasks.images.options import ImageFeatureOptions
from tasks.scores.retrieval import METRICS, Indices, first_relatives, positive_ranks, query_scores, rankings

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from dino_dense import Backbone

HEADLINE = METRICS[0].name
STRIPS, STRIP_RESULTS = 6, 5  # number of pictures, and of results in each
# Positive labels and ignored labels of each protocol (arXiv 1803.11285, sec. 3.3).
DIFFICULTIES = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}
PUBLISHED = {"roxford5k": "Revisited Oxford", "rparis6k": "Revisited Paris"}


@dataclass(frozen=True)
class RetrievalConfig(ImageFeatureOptions):
    """Images and descriptors"""

    data: str | None = path()
    """Folder with gnd_*.pkl and jpg/ (revisited Oxford or Paris), or with images by class; without it, the
    embedded set."""
    layout: Literal["auto", "revisited", "classes"] = selects("auto")
    """auto: revisited if there is a gnd_*.pkl, else classes."""
    difficulty: Literal["easy", "medium", "hard"] = selects("medium", layout="revisited")
    """Protocol of the scores (revisited); the table has all three."""
    image_size: int = constant(224, layout="revisited")
    """Longest side of the revisited images, pixels, never enlarged (eval_image_retrieval.py --imsize; 512 for
    Paris)."""
    scales: tuple[float, ...] = constant((1.0,), layout="revisited")
    """Class tokens of the revisited images are summed over these; 1,0.70711,0.5 for Paris (--multiscale)."""
    crop_queries: bool = constant(False, layout="revisited")
    """Crop the revisited queries to the landmark, as its authors do (DINO does not)."""
    split: str = selects("auto", layout="classes")
    """Sub-folder of the class folders; auto: val or test if it exists, else the folder itself."""
    batch_size: int = runtime(64)
    """Images of one size extracted at once; does not change the result."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scales or min(self.scales) <= 0 or max(self.scales) > 4:
            raise ValueError(f"scales are {self.scales}: expected one or more, above 0 and at most 4.")
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}: expected 1 pixel or more.")


@dataclass(frozen=True)
class Search:
    """Queries, the database, and the relevant images of each query."""

    facts: DataFacts
    queries: list[Path]
    database: list[Path]
    names: list[str]
    groups: dict[str, Callable[[int], tuple[Indices, Indices]]]
    """Name of a protocol -> function from the number of a query to its positives and junk (database indices)."""
    headline: str
    """The protocol that the scores are means of."""
    classes: list[str] | None = None
    """Class of each query."""
    landmarks: Revisited | None = None
    """Ground truth of the layout revisited, else None."""


def open_search(config: RetrievalConfig) -> Search:
    """Open the queries and images of a config.

    Raises:
        DataError, OSError: they are unusable.
        ValueError: an option is set that does not apply to these images.
    """
    root = Path(config.data) if config.data else sample_data().images
    if _layout(config, root) == "revisited":
        return _revisited_search(load_revisited(root), config)
    return class_search(root, config)


def measure(backbone: Backbone, search: Search, config: RetrievalConfig, session: Session) -> Outcome:
    """Describe queries and database, rank, and score all protocols of the data."""
    if search.landmarks is not None:
        queries, database = _describe_revisited(backbone, search.landmarks, config, session)
    else:
        queries = database = _describe_classes(backbone, search.database, config, session)
    samples, nearest = _score(queries.to(backbone.device), database.to(backbone.device), search, session)
    headline = samples[search.headline]
    unanswered = int(headline[HEADLINE].isna().sum())
    note = f"Protocol: {search.headline}; {len(headline)} queries, {len(search.database)} images to find them in."
    if unanswered:
        note += f" {unanswered} queries have no positive and are left out."
    return Outcome(
        tables=_tables(samples, search),
        note=note,
        samples=headline,
        to_draw=nearest,
    )


# --- The two layouts ---------------------------------------------------------------------------------------


def _layout(config: RetrievalConfig, root: Path) -> str:
    """The layout; ValueError for options that it would ignore."""
    layout = config.layout
    if layout == "auto":
        layout = "revisited" if is_revisited(root) else "classes"
    if idle := idle_fields(config, layout):
        raise ValueError(f"{root}: is read as {layout}, where {', '.join(idle)} mean nothing. Leave them out.")
    return layout


def _revisited_search(landmarks: Revisited, config: RetrievalConfig) -> Search:
    names = [path.stem for path in landmarks.queries]
    doubled = [name if names.count(name) == 1 else f"{name} ({index})" for index, name in enumerate(names)]
    files = [landmarks.ground_truth, *landmarks.database, *landmarks.queries]
    description = DataFacts(
        name=landmarks.name,
        root=str(landmarks.root),
        n=len(landmarks.queries),
        unit="queries",
        sha256=file_list_hash(landmarks.root, files),
        dataset=published_dataset(landmarks, config),
    )
    groups = {name: _relevance(landmarks, *labels) for name, labels in DIFFICULTIES.items()}
    search = Search(
        description, landmarks.queries, landmarks.database, doubled, groups, config.difficulty, landmarks=landmarks
    )
    if not any(len(groups[config.difficulty](query)[0]) for query in range(len(names))):
        raise DataError(
            f"{landmarks.ground_truth}: no query has an answer that counts as {config.difficulty}. Choose --difficulty."
        )
    return search


def _relevance(
    landmarks: Revisited, positive: Sequence[str], junk: Sequence[str]
) -> Callable[[int], tuple[Indices, Indices]]:
    def of_query(query: int) -> tuple[Indices, Indices]:
        labels = landmarks.labels[query]
        right, ignored = (np.concatenate([labels[name] for name in names]) for names in (positive, junk))
        return right, ignored

    return of_query


def published_dataset(landmarks: Revisited, config: RetrievalConfig) -> str | None:
    """Name of the published set and difficulty, if the set is complete."""
    return f"{PUBLISHED[landmarks.name]}, {config.difficulty}" if landmarks.is_complete else None


def class_search(root: Path, config: RetrievalConfig) -> Search:
    """Every image queries all others; images of its class are relevant."""
    evaluation = split_folder(root, VAL_FOLDERS) if root.is_dir() else None
    split = (evaluation.name if evaluation else "") if config.split == "auto" else config.split
    images = class_folders(root / split)
    labels = np.array(images.labels)
    members = [np.flatnonzero(labels == label) for label in range(len(images.class_names))]
    if max(map(len, members)) < 2:
        raise DataError(f"{root / split}: one image in each class, so no query has an answer. Expected two or more.")

    def of_query(query: int) -> tuple[Indices, Indices]:
        same = members[labels[query]]
        return same[same != query], np.array([query])

    description = DataFacts(
        name=(root / split).resolve().name if config.data else "embedded images",
        root=str(root),
        n=len(images.paths),
        unit="queries",
        sha256=file_list_hash(root, images.paths),
    )
    names = [path.relative_to(root).as_posix() for path in images.paths]
    classes = [images.class_names[label] for label in images.labels]
    protocol = "leave one out"
    return Search(description, images.paths, images.paths, names, {protocol: of_query}, protocol, classes)


# --- Describing --------------------------------------------------------------------------------------------


def _describe_revisited(
    backbone: Backbone, landmarks: Revisited, config: RetrievalConfig, session: Session
) -> tuple[Tensor, Tensor]:
    """Queries [Q, C] and database [N, C]"""
    from tasks.images.descriptors import Thumbnails, describe_all, multi_scale_cls

    least = int(np.ceil(backbone.patch_size / min(1.0, *config.scales)))
    boxes = landmarks.boxes if config.crop_queries else None
    queries, database = (
        describe_all(
            Thumbnails(paths, config.image_size, cut, least),
            len(paths),
            lambda images: multi_scale_cls(backbone, images, config.scales),
            session=session,
            batch_size=config.batch_size,
            workers=config.workers,
            label=label,
            names=paths,
        )
        for label, paths, cut in (("queries", landmarks.queries, boxes), ("database", landmarks.database, None))
    )
    return queries, database


def _describe_classes(backbone: Backbone, paths: Sequence[Path], config: RetrievalConfig, session: Session) -> Tensor:
    """[N, C]"""
    from tasks.images.features import CLS, square_features

    return square_features(backbone, paths, config, session, batch_size=config.batch_size)[CLS]


# --- Scoring -----------------------------------------------------------------------------------------------


def _score(
    queries: Tensor, database: Tensor, search: Search, session: Session
) -> tuple[dict[str, pd.DataFrame], list[Indices]]:
    """For each protocol a table with a row for each query; and the first results of each query in the headline's."""
    import pandas as pd

    rows: dict[str, list[dict[str, float]]] = {name: [] for name in search.groups}
    nearest = []
    ranked = rankings(queries, database)
    for query, order in enumerate(session.progress(ranked, "ranking", unit="query", total=len(queries))):
        for name, relevance in search.groups.items():
            positive, junk = relevance(query)
            rows[name].append(query_scores(positive_ranks(order, positive, junk, len(database)), len(positive)))
        nearest.append(_first(order, search.groups[search.headline](query)[1]))
    known = {"sample": search.names, "cluster": search.classes or _landmarks(search)}
    frames = {name: pd.DataFrame({**known, **pd.DataFrame(query_rows)}) for name, query_rows in rows.items()}
    return frames, nearest


def _landmarks(search: Search) -> list[str]:
    """For each query the first query of its group; queries that share a positive in any protocol form a group."""
    count = len(search.names)
    positives = [np.concatenate([of(query)[0] for of in search.groups.values()]) for query in range(count)]
    return [search.names[first] for first in first_relatives(positives, len(search.database))]


def _first(order: Indices, junk: Indices) -> Indices:
    """The first results that are not junk."""
    head = order[: STRIP_RESULTS + len(junk)]
    return head[~np.isin(head, junk)][:STRIP_RESULTS]  # a copy, since a view would keep the whole order in memory


def _tables(samples: dict[str, pd.DataFrame], search: Search) -> dict[str, pd.DataFrame]:
    """Means for each protocol, and for each class if there are classes."""
    import pandas as pd

    rows = [
        {
            "protocol": name,
            "queries": int(frame[HEADLINE].notna().sum()),
            **frame.drop(columns=["sample", "cluster"]).mean(),
        }
        for name, frame in samples.items()
    ]
    tables = {"retrieval": pd.DataFrame(rows)}
    if search.classes is not None:
        frame = samples[search.headline].drop(columns=["sample", "cluster"])
        tables["classes"] = frame.groupby(pd.Series(search.classes, name="class"), sort=False).mean().reset_index()
    return tables


def draw(search: Search, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """Draw queries with their first results, worst and best first."""
    samples, nearest = outcome.samples, outcome.to_draw
    assert samples is not None
    answered = samples[HEADLINE].dropna()
    pictures = []
    for rank, query in enumerate(figures.worst_and_best_first(answered)[:STRIPS]):
        assert isinstance(query, int)
        file = folder / "strips" / f"{rank}.jpg"
        positive = search.groups[search.headline](query)[0]
        figures.result_strip(
            file,
            np.asarray(read_rgb(search.queries[query])),
            [np.asarray(read_rgb(search.database[index])) for index in nearest[query]],
            np.isin(nearest[query], positive).tolist(),
        )
        caption = f"{search.names[query]} and its nearest: AP {answered[query]:.1f}"
        pictures.append(Picture(f"strips/{file.name}", caption))
    return tuple(pictures)


TASK = Task(
    name="retrieval",
    summary="Image retrieval with frozen class tokens (mAP): revisited Oxford and Paris, or images by class.",
    source="DINO, arXiv 2104.14294, sec. 4.2; eval_image_retrieval.py and revisitop.",
    config=RetrievalConfig,
    metrics=METRICS,
    open=open_search,
    measure=measure,
    draw=draw,
    smoke=RetrievalConfig(resize=64, crop=64),
    pieces=lambda config, backbone: frozenset({"cls1"}),
    versions=versions("image features", "descriptors", "retrieval scores"),
)

if __name__ == "__main__":
    command_line.run(lambda: main("retrieval"))
