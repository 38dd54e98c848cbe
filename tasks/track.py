"""Track objects through your own video: masks of the first frame in, masks of all frames and an overlay video out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data.clips import open_clip
from data.own_masks import OwnMasks
from dino_dense import Picture
from dino_dense.config import command_line
from dino_dense.config.schema import path, runtime, selects
from dino_dense.propagation.protocol import PropagationProtocol
from dino_dense.versions import versions
from tasks.harness.runner import run_command
from tasks.harness.session import DataFacts, Session
from tasks.harness.task import Command, Outcome, Task, file_list_hash

if TYPE_CHECKING:
    from data.clips import Clip
    from dino_dense import Backbone

SUMMARY = "Track objects through your own video: masks of the first frame in, all masks and an overlay video out."


@dataclass(frozen=True)
class TrackConfig(PropagationProtocol):
    """Video, masks, and constants of the protocol"""

    video: str | None = path()
    """A video file, or a folder of frames. Writes masks/NAME/FRAME.png, and an overlay NAME_masks.mp4."""
    mask: str | None = path()
    """Mask of the first frame; or, for objects that enter later, a folder of masks with the names of their frames (for
    a video file numbers: 00000.png). Ids, gray levels, colors, transparency, or JSON of labelme or COCO; the report
    says how it was read."""
    every: int = selects(1)
    """Use every n-th frame."""
    max_frames: int | None = selects(None)
    """Use at most this many frames."""
    coco: bool = runtime(False)
    """Also write NAME_masks.json, in COCO's format with run-length encoding."""
    max_memory: int = runtime(512)
    """Memory limit of propagation (context features and labels, one block of similarities), MiB; does not change the
    result."""
    batch_size: int | None = runtime(None)
    """Frames in a batch of feature extraction; default: 1 on a CPU, 8 on a GPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("every", "max_frames", "max_memory", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}: expected 1 or more")


@dataclass(frozen=True)
class OwnClip:
    """A user's clip, and the masks of its frames."""

    clip: Clip
    masks: OwnMasks
    facts: DataFacts


def open_own_clip(config: TrackConfig) -> OwnClip:
    """Open the clip and the masks of a config.

    Raises:
        ValueError, DataError: they are not given, or are unusable.
    """
    from tasks.videos.clip_masks import find_masks

    if config.video is None or config.mask is None:
        raise ValueError("which video, and which mask of its first frame? Give --video and --mask.")
    clip = open_clip(config.video, every=config.every, max_frames=config.max_frames)
    masks = OwnMasks(find_masks(config.mask, clip), clip.size)
    files = [*(clip.pictures or [clip.path]), *dict.fromkeys(masks.files.values())]
    description = DataFacts(
        name=f"own video {clip.path.name}",
        root=str(clip.path),
        n=len(clip),
        unit="frames",
        sha256=file_list_hash(clip.path.parent, files),
    )
    return OwnClip(clip, masks, description)


def measure(backbone: Backbone, own: OwnClip, config: TrackConfig, session: Session) -> Outcome:
    """Write masks of a user's clip: PNGs, the overlay as mp4, and on request COCO's JSON. There is nothing to score."""
    from dino_dense.propagation.video import pixel_note

    film = session.out / f"{own.clip.name}_masks.mp4"
    masks = session.out / "masks" / own.clip.name
    notes = [f"{own.masks.said}. Masks are in {masks}, over the video in {film}.{pixel_note(backbone)}"]
    session.once(lambda: notes.append(_write(backbone, own, config, session)))  # one stream, one process
    return Outcome(note="".join(notes))


def _write(backbone: Backbone, own: OwnClip, config: TrackConfig, session: Session) -> str:
    """Propagate the masks and write all files, unless an earlier run did. Returns a note."""
    from tasks.videos.clip_masks import carry_masks, write_masks

    folder = session.folder("masks") / own.clip.name
    if folder.is_dir() and not (config.coco and not (session.out / f"{own.clip.name}_masks.json").is_file()):
        return ""
    budget = config.max_memory * 2**20
    carried = carry_masks(backbone, own.clip, own.masks, config, max_bytes=budget, batch_size=config.batch_size)
    return write_masks(carried, own.clip, folder, session.out, coco=config.coco)


def draw(own: OwnClip, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """The strip that was written with the masks."""
    return (Picture(f"{own.clip.name}_masks.jpg", f"{own.clip.name}: first, middle, last frame"),)


TRACK = Task(
    name="track",
    summary=SUMMARY,
    source="DINO's label propagation (arXiv 2104.14294, sec. 4.2), as in tasks.davis.",
    config=TrackConfig,
    metrics=(),
    open=open_own_clip,
    measure=measure,
    draw=draw,
    smoke=TrackConfig(),
    versions=versions("propagation"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m tasks.track`: parse, run, print the folder of the masks. Returns the exit status."""
    return run_command(TRACK, argv, presets="davis")


COMMAND = Command(name="track", summary=SUMMARY, main=main)

if __name__ == "__main__":
    command_line.run(main)
