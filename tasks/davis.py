"""DAVIS video object segmentation by label propagation: writes masks and measures the official J&F.

Nearest neighbors among frozen patch tokens propagate the first mask along the video, without training.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data import DataError
from data.davis import VideoSequence, is_official_val, load_davis
from data.masks import read_foreground, read_ids, write_mask
from data.sample import sample_data
from dino_dense import Metric, Picture, Score
from dino_dense.config import command_line
from dino_dense.config.schema import path, runtime, selects
from dino_dense.pipeline import BackgroundCalls
from dino_dense.progress import Progress
from dino_dense.propagation.protocol import PropagationProtocol
from dino_dense.versions import versions
from tasks.harness import figures
from tasks.harness.command import main
from tasks.harness.session import DataFacts, Session
from tasks.harness.task import Outcome, Task, file_list_hash, sized_by
from tasks.videos.sequences import BACKLOG, ON_CPU, each, frames, threads_for

if TYPE_CHECKING:
    import pandas as pd

    from dino_dense import Backbone
    from dino_dense.arrays import Pixels
    from dino_dense.propagation.video import Frame, VideoPropagator
    from tasks.scores.jf import FrameScores

    IndexedTable = tuple[int, pd.DataFrame]

MIN_FRAMES = 3  # the first and the last are not scored
METRICS = tuple(
    Metric(name, higher_is_better="Decay" not in name, low=-100.0 if "Decay" in name else 0.0)
    for name in ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")
)


@dataclass(frozen=True)
class DavisConfig(PropagationProtocol):
    """Videos, and constants of the protocol"""

    data: str | None = path()
    """Root of a DAVIS tree (ImageSets, JPEGImages, Annotations); without it, the embedded set."""
    year: Literal[2016, 2017] = selects(2017)
    """2016: one foreground, any value above 0; 2017: ids, 255 is void."""
    split: str = selects("val")
    """List under ImageSets/YEAR: val, train, test-dev, ... (test-dev has no ground truth: masks only)."""
    sequences: tuple[str, ...] | None = selects(None)
    """Use only these sequences of the split: a,b,c."""
    max_frames: int | None = selects(None)
    """Use only the first frames of each sequence (frames)."""
    resolution: str = selects("480p")
    """Folder under JPEGImages and Annotations; published numbers use 480p."""
    void: Literal["error", "background"] = selects("error")
    """Treatment of value 255 in a 2017 first mask."""
    score: str | None = path()
    """Score the masks in this folder (SEQUENCE/FRAME.png), without a backbone."""
    max_memory: int | None = runtime(None)
    """Memory limit of a sequence's propagation (context features and labels, one block of similarities), MiB; does not
    change the result. Default: 512 on a CPU; on CUDA an eighth of the free memory, if that is more. The predicted
    memory is printed."""
    batch_size: int | None = runtime(None)
    """Frames in a batch of feature extraction; default: 1 on a CPU, 8 on a GPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_frames is not None and self.max_frames < MIN_FRAMES:
            raise ValueError(
                f"max_frames is {self.max_frames}: expected {MIN_FRAMES} or more, since the first and the last frame "
                "are not scored"
            )
        for name in ("max_memory", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}: expected 1 or more")


@dataclass(frozen=True)
class Videos:
    """The sequences to measure, and their description."""

    sequences: list[VideoSequence]
    facts: DataFacts

    @property
    def scorable(self) -> bool:
        return all(sequence.has_ground_truth for sequence in self.sequences)


def measure(backbone: Backbone, videos: Videos, config: DavisConfig, session: Session) -> Outcome:
    """Write the masks, then score them if there is ground truth."""
    masks, scored = _write_all_masks(backbone, videos.sequences, config, session)
    session.wait()
    return _outcome(masks, scored, videos, config, session, _masks_note(masks, backbone))


def measure_files(videos: Videos, config: DavisConfig, session: Session) -> Outcome:
    """Score the masks of the folder `config.score`."""
    masks = Path(str(config.score))
    return _outcome(masks, [], videos, config, session, f"Scored the masks in {masks}.")


