"""Write videos that browsers play: H.264, with a time for each frame."""

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np

from data.arrays import Pixels

ENCODERS = ("libx264", "libopenh264", "h264_videotoolbox", "mpeg4")
"""Video encoders in the order of preference; all but the last write H.264. PyAV's wheels have libx264."""


QUALITY = {"crf": "20", "preset": "veryfast"}  # libx264: visually near the source; a tenth of the default's time


FINEST_TICK = 10_000  # smallest number of ticks per second: 0.1 ms resolution for variable frame rates


class VideoWriteError(OSError):
    """A video that cannot be written. The message names the file and the reason."""

    exit_status = 1


class VideoWriter:
    """Writes RGB frames with times to an mp4, atomically.

    The format is H.264 in yuv420p, which browsers play. It needs even sides, so the last row or column of an odd side
    is repeated. Without an H.264 encoder the format is MPEG-4 part 2, and `note` says so.

    Args:
        path: the file.
        size: (height, width) of the frames, pixels.
        rate: frames per second (the mean of a variable rate).
    """

    def __init__(self, path: Path, size: tuple[int, int], rate: Fraction) -> None:
        self.path, self.size, self.count = path, size, 0
        self.encoder = next(name for name in ENCODERS if name in av.codecs_available and can_encode(name))
        self._unfinished = path.with_name(f".{path.stem}.unfinished.mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        # A multiple of the rate's numerator represents times of a constant rate exactly.
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
        """A note if browsers do not play the file, else ""."""
        if self.encoder != "mpeg4":
            return ""
        return f"{self.path.name} is MPEG-4 part 2, which browsers do not play: PyAV has no H.264 encoder here."

    def add(self, rgb: Pixels, seconds: float) -> None:
        """Write a frame [H, W, 3] displayed from `seconds` on; times must ascend.

        Raises:
            ValueError: the frame has another size.
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
        """Convert errors of FFmpeg to VideoWriteError."""
        try:
            yield
        except av.FFmpegError as error:
            raise VideoWriteError(
                f"{self.path}: cannot be written ({error.strerror}). Free or unlock the disk, or name another folder."
            ) from error


def can_encode(name: str) -> bool:
    try:
        av.codec.Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True
