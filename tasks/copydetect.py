"""Copy detection: find the original of an attacked picture, on INRIA Copydays or any folder of images.

The descriptor is the class token joined with the generalized mean of the patch tokens (DINO, sec. 4.2.1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from data import DataError
from data.copydays import STRONG, Copydays, is_copydays, load_copydays
from data.images import UnlabeledImages, list_images, read_rgb
from data.sample import sample_data
from dino_dense import Metric, Picture
from dino_dense.config import command_line
from dino_dense.config.schema import idle_fields, path, runtime, selects
from dino_dense.versions import versions
from tasks.harness import figures
from tasks.harness.command import main
from tasks.harness.session import DataFacts, Session
from tasks.harness.task import Outcome, Task, file_list_hash
from tasks.images.attacks import AttackedImages, check_attacks
from tasks.images.options import Decoder, check_decoding
from tasks.scores.retrieval import Indices, average_precision, positive_ranks, rankings

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image
    from torch import Tensor

    from dino_dense import Backbone

PIECES = ("cls1", "gem")
METRICS = (Metric("mAP"), Metric("recall@1"))
STRIPS, STRIP_RESULTS = 6, 5  # number of pictures, and of results in each
PUBLISHED_FURTHER = {"distractors": 10_000, "whiten": 20_000}  # images of YFCC100M (arXiv 2104.14294, sec. 4.2.1)
ALL_ATTACKS = "all"
ATTACKS = (
    *("crop10", "crop30", "crop50", "crop80"),
    *("jpeg75", "jpeg20", "jpeg8", "jpeg3"),
    *("blur2", "blur5", "print"),
)


@dataclass(frozen=True)
class CopydetectConfig:
    """Images, attacks and descriptors"""

    data: str | None = path()
    """Folder of Copydays (original/, strong/, crops/, jpegqual/) or of any images; without it, the embedded
    set."""
    layout: Literal["auto", "copydays", "folder"] = selects("auto")
    """auto: copydays if there is a folder original/, else folder: any folder, with images attacked here."""
    attacks: tuple[str, ...] = selects(ATTACKS, layout="folder")
    """Attacks on a folder's images: cropN (percent of the surface cut away), jpegN (quality), blurN (percent of
    the short side), print."""
    max_queries: int | None = selects(None, layout="folder")
    """Attack only this many images of a folder, evenly spaced; all images are searched."""
    distractors: str | None = path()
    """Folder of additional images in the database (the paper: 10,000 of YFCC100M)."""
    whiten: str | None = path()
    """Folder of other images to fit a whitening on (the paper: 20,000 of YFCC100M)."""
    centered_whitening: bool = False
    """Whiten by the covariance; eval_copy_detection.py uses the second moments about zero."""
    image_size: int = 224
    """Side of the square that images are resized to (bicubic, ignoring the aspect ratio), pixels; a multiple of the
    patch size (paper: 224 for ViT-B/16, 320 for ViT-B/8)."""
    top: int | None = 20
    """Number of first results that count (eval_copy_detection.py); null: all."""
    fast_decode: bool = False
    """Decode large JPEGs at 1/2, 1/4 or 1/8 size if this is enough: faster, but pixels differ slightly from the
    published protocol's. Attacked images are always decoded at full size."""
    decode: Decoder = "pillow"
    """device: the backbone's device decodes and resizes JPEGs; pixels, and so numbers, differ slightly from the
    published protocol's. Attacked images, and files that it cannot decode, are read by Pillow."""
    batch_size: int = runtime(64)
    """Images extracted at once; does not change the result."""
    workers: int | None = runtime(None)
    """Worker processes that read images. None: 0 on a CPU; on CUDA one for each processor, 16 at most."""

    def __post_init__(self) -> None:
        check_attacks(self.attacks)
        check_decoding(self.decode, self.fast_decode)
        for name in ("image_size", "top", "max_queries"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: expected 1 or more.")
        if self.centered_whitening and self.whiten is None:
            raise ValueError("centered_whitening is set, but there is nothing to learn it from: expected whiten.")


@dataclass(frozen=True)
class Copies:
    """Originals, and attacked images of them."""

    facts: DataFacts
    originals: list[Path]
    further: Mapping[str, list[Path]]
    """Images of the folders `distractors` and `whiten`; empty without the folder."""
    images: Callable[[int], Sequence[Image.Image]]
    """Seed -> the Q attacked images."""
    table: pd.DataFrame
    """Columns sample (unique) and attack, with a row for each attacked image."""
    positives: list[list[int]]
    """The originals of each attacked image."""
    headline: str
    """The attack (or all) that the scores are means over."""


def measure(backbone: Backbone, copies: Copies, config: CopydetectConfig, session: Session) -> Outcome:
    """Describe, whiten, search, score."""
    import pandas as pd

    images = copies.images(session.seed)
    queries, database, note = _describe(backbone, copies, images, config, session)
    ranked = rankings(queries.to(backbone.device), database.to(backbone.device), top=config.top)
    values, nearest = _score(ranked, copies.positives, len(database), session)
    # An original and all its copies form a cluster.
    root = Path(copies.facts.root)
    clusters = [copies.originals[min(right)].relative_to(root).as_posix() for right in copies.positives]
    scored = pd.concat([copies.table.assign(cluster=clusters), values], axis=1)
    measured = scored if copies.headline == ALL_ATTACKS else scored.loc[scored["attack"] == copies.headline]
    headline = measured.drop(columns="attack")
    return Outcome(
        tables={"attacks": _per_attack(scored), "queries": scored},
        note=f"mAP over {copies.headline} attacks, {len(database)} images searched; each is in attacks.csv.{note}",
        samples=headline.reset_index(drop=True),
        to_draw=(headline, nearest, images),
    )


# --- Data --------------------------------------------------------------------------------------------------


def open_copies(config: CopydetectConfig) -> Copies:
    """Open the images of a config.

    Raises:
        FileNotFoundError, DataError: the images are unusable, or an image is both a distractor and an original.
        ValueError: an option is set that does not apply to these images.
    """
    root = Path(config.data) if config.data else sample_data().images / "val"
    folders = {"distractors": config.distractors, "whiten": config.whiten}
    further = {name: list_images(folder) if folder else [] for name, folder in folders.items()}
    if config.layout == "copydays" or (config.layout == "auto" and is_copydays(root)):
        if idle := idle_fields(config, "copydays"):
            raise ValueError(f"{root}: is read as Copydays, where {', '.join(idle)} mean nothing. Leave them out.")
        copies = _open_copydays(root, further, config)
    else:
        copies = _open_folder(root, further, config)
    both = {path.resolve() for path in copies.originals} & {path.resolve() for path in further["distractors"]}
    if both:
        raise DataError(f"{min(both)}: an original, and a distractor too. Name another --distractors.")
    return copies


def _open_copydays(root: Path, further: Mapping[str, list[Path]], config: CopydetectConfig) -> Copies:
    import pandas as pd

    copydays = load_copydays(root)
    paths = [copy.path for copy in copydays.copies]
    attacks = [copy.attack for copy in copydays.copies]
    headline = STRONG if STRONG in attacks else ALL_ATTACKS
    return Copies(
        facts=DataFacts(
            name="Copydays" if copydays.is_complete else f"Copydays (part: {len(copydays.originals)} originals)",
            root=str(root),
            n=attacks.count(STRONG) or len(paths),
            unit=f"{STRONG} copies" if headline == STRONG else "copies",
            sha256=_hash(root, copydays.originals + paths, further, config),
            dataset=published_dataset(copydays, further),
        ),
        originals=copydays.originals,
        further=further,
        images=lambda seed: UnlabeledImages(paths),
        table=pd.DataFrame({"sample": [path.relative_to(root).as_posix() for path in paths], "attack": attacks}),
        positives=[copy.originals for copy in copydays.copies],
        headline=headline,
    )


def published_dataset(copydays: Copydays, further: Mapping[str, list[Path]]) -> str | None:
    """Name of the published data set if the data match it; the used images of YFCC100M are not published."""
    same = {name: len(paths) for name, paths in further.items()} == PUBLISHED_FURTHER
    return "Copydays strong, 10k distractors, whitened" if copydays.is_complete and same else None


def _open_folder(root: Path, further: Mapping[str, list[Path]], config: CopydetectConfig) -> Copies:
    import pandas as pd

    originals = list_images(root)
    count = min(config.max_queries or len(originals), len(originals))
    chosen = np.unique(np.linspace(0, len(originals) - 1, count).round().astype(int)).tolist()
    attacked = [originals[index] for index in chosen]
    names = [originals[index].relative_to(root).as_posix() for index in chosen]
    rows = [(f"{attack}/{name}", attack) for attack in config.attacks for name in names]
    return Copies(
        facts=DataFacts(
            name=root.resolve().name if config.data else "embedded images",
            root=str(root),
            n=len(rows),
            unit="copies",
            sha256=_hash(root, originals, further, config),
        ),
        originals=originals,
        further=further,
        images=lambda seed: AttackedImages(attacked, chosen, config.attacks, seed),
        table=pd.DataFrame(rows, columns=["sample", "attack"]),
        positives=[[index] for _ in config.attacks for index in chosen],
        headline=ALL_ATTACKS,
    )


def _hash(root: Path, files: Sequence[Path], further: Mapping[str, list[Path]], config: CopydetectConfig) -> str:
    """SHA-256 over all files that determine the numbers."""
    digests = [file_list_hash(root, files)]
    digests += [file_list_hash(Path(getattr(config, name)), paths) for name, paths in further.items() if paths]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


# --- Describing --------------------------------------------------------------------------------------------


def _describe(
    backbone: Backbone,
    copies: Copies,
    images: Sequence[Image.Image],
    config: CopydetectConfig,
    session: Session,
) -> tuple[Tensor, Tensor, str]:
    """Queries [Q, C], database [N, C] (originals, then distractors), and a note on the whitening."""
    import torch

    from tasks.images.descriptors import Transformed, describe_all, fit_whitening
    from tasks.images.features import Preprocessing, check_finite, extract_pieces, finite_rows, image_features

    side = config.image_size
    preprocessing = Preprocessing(side, side, squash=True, fast_decode=config.fast_decode, decode=config.decode)

    def of_files(paths: Sequence[Path], label: str) -> Tensor:
        pieces = image_features(
            backbone,
            paths,
            preprocessing,
            session=session,
            pieces=PIECES,
            batch_size=config.batch_size,
            workers=config.workers,
            label=label,
        )
        return _joined(pieces)

    database = of_files(copies.originals, "originals")
    if copies.further["distractors"]:
        database = torch.cat([database, of_files(copies.further["distractors"], "distractors")])
    queries = describe_all(
        Transformed(images, preprocessing.transform()),
        len(images),
        lambda batch: _joined(extract_pieces(backbone, batch, PIECES)),
        session=session,
        batch_size=config.batch_size,
        workers=config.workers,
        label="copies",
    )
    names = copies.table["sample"]
    check_finite(backbone, finite_rows({"all": queries}), lambda index: names.iloc[index])
    if not copies.further["whiten"]:
        return queries, database, " Not whitened."
    others = of_files(copies.further["whiten"], "whitening")
    whiten = fit_whitening(others, centered=config.centered_whitening)
    note = f" Whitened by {len(others)} images, {others.shape[1]} dimensions."
    return whiten(queries), whiten(database), note


def _joined(pieces: dict[str, Tensor]) -> Tensor:
    """Class token and pooled patch tokens, concatenated to [B, 2C]."""
    import torch

    return torch.cat([pieces[name] for name in PIECES], dim=1)


# --- Scoring -----------------------------------------------------------------------------------------------


def _score(
    ranked: Iterable[Indices], positives: Sequence[Sequence[int]], count: int, session: Session
) -> tuple[pd.DataFrame, list[Indices]]:
    """AP and recall@1 of each query (percent) in a database of `count` images, and its first results."""
    import pandas as pd

    rows, nearest = [], []
    nothing = np.array([], np.int64)
    bar = session.progress(ranked, "searching", unit="query", total=len(positives))
    for order, right in zip(bar, positives, strict=True):
        ranks = positive_ranks(order, np.array(right), nothing, count)
        rows.append((100 * average_precision(ranks, len(right)), 100.0 * bool((ranks == 0).any())))
        nearest.append(order[:STRIP_RESULTS].copy())  # not a view that keeps the whole order
    return pd.DataFrame(rows, columns=[metric.name for metric in METRICS]), nearest


def _per_attack(scored: pd.DataFrame) -> pd.DataFrame:
    """Means for each attack, in the order of the attacks."""
    groups = scored.drop(columns=["sample", "cluster"]).groupby("attack", sort=False)
    return groups.mean().assign(queries=groups.size()).reset_index()


def draw(copies: Copies, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """Draw copies with their first results, worst and best first."""
    headline, nearest, images = outcome.to_draw
    database = [*copies.originals, *copies.further["distractors"]]
    pictures = []
    for rank, query in enumerate(figures.worst_and_best_first(headline["mAP"])[:STRIPS]):
        assert isinstance(query, int)
        file = folder / "strips" / f"{rank}.jpg"
        figures.result_strip(
            file,
            np.asarray(images[query]),
            [np.asarray(read_rgb(database[index])) for index in nearest[query]],
            [index in copies.positives[query] for index in nearest[query]],
        )
        caption = f"{copies.table['sample'][query]} and its nearest: AP {headline['mAP'][query]:.1f}"
        pictures.append(Picture(f"strips/{file.name}", caption))
    return tuple(pictures)


TASK = Task(
    name="copydetect",
    summary="Copy detection with class tokens and pooled patch tokens (mAP): Copydays, or attacks on any images.",
    source="DINO, arXiv 2104.14294, sec. 4.2.1; eval_copy_detection.py.",
    config=CopydetectConfig,
    metrics=METRICS,
    open=open_copies,
    measure=measure,
    draw=draw,
    # Mild attacks: contract tests identify images by a coarse thumbnail, which a strong crop or a print changes.
    smoke=CopydetectConfig(image_size=64, attacks=("crop10", "jpeg20", "blur2"), max_queries=60),
    # No `pieces`: no other task resizes images to squares, so features cannot be shared.
    versions=versions("image features", "descriptors", "attacks", "retrieval scores"),
)

if __name__ == "__main__":
    command_line.run(lambda: main("copydetect"))
