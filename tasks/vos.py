"""Video object segmentation where objects enter late: YouTube-VOS, MOSE, LVOS; masks, a zip to submit, local J&F."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from data.masks import read_ids, write_mask
from data.sample.points import sample_late_objects
from data.vos import KnownLayout, Layout, VosVideo, load_vos
from dino_dense import Metric, Picture
from dino_dense.config import command_line
from dino_dense.config.schema import path, runtime, selects
from dino_dense.files import write_bytes
from dino_dense.pipeline import BackgroundCalls
from dino_dense.propagation.protocol import PropagationProtocol
from dino_dense.versions import versions
from tasks.harness import figures
from tasks.harness.command import main
from tasks.harness.session import DataFacts, Session
from tasks.harness.task import Outcome, Task, file_list_hash, sized_by
from tasks.videos.sequences import BACKLOG, each, frames, threads_for

if TYPE_CHECKING:
    import pandas as pd

    from dino_dense import Backbone
    from dino_dense.arrays import Pixels
    from dino_dense.propagation.video import Frame

METRICS = tuple(Metric(name) for name in ("J&F-Mean", "J-Mean", "F-Mean"))
PICTURES = 4
ZIP = "submission.zip"


@dataclass(frozen=True)
class VosConfig(PropagationProtocol):
    """Which videos, and every constant of the protocol"""

    upsample_to: Literal["frame", "original"] = "original"
    """Size at which the argmax is taken: the resized frame (DINO), or the original size, which submissions need."""
    data: str | None = path()
    """Folder of YouTube-VOS, MOSE or LVOS; without it, embedded videos."""
    layout: Layout = selects("auto")
    """youtube, mose, lvos, or auto: look."""
    split: str = selects("valid")
    """valid or test."""
    videos: tuple[str, ...] | None = selects(None)
    """Use only these videos: a,b,c."""
    truth: str | None = path()
    """Folder of true masks VIDEO/FRAME.png to score with, where the data have none (LVOS valid has)."""
    max_memory: int | None = runtime(None)
    """Memory that propagation may take (context features and labels, one block of similarities), MiB. Default: 512 on a
    CPU; on CUDA an eighth of the free memory, if that is more."""
    batch_size: int | None = runtime(None)
    """Frames whose features are computed at once; without it, 1 on a CPU and 8 on a GPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_memory", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}: expected 1 or more")


class Videos(NamedTuple):
    """The videos that a config names."""

    items: list[VosVideo]
    facts: DataFacts
    layout: KnownLayout
    split: str


def measure(backbone: Backbone, videos: Videos, config: VosConfig, session: Session) -> Outcome:
    """Write the masks of every wanted frame and the zip; score them where there is truth."""
    from dino_dense.propagation.video import pixel_note

    masks = session.out / "masks"
    own_share = session.share(videos.items)
    _write_all_masks(backbone, [video for _, video in own_share], config, session)
    session.wait()
    session.once(_write_zip, session.out / ZIP, masks, videos)
    note = f"Masks are in {masks}, to be submitted in {session.out / ZIP}.{pixel_note(backbone)}"
    scored = [(index, video) for index, video in own_share if video.truth]
    tables = session.collect((index, _score(masks, video)) for index, video in scored)
    if not tables:
        return Outcome(note=f"Not scored: no true masks here; the benchmark's server has them. {note}")
    import pandas as pd

    per_frame = pd.concat(tables, ignore_index=True)
    return Outcome(
        tables={"per_frame": per_frame},
        note="J&F of each object in the frames after its own first mask, without the video's last; mean over objects. "
        + note,
        samples=_per_object(per_frame),
        to_draw=masks,
    )


def open_videos(config: VosConfig) -> Videos:
    """The videos that a config names; DataError if they cannot be used."""
    root = Path(config.data) if config.data else sample_late_objects()
    truth = config.truth if config.data else root / "truth"
    layout, items = load_vos(root, config.layout, config.split, config.videos, truth)
    name = f"{root.resolve().name} {config.split}" if config.data else "embedded late objects (not YouTube-VOS)"
    files = [file for video in items for file in (*video.frames, *video.given.values(), *video.truth.values())]
    description = DataFacts(name=name, root=str(root), n=len(items), unit="videos", sha256=file_list_hash(root, files))
    return Videos(items, description, layout, config.split)


# --- Masks -------------------------------------------------------------------------------------------------


def _frames(video: VosVideo, readers: int) -> Iterator[Frame]:
    """Runs in a worker thread: avoid torch here, it would start its own thread pool."""
    from dino_dense.propagation.video import Frame

    return frames(lambda index: Frame(video.read_frame(index), video.read_given(index)), len(video), readers)


def _write_all_masks(backbone: Backbone, videos: Sequence[VosVideo], config: VosConfig, session: Session) -> None:
    """Propagate through the videos without masks on disk."""
    from dino_dense.propagation.stream import memory_limit

    limit = memory_limit(config.max_memory, backbone.device)
    masks = session.folder("masks")
    with session.bar(sum(len(video) for video in videos), "propagating", unit="frame") as bar:

        def written(video: VosVideo) -> None:
            bar.set_postfix_str(video.name)
            if not (masks / video.name).is_dir():
                _write_masks(backbone, video, config, masks, limit)
            bar.update(len(video))

        with closing(each(written, videos, on_cpu=backbone.on_cpu)) as done:
            for _ in done:
                pass


