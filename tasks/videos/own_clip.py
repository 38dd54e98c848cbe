"""A person's own video: masks of its first frame, and of later ones, carried along a stream of frames.

Memory does not grow with the length of the video: frames are decoded, measured, written and forgotten.

Shapes: H x W pixels of a frame, h x w patch grid, C label channels (0 is background).
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data import DataError
from data.clips import Clip, ClipFrame, open_clip
from data.images import list_images
from data.masks import write_mask
from data.painted_masks import read_painted_mask
from data.rle import encode_mask
from data.video_writer import VideoWriter
from dino_dense import Backbone, Picture
from dino_dense import progress as bars
from dino_dense.arrays import Pixels
from dino_dense.config import schema
from dino_dense.propagation.frames import frame_size, resize_frame, to_float
from dino_dense.propagation.labels import decode_labels, encode_labels
from dino_dense.propagation.protocol import LabelEncoding, PropagationProtocol
from dino_dense.propagation.stream import DEFAULT_MAX_BYTES, plan_memory, propagate_stream
from tasks.harness import figures
from tasks.harness.context import Context, DataFacts
from tasks.harness.task import Outcome, file_list_hash


@dataclass(frozen=True)
class OwnVideoConfig(PropagationProtocol):
    """Your own video, instead of a data set"""

    video: str | None = schema.path()
    """A video file, or a folder of frames. Masks go to masks/NAME/FRAME.png, and over the video into
    NAME_masks.mp4."""
    mask: str | None = schema.path()
    """Mask of its first frame; or a folder of masks named as the frames (of a video file by number: 00000.png), for
    objects that enter later. Values are ids; white on black is object 1."""
    every: int = schema.selects(1)
    """Of your own video, only every n-th frame."""
    coco: bool = schema.runtime(False)
    """Of your own video, write NAME_masks.json too: in COCO's format, run-length encoded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.video is None) != (self.mask is None):
            given, lacking = ("mask", "video") if self.video is None else ("video", "mask")
            raise ValueError(f"--{given} needs --{lacking} too")
        if self.every < 1:
            raise ValueError(f"every is {self.every}: expected 1 or more")
        if self.video is None and (self.every > 1 or self.coco):
            raise ValueError("--every and --coco are for your own --video")


class MaskedFrame(NamedTuple):
    """One frame of a video with its masks."""

    frame: ClipFrame
    ids: Pixels
    """[H, W], 0 where there is no object."""


def find_masks(path: Path | str, clip: Clip) -> dict[str, Path]:
    """The mask files of a clip by the names of their frames: one file (of the first frame), or a folder of them.

    In a folder, a mask is named as its frame, or of a video file by its number with or without leading zeros.

    Raises:
        FileNotFoundError: no such file or folder.
        DataError: a mask of no frame that is read, or none of the first.
    """
    path = Path(path)
    read = [clip.frame_name(place) for place in clip.places]
    if not path.is_dir():
        return {read[0]: path}
    found: dict[str, Path] = {}
    known = set(read)
    for file in list_images(path):
        name = f"{int(file.stem):05d}" if not clip.pictures and file.stem.isdecimal() else file.stem
        if name not in known:
            raise DataError(
                f"{file}: a mask of no frame that is read; those are named {read[0]} to {read[-1]}"
                f"{f', every {clip.every}' if clip.every > 1 else ''}. Rename or remove it."
            )
        found[name] = file
    if read[0] not in found:
        raise DataError(f"{path}: no mask of the first frame; expected {read[0]}.png, found {', '.join(sorted(found))}")
    return found


