"""Track objects or points through your own video: masks or points of some frames in, those of all frames out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data.clips import open_clip
from data.own_masks import OwnMasks
from dino_dense import Picture
from dino_dense.config import command_line
from dino_dense.config.schema import path, runtime, selects
from dino_dense.propagation.protocol import PropagationProtocol
from dino_dense.versions import versions
from tasks.harness.command import run_command
from tasks.harness.session import DataFacts, Session
from tasks.harness.task import Command, Outcome, Task, file_list_hash

if TYPE_CHECKING:
    from data.clips import Clip
    from dino_dense import Backbone
    from dino_dense.arrays import Floats

SUMMARY = "Track objects or points through your own video: those of some frames in, of all frames and a video out."


@dataclass(frozen=True)
class TrackConfig(PropagationProtocol):
    """Video, masks, and constants of the protocol"""

    video: str | None = path()
    """A video file, or a folder of frames. Writes masks/NAME/FRAME.png, and an overlay NAME_masks.mp4."""
    mask: str | None = path()
    """Mask of the first frame; or, for objects that enter later and corrections, a folder of masks with the names of
    their frames (for a video file numbers: 00000.png). Ids, gray levels, colors, transparency, or JSON of labelme or
    COCO; the report says how it was read."""
    points: str | None = selects(None)
    """In place of a mask: points of the first frame in pixels, --points "x,y;x,y", or of another, "x,y@12". Each is
    followed to all earlier and later frames. "2=x,y@40" corrects the second point on frame 40: each frame goes by the
    nearest frame with the point. Writes NAME_tracks.csv, and an overlay NAME_tracks.mp4. Of the protocol only the short
    side is used."""
    direction: Literal["forward", "both"] = selects("forward")
    """forward: masks go to later frames. both: each object in each frame comes from the nearest frame with a mask of
    it, earlier or later (of two equally near, the earlier); the first frame needs no mask. Up to twice as long."""
    every: int = selects(1)
    """Use every n-th frame."""
    max_frames: int | None = selects(None)
    """Use at most this many frames."""
    coco: bool = runtime(False)
    """Also write NAME_masks.json, in COCO's format with run-length encoding."""
    max_memory: int | None = runtime(None)
    """Memory limit of propagation (context features and labels, one block of similarities), MiB; does not change the
    result. Default: 512 on a CPU; on CUDA an eighth of the free memory, if that is more."""
    batch_size: int | None = runtime(None)
    """Frames in a batch of feature extraction; default: 1 on a CPU, 8 on a GPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("every", "max_frames", "max_memory", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}: expected 1 or more")
        if self.points is not None:
            self._check_for_points()

    def _check_for_points(self) -> None:
        """ValueError for options that points would ignore."""
        if self.mask is not None:
            raise ValueError("mask and points are both given: expected one of them")
        constants = {item.name: item.default for item in fields(PropagationProtocol) if item.name != "short_side"}
        idle = [name for name, default in constants.items() if getattr(self, name) != default]
        idle += [name for name, on in (("coco", self.coco), ("direction", self.direction != "forward")) if on]
        if idle:
            raise ValueError(f"{', '.join(idle)}: of masks, and without effect on points. Leave it out.")


@dataclass(frozen=True)
class OwnClip:
    """A user's clip, and masks or points of its frames."""

    clip: Clip
    masks: OwnMasks | None
    points: Floats | None
    """[P, 3]: frame, x, y in pixels."""
    facts: DataFacts


def open_own_clip(config: TrackConfig) -> OwnClip:
    """Open the clip and the masks or points of a config.

    Raises:
        ValueError, DataError: they are not given, or are unusable.
    """
    from tasks.videos.clip_masks import find_masks
    from tasks.videos.clip_points import read_points

    if config.video is None or (config.mask is None and config.points is None):
        raise ValueError(
            'which video, and which mask or points of its first frame? Give --video and --mask, or --points "x,y;x,y".'
        )
    clip = open_clip(config.video, every=config.every, max_frames=config.max_frames)
    first = config.direction == "forward"
    masks = None if config.mask is None else OwnMasks(find_masks(config.mask, clip, first=first), clip.size)
    points = read_points(config.points, clip) if config.points is not None else None
    files = [*(clip.pictures or [clip.path]), *dict.fromkeys(masks.files.values() if masks else ())]
    description = DataFacts(
        name=f"own video {clip.path.name}",
        root=str(clip.path),
        n=len(clip),
        unit="frames",
        sha256=file_list_hash(clip.path.parent, files),
    )
    return OwnClip(clip, masks, points, description)


def measure(backbone: Backbone, own: OwnClip, config: TrackConfig, session: Session) -> Outcome:
    """Write masks of a user's clip: PNGs, the overlay as mp4, and on request COCO's JSON; or the tracks of its points.

    There is nothing to score.
    """
    given = own.masks
    if given is None:
        return _measure_points(backbone, own, config, session)
    from dino_dense.propagation.video import pixel_note

    film = session.out / f"{own.clip.name}_masks.mp4"
    masks = session.out / "masks" / own.clip.name
    notes = [f"{given.said}. Masks are in {masks}, over the video in {film}.{pixel_note(backbone)}"]
    session.once(lambda: notes.append(_write(backbone, own, given, config, session)))  # one stream, one process
    return Outcome(note="".join(notes))


def _measure_points(backbone: Backbone, own: OwnClip, config: TrackConfig, session: Session) -> Outcome:
    """Track the points and write their files, unless an earlier run did."""
    from tasks.videos.clip_points import HIDDEN_SHARE, carry_points, write_tracks

    assert own.points is not None
    points, table = own.points, session.out / f"{own.clip.name}_tracks.csv"
    notes = [
        f"Tracks of {len(set(points[:, 0]))} points are in {table}, over the video in {table.with_suffix('.mp4')}. "
        f"Each goes to the most similar patch of a frame; it is called hidden (a ring) where that patch leads back to "
        f"farther than {100 * HIDDEN_SHARE:.0f} % of the short side."
    ]

    def write() -> None:
        if not table.is_file():
            tracked = carry_points(backbone, own.clip, points, config.short_side, batch_size=config.batch_size)
            notes.append(write_tracks(tracked, own.clip, session.folder()))

    session.once(write)
    return Outcome(note="".join(notes))


def _write(backbone: Backbone, own: OwnClip, masks: OwnMasks, config: TrackConfig, session: Session) -> str:
    """Propagate the masks and write all files, unless an earlier run did. Returns a note."""
    from dino_dense.propagation.both_ways import GivenMasks
    from dino_dense.propagation.stream import memory_limit
    from tasks.videos.clip_masks import carry_both_ways, carry_masks, write_masks

    folder = session.folder("masks") / own.clip.name
    if folder.is_dir() and not (config.coco and not (session.out / f"{own.clip.name}_masks.json").is_file()):
        return ""
    budget = memory_limit(config.max_memory, backbone.device)
    if config.direction == "both":
        given = {name: GivenMasks.of(ids) for name, ids in masks.items()}
        carried = carry_both_ways(backbone, own.clip, given, config, max_bytes=budget, batch_size=config.batch_size)
    else:
        carried = carry_masks(backbone, own.clip, masks, config, max_bytes=budget, batch_size=config.batch_size)
    return write_masks(carried, own.clip, folder, session.out, coco=config.coco)


def draw(own: OwnClip, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """The strip that was written with the masks or tracks."""
    kind = "masks" if own.masks is not None else "tracks"
    return (Picture(f"{own.clip.name}_{kind}.jpg", f"{own.clip.name}: first, middle, last frame"),)


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