def _outcome(
    masks: Path, scored: Sequence[IndexedTable], videos: Videos, config: DavisConfig, session: Session, note: str
) -> Outcome:
    """J and F of masks on disk; this process has already scored the sequences of `scored`."""
    from tasks.scores.jf import summarize

    if not videos.scorable:
        unscored = [sequence.name for sequence in videos.sequences if not sequence.has_ground_truth]
        names = f"{', '.join(unscored[:3])}{', ...' if len(unscored) > 3 else ''}"
        return Outcome(
            note=f"Not scored: {len(unscored)} of {len(videos.sequences)} sequences have no ground truth beyond their "
            f"first mask ({names}). The masks are in {masks}."
        )
    per_frame = _score_all(masks, videos.sequences, scored, session)
    objects = _per_object(per_frame)
    overall, per_sequence = summarize(per_frame)
    return Outcome(
        scores=_scores(overall, objects),
        tables={
            "per_frame": per_frame,
            f"per-sequence_results-{config.split}": per_sequence,
            f"global_results-{config.split}": overall,
        },
        note=note,
        samples=objects,
        to_draw=masks,
    )


def open_videos(config: DavisConfig) -> Videos:
    """Open the sequences of a config; DataError if they, or the masks to score, are unusable."""
    if config.score is not None and not Path(config.score).is_dir():
        raise DataError(f"{config.score}: no such folder of masks to score; expected SEQUENCE/FRAME.png in it.")
    root = Path(config.data) if config.data else sample_data().davis
    sequences = load_davis(
        root,
        config.year,
        config.split,
        config.sequences,
        config.max_frames,
        resolution=config.resolution,
        void=config.void,
    )
    too_short = [sequence.name for sequence in sequences if len(sequence) < MIN_FRAMES]
    if too_short:
        raise DataError(
            f"{root}: fewer than {MIN_FRAMES} frames in {', '.join(too_short)}; leave them out (--sequences)."
        )
    files = [file for sequence in sequences for file in (*sequence.frames, *sequence.masks) if file is not None]
    n_frames = sum(len(sequence) for sequence in sequences)
    is_complete = is_official_val(sequences, config.year) and config.max_frames is None and config.resolution == "480p"
    name = f"DAVIS-{config.year} {config.split}" if config.data else "embedded videos (not DAVIS)"
    if config.data and not is_complete:
        name += f" (part: {len(sequences)} sequences, {n_frames} frames)"
    description = DataFacts(
        name=name,
        root=str(root),
        n=len(sequences),
        unit="sequences",
        sha256=file_list_hash(root, files),
        dataset=f"DAVIS-{config.year} val" if is_complete else None,
    )
    return Videos(sequences, description)


def _write_all_masks(
    backbone: Backbone, sequences: Sequence[VideoSequence], config: DavisConfig, session: Session
) -> tuple[Path, list[IndexedTable]]:
    """Propagate through every sequence without masks on disk; the processes share the sequences.

    Returns the folder, and J and F of the sequences that this process propagated and scored.
    """
    from dino_dense.propagation.stream import memory_limit

    masks = session.out / "masks"
    limit = memory_limit(config.max_memory, backbone.device)
    # Shared before checking for existing masks: folders appear meanwhile, and the processes must agree.
    unfinished = [(index, s) for index, s in session.share(sequences) if not (masks / s.name).is_dir()]
    count = sum(len(sequence) for _, sequence in unfinished)
    tables: list[IndexedTable] = []
    said: set[str] = set()

    def begun(item: tuple[int, VideoSequence]) -> tuple[int, VideoSequence, VideoPropagator]:
        bar.set_postfix_str(item[1].name)
        propagator = _propagator(backbone, item[1], config, limit)
        text = _memory_text(propagator, limit)
        if text not in said:
            session.once(bar.write, text, file=sys.stderr)
            said.add(text)
        return *item, propagator

    def written(item: tuple[int, VideoSequence, VideoPropagator]) -> list[IndexedTable]:
        index, sequence, propagator = item
        return [(index, table) for table in _write_masks(propagator, sequence, session, bar)]

    with (
        session.bar(count, "propagating", unit="frame") as bar,
        closing(each(written, map(begun, unfinished), on_cpu=backbone.on_cpu)) as done,
    ):
        for table in done:
            tables += table
    return masks, tables


