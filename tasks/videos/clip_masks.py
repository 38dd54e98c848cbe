"""Propagate the masks of a user's clip along its frames, and write them with an overlay video.

Memory does not grow with the length of the clip: frames are streamed.

Shapes: H x W pixels of a frame.
"""

import itertools
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data import DataError
from data.clips import Clip
from data.files import IMAGE_SUFFIXES, list_files
from data.mask_json import is_json, json_frames
from data.masks import write_mask
from data.video_writer import VideoWriter
from dino_dense import Backbone
from dino_dense.arrays import Pixels
from dino_dense.pipeline import BackgroundCalls
from dino_dense.progress import progress
from dino_dense.propagation.both_ways import BothWays, GivenMasks
from dino_dense.propagation.protocol import PropagationProtocol
from dino_dense.propagation.stream import DEFAULT_MAX_BYTES
from dino_dense.propagation.video import Frame, VideoPropagator
from tasks.harness import figures
from tasks.videos.coco import CocoWriter

BACKLOG = 4  # frames that wait to be written
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class NamedFrame(Frame):
    """A frame of a clip."""

    name: str = ""
    """As `ClipFrame.name`; also the name of the mask file, without suffix."""
    seconds: float = 0.0
    """Display time."""


Seen = Callable[[NamedFrame, Pixels, int, int], None]


def find_masks(path: Path | str, clip: Clip, *, first: bool = True) -> dict[str, Path]:
    """The mask files of a clip by frame name: one file (for the first frame), or a folder of masks.

    In a folder, a mask has the name of its frame; for a video file, its number with or without leading zeros. The same
    holds for the images of a COCO file with several images.

    Args:
        first: whether a folder must have a mask of the first frame.

    Raises:
        FileNotFoundError: no such file or folder.
        DataError: a mask belongs to no used frame, the first frame has no mask, or a mask is among the frames.
    """
    path = Path(path)
    read = [clip.frame_name(index) for index in clip.indices]
    if path.is_dir():
        suffixes = IMAGE_SUFFIXES | {".json", ".gif"}
        masks = _by_frame({file.stem: file for file in list_files(path, suffixes)}, path, clip, read)
    elif is_json(path) and (frames_of := json_frames(path)):
        masks = _by_frame({Path(name).stem: path for name in frames_of}, path, clip, read)
    else:
        masks = {read[0]: path}
    if read[0] not in masks and (first or not masks):
        raise DataError(
            f"{path}: no mask of the first frame; expected {read[0]}.png, found {', '.join(sorted(masks)) or 'none'}. "
            "Add it, or carry masks back from later frames (--direction both)."
        )
    frames = {picture.resolve() for picture in clip.pictures}
    for mask in masks.values():
        if mask.resolve() in frames:
            raise DataError(f"{mask}: the mask is in the folder of the frames, as one of them. Keep it elsewhere.")
    return masks


def _by_frame(files: Mapping[str, Path], source: Path, clip: Clip, read: list[str]) -> dict[str, Path]:
    """Masks by the clip's frame names."""
    masks: dict[str, Path] = {}
    for stem, file in files.items():
        name = f"{int(stem):05d}" if not clip.pictures and stem.isdecimal() else stem
        if name not in read:
            raise DataError(
                f"{file}: a mask of no frame that is read ({stem}); the frames are named {read[0]} to {read[-1]}"
                f"{f', every {clip.every}' if clip.every > 1 else ''}. Rename or remove it."
            )
        masks[name] = file
    return masks


def carry_masks(
    backbone: Backbone,
    clip: Clip,
    masks: Mapping[str, Pixels],
    protocol: PropagationProtocol,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    batch_size: int | None = None,
) -> Generator[tuple[NamedFrame, Pixels]]:
    """Yield every frame of a clip with its ids uint8 [H, W], which are the ids of the given masks.

    Args:
        masks: ids [H, W] of the first frame, and optionally of later frames, by frame name (`data.own_masks.OwnMasks`).
            The background of a later mask keeps the propagated ids.
        protocol: the constants of the propagation.
        max_bytes, batch_size: see `VideoPropagator`.

    Raises:
        DataError: a frame or mask is unusable.
        ValueError: `max_bytes` is too small.
    """
    objects = {int(value) for mask in masks.values() for value in np.unique(mask) if value > 0}

    def frames() -> Iterator[NamedFrame]:
        for frame in clip:
            yield NamedFrame(frame.rgb, masks.get(frame.name), frame.name, frame.seconds)

    propagator = VideoPropagator(
        backbone, protocol, clip.size, sorted(objects), max_bytes=max_bytes, batch_size=batch_size
    )
    yield from propagator.run(frames())


