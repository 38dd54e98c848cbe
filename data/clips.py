"""A person's own video: read as a stream, frame after frame, and written as an mp4 that browsers play.

Nothing here grows with the length of a video but lists of numbers.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import av
import decord
import numpy as np
import numpy.typing as npt
from PIL import Image

from data import DataError
from data.davis import PALETTE, VOID_ID
from data.images import IMAGE_SUFFIXES, list_images, read_upright
from data.video import VIDEO_SUFFIXES, open_video, reason_of, rgb_of

Pixels = npt.NDArray[np.uint8]

FOLDER_RATE = Fraction(24)
"""Frames a second of a folder of frames, which has none of its own (DAVIS shows its videos at 24)."""
ENCODERS = ("libx264", "libopenh264", "h264_videotoolbox", "mpeg4")
"""Video encoders in the order they are tried; all but the last make H.264. PyAV's wheels have libx264."""
SEEK_FROM = 50
"""Frames further apart than this are sought, not decoded one after another."""
QUALITY = {"crf": "20", "preset": "veryfast"}  # libx264: visually near the source; a tenth of the default's time
LARGEST_DENOMINATOR = 1001  # of a frame rate: 30000/1001 (NTSC)
FINEST_TICK = 10_000  # ticks a second at least: times of a variable frame rate come to 0.1 ms


class VideoWriteError(OSError):
    """A video that cannot be written. The message names it and says why."""

    exit_status = 1


class ClipFrame(NamedTuple):
    """One frame of a clip."""

    name: str
    """Its number in the source, five digits or more, or the name of its file without ending."""
    seconds: float
    """When it is shown."""
    rgb: Pixels
    """[H, W, 3]."""


@dataclass(frozen=True)
class Clip:
    """A video file, or a folder of pictures in the order of their names.

    Attributes:
        path: the file or folder.
        size: (height, width) in pixels, as shown.
        rate: frames a second; the mean, where it varies.
        n_frames: how many there are, before `every` and `max_frames`.
        every: only every n-th frame.
        max_frames: at most this many of those.
        pictures: the files, where it is a folder.
    """

    path: Path
    size: tuple[int, int]
    rate: Fraction
    n_frames: int
    every: int = 1
    max_frames: int | None = None
    pictures: tuple[Path, ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """Of the file or folder, without ending."""
        return self.path.name if self.pictures else self.path.stem

    @property
    def places(self) -> range:
        """Which frames of the source are read."""
        places = range(0, self.n_frames, self.every)
        return places if self.max_frames is None else places[: self.max_frames]

    def __len__(self) -> int:
        return len(self.places)

    def frame_name(self, place: int) -> str:
        """Name of the frame at a place of the source."""
        return self.pictures[place].stem if self.pictures else f"{place:05d}"

    @property
    def shown_rate(self) -> Fraction:
        """Frames a second of what is read, so that it lasts as long as the source."""
        return self.rate / self.every

    def __iter__(self) -> Iterator[ClipFrame]:
        """The frames, in order; only the current one is held.

        Raises:
            DataError: a frame that cannot be decoded, or of another size than the first.
        """
        read = self._read_pictures() if self.pictures else self._decode()
        for place, seconds, rgb in read:
            if rgb.shape[:2] != self.size:
                raise DataError(
                    f"{self._where(place)}: {rgb.shape[0]}x{rgb.shape[1]} pixels (height x width), but the first "
                    f"frame has {self.size[0]}x{self.size[1]}; all frames must have one size"
                )
            yield ClipFrame(self.frame_name(place), seconds, rgb)

    def _where(self, place: int) -> str:
        return str(self.pictures[place]) if self.pictures else f"{self.path}, frame {place}"

    def _read_pictures(self) -> Iterator[tuple[int, float, Pixels]]:
        for place in self.places:
            yield place, float(place / self.rate), read_upright(self.pictures[place])

    def _decode(self) -> Iterator[tuple[int, float, Pixels]]:
        """In order, by PyAV, one at a time: decord reads on while one waits, and may hold a whole film decoded.

        decord has the times, and the frames that lie far apart, where it seeks; also those that PyAV does not come to,
        as in a damaged file, of which it says more.
        """
        reader = open_video(self.path)
        places, done = list(self.places), -1
        if self.every < SEEK_FROM:
            for place, rgb in zip(places, _stream(self.path, self.every), strict=False):
                yield place, float(reader.get_frame_timestamp(place)[0]), rgb
                done = place
            places = [place for place in places if place > done]
        for place in places:
            try:
                seconds, rgb = float(reader.get_frame_timestamp(place)[0]), rgb_of(reader[place])
            except (decord.DECORDError, IndexError, RuntimeError) as error:
                raise DataError(
                    f"{self.path}: frame {place} of {self.n_frames} cannot be decoded ({reason_of(error)}). The file "
                    "is cut short or damaged: copy it again, or take only the frames before (--max-frames)."
                ) from None
            yield place, seconds, rgb


def _stream(path: Path, every: int) -> Iterator[Pixels]:
    """Every n-th frame of a video as RGB [H, W, 3], upright, until its end or one that cannot be decoded."""
    with contextlib.suppress(av.FFmpegError), av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index % every == 0:
                yield np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)