def carry_masks(
    backbone: Backbone,
    clip: Clip,
    masks: Mapping[str, Path | Pixels],
    protocol: PropagationProtocol,
    *,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Iterator[MaskedFrame]:
    """Every frame of a clip with its masks at its own size; ids are those of the masks given.

    Args:
        masks: of the first frame, and of any later ones: files (`read_painted_mask`) or ids [H, W], by the frame's
            name. What a later mask does not mark stays as propagated (`propagate_stream`).
        protocol: the constants of the propagation.
        max_bytes: memory that propagation may take (`plan_memory`); the result does not depend on it.

    Raises:
        DataError: a frame or mask cannot be used.
        ValueError: `max_bytes` does not suffice.
    """
    ids = np.unique(np.concatenate([[0], *(np.unique(_ids_of(mask, clip.size)) for mask in masks.values())]))
    patch = backbone.patch_size
    size = frame_size(*clip.size, short_side=protocol.short_side, rounding=protocol.rounding, patch_size=patch)
    grid = size[0] // patch, size[1] // patch
    on_cpu = backbone.device.type == "cpu"
    memory = plan_memory((backbone.embed_dim, *grid), len(ids), protocol, max_bytes, on_cpu=on_cpu)
    waiting: list[tuple[ClipFrame, Pixels | None]] = []

    def measured() -> Iterator[tuple[Tensor, Tensor | None]]:
        for frame in clip:
            mask = _ids_of(masks[frame.name], clip.size) if frame.name in masks else None
            waiting.append((frame, mask))
            pixels = torch.from_numpy(resize_frame(frame.rgb, size, protocol.interpolation))
            patches = backbone.extract(to_float(pixels)[None]).patches
            assert patches is not None
            labels = None if mask is None else _encode(mask, ids, grid, protocol.label_encoding)
            yield patches[0], labels

    for number, scores in enumerate(propagate_stream(measured(), protocol, max_bytes=max_bytes - memory.context)):
        frame, mask = waiting.pop()
        if number == 0:
            assert mask is not None
            yield MaskedFrame(frame, mask)
            continue
        places = decode_labels(scores, patch, clip.size, protocol.upsample, protocol.normalise, protocol.upsample_to)
        found = ids[places].astype(np.uint8)
        yield MaskedFrame(frame, found if mask is None else np.where(mask > 0, mask, found))


def _ids_of(mask: Path | Pixels, size: tuple[int, int]) -> Pixels:
    return mask if isinstance(mask, np.ndarray) else read_painted_mask(mask, size)


def _encode(mask: Pixels, ids: npt.NDArray[Any], grid: tuple[int, int], method: LabelEncoding) -> Tensor:
    """Ids [H, W] as labels [C, h, w]: a channel for each of `ids`, which may have gaps."""
    channels: Pixels = np.asarray(np.searchsorted(ids, mask), np.uint8)
    return encode_labels(channels, grid, len(ids) - 1, method)


class CocoWriter:
    """Masks as COCO's JSON, written as they come: an annotation an object and frame, `category_id` its id."""

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        self.path, self.size = path, size
        self._unfinished = path.with_name(f".{path.name}.unfinished")
        self._file: TextIO = self._unfinished.open("w")
        self._images: list[str] = []
        self._categories: set[int] = set()
        self._count = 0
        self._file.write('{"annotations": [')

    def add(self, name: str, ids: Pixels) -> None:
        """The masks of the next frame, ids [H, W]; `name` is its file's."""
        self._images.append(name)
        for identity in np.unique(ids[ids > 0]).tolist():
            mask = ids == identity
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            box = [columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1]
            self._file.write(",\n" if self._count else "\n")
            self._count += 1
            self._categories.add(identity)
            record = {
                "id": self._count,
                "image_id": len(self._images),
                "category_id": identity,
                "segmentation": encode_mask(mask),
                "bbox": [int(value) for value in box],
                "area": int(mask.sum()),
                "iscrowd": 0,
            }
            self._file.write(json.dumps(record))

    def close(self, *, whole: bool) -> None:
        """Finish the file, or leave none behind where the masks did not come to their end."""
        height, width = self.size
        images = [
            {"id": number, "file_name": name, "height": height, "width": width}
            for number, name in enumerate(self._images, 1)
        ]
        categories = [{"id": identity, "name": f"object {identity}"} for identity in sorted(self._categories)]
        self._file.write(f'],\n"images": {json.dumps(images)},\n"categories": {json.dumps(categories)}}}\n')
        self._file.close()
        if whole:
            self._unfinished.replace(self.path)
        self._unfinished.unlink(missing_ok=True)


def run(
    backbone: Backbone, config: OwnVideoConfig, context: Context, *, max_frames: int | None, max_bytes: int
) -> Outcome:
    """Masks of an own video: PNGs, the overlay as mp4, COCO's JSON on request. There is nothing to score."""
    assert config.video is not None
    assert config.mask is not None
    clip = open_clip(config.video, every=config.every, max_frames=max_frames)
    masks = find_masks(config.mask, clip)
    frames = {picture.resolve() for picture in clip.pictures}
    if among := [path for path in masks.values() if path.resolve() in frames]:
        raise DataError(f"{among[0]}: the mask is in the folder of the frames, as one of them. Keep it elsewhere.")
    for path in masks.values():
        read_painted_mask(path, clip.size)
    files = [*(clip.pictures or [clip.path]), *masks.values()]
    facts = DataFacts(
        name=f"own video {clip.path.name}",
        root=str(clip.path),
        n=len(clip),
        unit="frames",
        sha256=file_list_hash(clip.path.parent, files),
    )
    context.bind(facts)
    film = context.out / f"{clip.name}_masks.mp4"
    note = f"Masks are in {context.out / 'masks' / clip.name}, over the video in {film}."
    if not context.world.is_main:  # one stream, one process
        return Outcome((), facts)
    folder = context.folder("masks") / clip.name
    if not folder.is_dir():
        carried = carry_masks(backbone, clip, masks, config, max_bytes=max_bytes)
        note += write_masks(carried, clip, folder, context.out, coco=config.coco)
    strip = Picture(f"{clip.name}_masks.jpg", f"{clip.name}: first, middle, last frame")
    return Outcome((), facts, note=note, pictures=(strip,))


def write_masks(
    carried: Iterator[MaskedFrame], clip: Clip, folder: Path, out: Path, *, coco: bool = False, progress: Any = None
) -> str:
    """Write FOLDER/FRAME.png, and OUT/NAME_masks.mp4, .jpg (first, middle, last frame) and, with `coco`, .json.

    All of it or nothing: the folder is renamed into place when all is written. One that holds nothing but PNGs, as
    a call before left it, is replaced.

    Args:
        progress: called with (frames done, frames in all) after each.

    Returns:
        What a reader must know of the mp4.

    Raises:
        ValueError: something else is in the folder, or a frame of the clip: then nothing is written.
        OSError: a file cannot be written.
    """
    _check_replaceable(folder, clip)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    out.mkdir(parents=True, exist_ok=True)
    runs = CocoWriter(out / f"{clip.name}_masks.json", clip.size) if coco else None
    shown = {0, (len(clip) - 1) // 2, len(clip) - 1}
    strip: list[tuple[Pixels, Pixels]] = []
    whole = False
    try:
        with (
            VideoWriter(out / f"{clip.name}_masks.mp4", clip.size, clip.shown_rate) as video,
            bars.progress(len(clip), unit="frame", desc=clip.name, disable=progress is not None) as bar,
        ):
            for number, (frame, ids) in enumerate(carried):
                write_mask(unfinished / f"{frame.name}.png", ids)
                video.add(figures.overlay(frame.rgb, ids), frame.seconds)
                if runs is not None:
                    runs.add(f"{frame.name}.png", ids)
                if number in shown:
                    strip.append((frame.rgb, ids))
                bar.update()
                if progress is not None:
                    progress(number + 1, len(clip))
        figures.mask_strip(out / f"{clip.name}_masks.jpg", strip)
        whole = True
    finally:
        if runs is not None:
            runs.close(whole=whole)
        if not whole:
            shutil.rmtree(unfinished, ignore_errors=True)
    if folder.exists():
        shutil.rmtree(folder)
    unfinished.rename(folder)
    return f" {video.note}" if video.note else ""


def _check_replaceable(folder: Path, clip: Clip) -> None:
    """ValueError where the folder holds what nobody asked to lose."""
    if not folder.exists():
        return
    frames = {picture.resolve() for picture in clip.pictures}
    for path in folder.iterdir():
        if path.suffix != ".png" or path.resolve() in frames or path.is_dir():
            raise ValueError(f"{path}: masks are to go to {folder}, and would replace it. Choose another folder.")


def at_resolution(config: OwnVideoConfig, resolution: str, default: str) -> OwnVideoConfig:
    """The config with the short side that `resolution` says (480p, 720), unless it is the default.

    Raises:
        ValueError: no number of pixels.
    """
    if resolution == default:
        return config
    digits = resolution.removesuffix("p")
    if not digits.isdecimal() or int(digits) < 1:
        raise ValueError(f"resolution is {resolution}: of your own video, expected pixels of the short side, as 480")
    return dataclasses.replace(config, short_side=int(digits))