def _write_masks(backbone: Backbone, video: VosVideo, config: VosConfig, masks: Path, limit: int) -> None:
    """Write the masks of one video. Its folder gets its name after the last mask, so that it is never incomplete."""
    from dino_dense.propagation.video import VideoPropagator

    unfinished = masks / f".{video.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    propagator = VideoPropagator(
        backbone, config, video.size, list(video.starts), max_bytes=limit, batch_size=config.batch_size
    )
    threads = threads_for(backbone)
    try:
        with (
            BackgroundCalls(workers=threads.finishers, backlog=BACKLOG) as behind,
            closing(propagator.run(_frames(video, threads.readers))) as propagated,
        ):
            for index, (_, ids) in enumerate(propagated):
                if index in video.wanted:
                    behind.submit(write_mask, unfinished / f"{video.frames[index].stem}.png", ids, video.palette)
        unfinished.rename(masks / video.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write_zip(file: Path, masks: Path, videos: Videos) -> None:
    """The masks as servers want them: below Annotations for YouTube-VOS and LVOS, at the top for MOSE."""
    top = "" if videos.layout == "mose" else "Annotations/"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:  # PNGs are packed already
        for video in videos.items:
            for mask in sorted((masks / video.name).glob("*.png")):
                archive.write(mask, f"{top}{video.name}/{mask.name}")
    write_bytes(file, stream.getvalue())


# --- Scores ------------------------------------------------------------------------------------------------


def _score(masks: Path, video: VosVideo) -> pd.DataFrame:
    """J and F of each object in the wanted frames after its first mask that have truth, but for the last frame."""
    import pandas as pd

    from tasks.scores.jf import score_frame

    rows = []
    objects = np.array([0, *video.starts], np.uint8)
    for index in sorted(video.wanted & video.truth.keys() - {len(video) - 1}):
        later = [number for number, start in enumerate(video.starts.values()) if start < index]
        if not later:
            continue
        written = read_ids(masks / video.name / f"{video.frames[index].stem}.png")
        predicted, true = (_numbered(ids, objects) for ids in (written, video.read_truth(index)))
        regions, contours = score_frame(predicted, true, len(video.starts))
        rows += [
            {
                "sequence": video.name,
                "object": int(objects[number + 1]),
                "frame": video.frames[index].stem,
                "J": regions[number],
                "F": contours[number],
            }
            for number in later
        ]
    return pd.DataFrame(rows, columns=["sequence", "object", "frame", "J", "F"])


def _numbered(ids: Pixels, objects: Pixels) -> Pixels:
    """Ids as 0 to n, in the order of `objects`; others are background."""
    table = np.zeros(256, np.uint8)
    table[objects] = np.arange(len(objects))
    return np.asarray(table[ids], np.uint8)


def _per_object(per_frame: pd.DataFrame) -> pd.DataFrame:
    """Means over the frames, percent, a row an object."""
    import pandas as pd

    means = 100 * per_frame.groupby(["sequence", "object"], sort=False)[["J", "F"]].mean()
    return pd.DataFrame(
        {
            "sample": [f"{sequence}_{identity}" for sequence, identity in means.index],
            "cluster": means.index.get_level_values("sequence").astype(str),
            "J&F-Mean": means.mean(axis=1),
            "J-Mean": means["J"],
            "F-Mean": means["F"],
        }
    ).reset_index(drop=True)


def draw(videos: Videos, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """Draw a strip of frames with their masks for the worst and best videos."""
    if outcome.samples is None:
        return ()
    means = outcome.samples.groupby("cluster")["J&F-Mean"].mean()
    by_name = {video.name: video for video in videos.items}
    pictures = []
    for rank, label in enumerate(figures.worst_and_best_first(means)[:PICTURES]):
        name = str(label)
        case = {0: " (worst)", 1: " (best)"}.get(rank, "") if len(means) > 1 else ""
        figures.mask_strip(folder / "overlays" / f"{name}.jpg", _strip(outcome.to_draw, by_name[name]))
        pictures.append(Picture(f"overlays/{name}.jpg", f"{name}{case}: J&F {means[name]:.1f}"))
    return tuple(pictures)


def _strip(masks: Path, video: VosVideo) -> Sequence[tuple[Pixels, Pixels]]:
    return [
        (video.read_frame(index), read_ids(masks / video.name / f"{video.frames[index].stem}.png"))
        for index in figures.evenly_spaced(sorted(video.wanted), 4)
    ]


TASK = Task(
    name="vos",
    summary="Video object segmentation with late objects: YouTube-VOS, MOSE, LVOS (zip to submit, local J&F).",
    source="DINO's label propagation, arXiv 2104.14294; layouts of YouTube-VOS, MOSE and LVOS as Cutie reads them.",
    config=VosConfig,
    metrics=METRICS,
    open=open_videos,
    measure=measure,
    draw=draw,
    at_size=sized_by("short_side"),
    smoke=VosConfig(short_side=192),
    versions=versions("propagation", "jf scores"),
)

if __name__ == "__main__":
    command_line.run(lambda: main("vos"))