def open_clip(path: Path | str, *, every: int = 1, max_frames: int | None = None) -> Clip:
    """A video file, or a folder of frames (pictures in natural order of their names).

    Args:
        every: only every n-th frame; the rate falls with it, so that it lasts as long.
        max_frames: at most this many.

    Raises:
        FileNotFoundError: no such file or folder.
        DataError: a file that is no video, has no picture stream or no frames, or a folder without pictures or with
            two of one name.
        ValueError: `every` or `max_frames` below 1.
    """
    path = named(path)
    for name, value in (("every", every), ("max_frames", max_frames)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}: expected 1 or more")
    if path.is_dir():
        pictures = tuple(list_images(path))
        _check_names(pictures)
        height, width = read_upright(pictures[0]).shape[:2]
        return Clip(path, (height, width), FOLDER_RATE, len(pictures), every, max_frames, pictures)
    if path.is_file() and path.suffix.lower() in IMAGE_SUFFIXES:
        raise DataError(f"{path}: a picture, expected a video or a folder of frames.")
    reader = open_video(path)
    try:
        height, width = rgb_of(reader[0]).shape[:2]
    except (decord.DECORDError, IndexError, RuntimeError) as error:
        raise DataError(
            f"{path}: its first frame cannot be decoded ({reason_of(error)}). Replace or remove it."
        ) from None
    rate = Fraction(reader.get_avg_fps()).limit_denominator(LARGEST_DENOMINATOR)
    return Clip(path, (height, width), rate or FOLDER_RATE, len(reader), every, max_frames)


def named(path: Path | str) -> Path:
    """The path; that of a folder given as `.` or `..`, which is no name, in full."""
    path = Path(path)
    return path if path.name not in ("", "..") else path.resolve()


def _check_names(pictures: Sequence[Path]) -> None:
    """DataError for two frames of one name: their masks would be one file."""
    by_stem: dict[str, Path] = {}
    for picture in pictures:
        other = by_stem.setdefault(picture.stem, picture)
        if other is not picture:
            raise DataError(
                f"{other} and {picture}: two frames of one name. Expected the frames of one clip, each with its own "
                "name, and nothing else in the folder: no masks, and no second clip."
            )


def is_video(path: Path) -> bool:
    """Whether a file's name ends as a video's does."""
    return path.suffix.lower() in VIDEO_SUFFIXES