def _masks_note(masks: Path, backbone: Backbone) -> str:
    from dino_dense.propagation.video import pixel_note

    return f"Masks are in {masks}.{pixel_note(backbone)}"


def _propagator(backbone: Backbone, sequence: VideoSequence, config: DavisConfig, max_bytes: int) -> VideoPropagator:
    from dino_dense.propagation.video import VideoPropagator

    objects = range(1, sequence.num_objects + 1)
    return VideoPropagator(backbone, config, sequence.size, objects, max_bytes=max_bytes, batch_size=config.batch_size)


def _frames(sequence: VideoSequence, readers: int) -> Iterator[Frame]:
    """Runs in a worker thread: avoid torch here, it would start its own thread pool."""
    from dino_dense.propagation.video import Frame

    def read(index: int) -> Frame:
        return Frame(sequence.read_frame(index), sequence.first_mask() if index == 0 else None)

    return frames(read, len(sequence), readers)


def _memory_text(propagator: VideoPropagator, limit: int) -> str:
    memory, (h, w) = propagator.memory, propagator.grid
    context, tile, total = (math.ceil(part / 2**20) for part in (memory.context, memory.tile, memory.total))
    return (
        f"{h}x{w} patches: propagation takes up to {total} MiB (context {context}, similarities {tile}) "
        f"of --max-memory {limit // 2**20}"
    )