def carry_both_ways(
    backbone: Backbone,
    clip: Clip,
    given: Mapping[str, GivenMasks],
    protocol: PropagationProtocol,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
    batch_size: int | None = None,
    seen: Seen | None = None,
) -> Generator[tuple[NamedFrame, Pixels]]:
    """Yield every frame of a clip with its ids uint8 [H, W], carried forward and backward from masks on any frames.

    The rule is that of `dino_dense.propagation.both_ways`.

    Args:
        given: masks by frame name.
        max_bytes, batch_size: see `VideoPropagator`.
        seen: called with (frame, ids, frames done, total frames) for each frame of the backward pass, which comes
            first; default: a progress bar.

    Raises:
        DataError: a frame is unusable.
        ValueError: nothing is given, a mask belongs to no frame of the clip, or `max_bytes` is too small.
    """
    positions = {clip.frame_name(index): position for position, index in enumerate(clip.indices)}
    for name in given:
        if name not in positions:
            raise ValueError(f"a mask of frame {name}, which is not used with every n-th frame, n = {clip.every}")

    def frames(wanted: range) -> Iterator[NamedFrame]:
        at = clip.indices
        indices = range(at.start + at.step * wanted.start, at.start + at.step * wanted.stop, at.step * wanted.step)
        for frame in clip.frames(indices):
            yield NamedFrame(frame.rgb, None, frame.name, frame.seconds)

    objects = sorted(frozenset[int]().union(*(masks.objects for masks in given.values())))
    propagator = VideoPropagator(backbone, protocol, clip.size, objects, max_bytes=max_bytes, batch_size=batch_size)
    work = BothWays(propagator, frames, len(clip), {positions[name]: masks for name, masks in given.items()})
    total = len(work.backward)
    with ExitStack() as stack:
        tell = _backward_bar(stack, clip, total) if seen is None and total else seen
        counted = itertools.count(1)
        yield from work.run(lambda frame, ids: tell(frame, ids, next(counted), total) if tell else None)


def _backward_bar(stack: ExitStack, clip: Clip, total: int) -> Seen:
    bar = stack.enter_context(progress(total, unit="frame", desc=f"{clip.name} backward"))
    return lambda frame, ids, done, total: bar.update()


def write_masks(
    carried: Iterator[tuple[NamedFrame, Pixels]],
    clip: Clip,
    folder: Path,
    out: Path,
    *,
    coco: bool = False,
    tell: Tell | None = None,
) -> str:
    """Write FOLDER/FRAME.png, and OUT/NAME_masks.mp4, .jpg (first, middle, last frame) and, with `coco`, .json.

    All files or none: the folder is renamed when all files are written. It replaces an existing folder with only PNGs,
    from an earlier call. Files are written in the background while the next frames propagate.

    Args:
        tell: called with (frames done, total frames) after each frame; default: a progress bar.

    Returns:
        A note on the mp4.

    Raises:
        ValueError: the folder has other files, or a frame of the clip; nothing is written then.
        OSError: a file cannot be written.
    """
    _check_replaceable(folder, clip)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    strip: list[tuple[Pixels, Pixels]] = []
    try:
        with ExitStack() as stack:
            film = stack.enter_context(VideoWriter(out / f"{clip.name}_masks.mp4", clip.size, clip.shown_rate))
            runs = stack.enter_context(CocoWriter(out / f"{clip.name}_masks.json", clip.size)) if coco else None
            behind = stack.enter_context(BackgroundCalls(workers=1, backlog=BACKLOG))
            done = tell or _bar(stack, clip)
            shown = {0, (len(clip) - 1) // 2, len(clip) - 1}
            for number, (frame, ids) in enumerate(carried):
                behind.submit(_write, frame, ids, unfinished, film, runs)
                if number in shown:
                    strip.append((frame.rgb, ids))
                done(number + 1, len(clip))
        figures.mask_strip(out / f"{clip.name}_masks.jpg", strip)
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return f" {film.note}" if film.note else ""


def _write(frame: NamedFrame, ids: Pixels, folder: Path, film: VideoWriter, runs: CocoWriter | None) -> None:
    """Runs in a worker thread: avoid torch here, it would start its own thread pool."""
    write_mask(folder / f"{frame.name}.png", ids)
    film.add(figures.overlay(frame.rgb, ids), frame.seconds)
    if runs is not None:
        runs.add(f"{frame.name}.png", ids)


def _bar(stack: ExitStack, clip: Clip) -> Tell:
    bar = stack.enter_context(progress(len(clip), unit="frame", desc=clip.name))
    return lambda done, total: bar.update()


def _check_replaceable(folder: Path, clip: Clip) -> None:
    """Raise ValueError if replacing the folder would delete other files."""
    if not folder.exists():
        return
    frames = {picture.resolve() for picture in clip.pictures}
    for path in folder.iterdir():
        if path.suffix != ".png" or path.resolve() in frames or path.is_dir():
            raise ValueError(f"{path}: masks are to go to {folder}, and would replace it. Choose another folder.")