class VideoWriter:
    """Writes RGB frames to an mp4, each at its own time; the file is whole or not there.

    H.264 in yuv420p, which browsers play; its sides are even, so an odd one gets one more row or column of the same
    colours. Without an H.264 encoder it is MPEG-4 part 2, and `note` says so.

    Args:
        path: the file.
        size: (height, width) of the frames, pixels.
        rate: frames a second (the mean, where it varies).
    """

    def __init__(self, path: Path, size: tuple[int, int], rate: Fraction) -> None:
        self.path, self.size, self.count = path, size, 0
        self.encoder = next(name for name in ENCODERS if name in av.codecs_available and _can_encode(name))
        self._unfinished = path.with_name(f".{path.stem}.unfinished.mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Ticks that hold times of constant rates exactly: a multiple of the rate's numerator.
        self._tick = Fraction(1, rate.numerator * -(-FINEST_TICK // rate.numerator))
        self._container = av.open(str(self._unfinished), "w", options={"movflags": "faststart"})
        stream = self._container.add_stream(self.encoder, rate=rate, options=self._options())
        assert isinstance(stream, av.VideoStream)
        self._stream = stream
        self._stream.height, self._stream.width = size[0] + size[0] % 2, size[1] + size[1] % 2
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = self._tick
        self._frame_ticks, self._last = max(1, round(1 / rate / self._tick)), -1

    def _options(self) -> dict[str, str]:
        return QUALITY if self.encoder == "libx264" else {}

    @property
    def note(self) -> str:
        """What a reader must know of the file; "" where browsers play it."""
        if self.encoder != "mpeg4":
            return ""
        return f"{self.path.name} is MPEG-4 part 2, which browsers do not play: PyAV has no H.264 encoder here."

    def add(self, rgb: Pixels, seconds: float) -> None:
        """Write a frame [H, W, 3] shown from `seconds` on, which never goes back.

        Raises:
            ValueError: a frame of another size.
            VideoWriteError: the disk is full, or the file cannot be written for another reason.
        """
        if rgb.shape != (*self.size, 3):
            raise ValueError(f"{self.path}: a frame {rgb.shape}, expected {(*self.size, 3)}")
        odd = self.size[0] % 2, self.size[1] % 2
        if any(odd):
            rgb = np.pad(rgb, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        frame.pts = max(self._last + 1, round(seconds / self._tick))
        frame.time_base, frame.duration = self._tick, self._frame_ticks
        self._last, self.count = frame.pts, self.count + 1
        with self._told():
            self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        whole = kind is None and self.count > 0
        try:
            with self._told() if whole else contextlib.suppress(av.FFmpegError):
                try:
                    if whole:
                        self._container.mux(self._stream.encode(None))
                finally:
                    self._container.close()
            if whole:
                self._unfinished.replace(self.path)
        finally:
            self._unfinished.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Errors of FFmpeg as VideoWriteError."""
        try:
            yield
        except av.FFmpegError as error:
            raise VideoWriteError(
                f"{self.path}: cannot be written ({error.strerror}). Free or unlock the disk, or name another folder."
            ) from error


def _can_encode(name: str) -> bool:
    try:
        av.codec.Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def read_painted_mask(path: Path | str, size: tuple[int, int]) -> Pixels:
    """A mask that a person made, as object ids uint8 [H, W].

    Palette or grey values are the ids, as in DAVIS, but for a picture of black and white alone (0, 255), whose white
    is object 1. A colour picture is read by the colours of DAVIS' palette; where it is black (or transparent) and one
    colour that is not of the palette, that is object 1.

    Args:
        size: (height, width) it must have, pixels.

    Raises:
        FileNotFoundError: no such file.
        DataError: not an image, another size, no object, or colours that are no ids.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such mask. Check the path.")
    with contextlib.suppress(OSError), Image.open(path) as image:
        if image.mode in ("P", "L", "1"):
            values: Pixels = np.array(image.convert("L") if image.mode == "1" else image, np.uint8)
            return _checked_ids(values, path, size)
    rgb = _over_black(path)
    colours = np.unique(rgb.reshape(-1, 3), axis=0)
    lit = colours[colours.any(axis=1)]
    known = {tuple(colour): identity for identity, colour in enumerate(PALETTE.tolist())}
    if len(lit) == 1 and tuple(lit[0].tolist()) not in known:
        return _checked_ids(np.asarray(rgb.any(axis=2), np.uint8), path, size)
    if not all(tuple(colour) in known for colour in colours.tolist()):
        raise DataError(
            f"{path}: {len(colours)} colours, which are no object ids. Expected a palette or grey PNG whose values are "
            "ids (0 background), or one flat colour on black, without soft edges."
        )
    ids = np.zeros(rgb.shape[:2], np.uint8)
    for colour in lit.tolist():
        ids[(rgb == colour).all(axis=2)] = known[tuple(colour)]
    return _checked_ids(ids, path, size)


def _over_black(path: Path | str) -> Pixels:
    """RGB [H, W, 3], transparent pixels black."""
    try:
        with Image.open(path) as image:
            if image.has_transparency_data:
                pixels = np.array(image.convert("RGBA"))
                return np.where(pixels[..., 3:] > VOID_ID // 2, pixels[..., :3], 0).astype(np.uint8)
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise DataError(f"{path}: not a mask that can be read ({error}). Replace it.") from None


def _checked_ids(ids: Pixels, path: Path | str, size: tuple[int, int]) -> Pixels:
    if ids.shape != size:
        raise DataError(
            f"{path}: {ids.shape[0]}x{ids.shape[1]} pixels (height x width), but the frames have {size[0]}x{size[1]}. "
            "Paint the mask on a frame at its full size."
        )
    found = np.unique(ids)
    found = found[found > 0]
    if not len(found):
        raise DataError(f"{path}: the mask has no object (all of it is 0). Paint one.")
    if list(found) == [VOID_ID]:
        return (ids > 0).astype(np.uint8)
    if VOID_ID in found:
        raise DataError(
            f"{path}: ids {', '.join(map(str, found))}; {VOID_ID} is void in DAVIS, and no object. Use ids 1, 2, ..."
        )
    return ids