def _write_masks(
    propagator: VideoPropagator, sequence: VideoSequence, session: Session, bar: Progress
) -> list[pd.DataFrame]:
    """Write one sequence atomically: its folder is renamed when the last mask is written.

    Masks are decoded, written and scored in the background while the next frames propagate. Returns J and F of every
    object and frame if the sequence has ground truth.
    """
    from tasks.scores.jf import score_frame, tabulate

    unfinished = session.out / "masks" / f".{sequence.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    scores: dict[int, FrameScores] = {}

    def finish(index: int, ids: Pixels) -> None:  # in a worker thread: avoid torch, as in `_frames`
        write_mask(unfinished / f"{sequence.frames[index].stem}.png", ids)
        if sequence.has_ground_truth and 0 < index < len(sequence) - 1:
            scores[index] = score_frame(ids, sequence.read_mask(index), sequence.num_objects)
        bar.update()

    session.folder("masks")
    threads = threads_for(propagator.backbone)
    try:
        propagated = propagator.run(_frames(sequence, threads.readers))
        with BackgroundCalls(workers=threads.finishers, backlog=BACKLOG) as behind, closing(propagated):
            for index, (_, ids) in enumerate(propagated):
                behind.submit(finish, index, ids)
        unfinished.rename(session.out / "masks" / sequence.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    indices = sorted(scores)  # threads finish in any order
    names = [sequence.frames[index].stem for index in indices]
    return [tabulate([scores[index] for index in indices], sequence.name, names)] if scores else []


def _score_all(
    masks: Path, sequences: Sequence[VideoSequence], scored: Sequence[IndexedTable], session: Session
) -> pd.DataFrame:
    """J and F of every object and frame: of the sequences in `scored`, and of the other sequences' masks on disk."""
    import pandas as pd

    from tasks.scores.jf import score_folder

    tables = session.collect(scored)
    done = {str(table["sequence"].iat[0]) for table in tables}
    if left := [sequence for sequence in sequences if sequence.name not in done]:
        own_share = session.share(left)
        reading = score_folder(masks, [sequence for _, sequence in own_share], workers=ON_CPU.finishers)
        shown = session.progress(reading, "scoring", unit="sequence", total=len(own_share))
        tables += session.collect((index, table) for (index, _), table in zip(own_share, shown, strict=True))
    by_name = {str(table["sequence"].iat[0]): table for table in tables}
    return pd.concat([by_name[sequence.name] for sequence in sequences], ignore_index=True)


def _per_object(per_frame: pd.DataFrame) -> pd.DataFrame:
    """Means over frames, percent, a row for each object: sample, cluster (video), J&F-Mean, J-Mean, F-Mean."""
    import pandas as pd

    means = 100 * per_frame.groupby(["sequence", "object"], sort=False)[["J", "F"]].mean()
    names = [f"{sequence}_{identity}" for sequence, identity in means.index]
    videos = means.index.get_level_values("sequence").astype(str)
    columns = {
        "sample": names,
        "cluster": videos,
        "J&F-Mean": means.mean(axis=1),
        "J-Mean": means["J"],
        "F-Mean": means["F"],
    }
    return pd.DataFrame(columns).reset_index(drop=True)


def draw(videos: Videos, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """Draw for each sequence a strip (first, middle, last frame), and its J and F over time; worst and best first."""
    objects = outcome.samples
    if objects is None:
        return ()
    masks, per_frame = outcome.to_draw, outcome.tables["per_frame"]
    means = objects.groupby("cluster")["J&F-Mean"].mean()
    by_name = {sequence.name: sequence for sequence in videos.sequences}
    ranked = figures.worst_and_best_first(means)
    pictures = []
    for rank, label in enumerate(ranked):
        name = str(label)
        case = {0: " (worst)", 1: " (best)"}.get(rank, "") if len(ranked) > 1 else ""
        figures.mask_strip(folder / "overlays" / f"{name}.jpg", _first_middle_last(masks, by_name[name]))
        figures.object_curves(folder / "overlays" / f"{name}_curves.png", per_frame[per_frame["sequence"] == name])
        pictures += [
            Picture(f"overlays/{name}.jpg", f"{name}{case}: J&F {means[name]:.1f}; first, middle, last frame"),
            Picture(f"overlays/{name}_curves.png", f"{name}{case}: J and F of each object, frame by frame"),
        ]
    return tuple(pictures)


def _first_middle_last(masks: Path, sequence: VideoSequence) -> list[tuple[Pixels, Pixels]]:
    """Frames with their masks: the given first mask, and the predicted masks in the middle and at the end.

    The last frame is not scored, so a folder of other masks may lack it: then the last scored frame is used.
    """
    last = len(sequence) - 1
    files = {index: masks / sequence.name / f"{sequence.frames[index].stem}.png" for index in (last // 2, last)}
    if not files[last].is_file():
        del files[last]
        files[last - 1] = masks / sequence.name / f"{sequence.frames[last - 1].stem}.png"
    read = read_foreground if sequence.year == 2016 else read_ids
    predicted = [(sequence.read_frame(index), read(file)) for index, file in files.items()]
    return [(sequence.read_frame(0), sequence.first_mask()), *predicted]


def _scores(overall: pd.DataFrame, objects: pd.DataFrame) -> tuple[Score, ...]:
    """Scores in percent, with the standard error over videos if the metric is a mean over them."""
    from dino_dense.report.samples import score_samples

    scores = []
    for metric in METRICS:
        error = score_samples(objects, metric.name).stderr if metric.name in objects else None
        value = float(overall[metric.name].to_numpy()[0])
        scores.append(Score(metric.name, 100 * value, len(objects), error))
    return tuple(scores)


def own_clip(words: Sequence[str]) -> tuple[str, list[str]] | None:
    """`tasks.track` and its words for `--video` (a user's clip); `--resolution 480p` becomes `--short-side 480`."""
    options = [word.partition("=") for word in words]
    if not any(option == "--video" for option, _, _ in options):
        return None
    moved, short_side = [], False
    for option, equals, value in options:
        if short_side:
            option, short_side = option.removesuffix("p"), False
        elif option == "--resolution":
            option, value, short_side = "--short-side", value.removesuffix("p"), not equals
        moved.append(f"{option}{equals}{value}")
    return "track", moved


TASK = Task(
    name="davis",
    summary="Video object segmentation by label propagation (J&F).",
    source="DINO, arXiv 2104.14294, sec. 4.2; eval_video_segmentation.py and davis2017-evaluation.",
    config=DavisConfig,
    metrics=METRICS,
    open=open_videos,
    measure=measure,
    draw=draw,
    at_size=sized_by("short_side"),
    measure_files=measure_files,
    smoke=DavisConfig(short_side=192, max_frames=5),
    needs_backbone=lambda config: config.score is None,
    moved=own_clip,
    versions=versions("propagation", "jf scores"),
)

if __name__ == "__main__":
    command_line.run(lambda: main("davis"))
