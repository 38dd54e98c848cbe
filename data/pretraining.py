"""The training pictures under one index: images and frames of videos below a folder, tar shards, or Parquet files."""

import bisect
import itertools
from collections.abc import Sequence
from pathlib import Path

from data import DataError
from data.files import COMMON_SUFFIXES, IMAGE_SUFFIXES, list_files
from data.images import DecodedPicture, JpegPicture, names_fingerprint, open_picture
from data.parquet import PARQUET_SUFFIX, ParquetImages, is_parquet
from data.remote import is_url, list_urls
from data.shards import TAR_SUFFIX, LocalShard, ShardImages, is_shards, list_shards
from data.video import VIDEO_SUFFIXES, VideoFrames


class PictureFiles(Sequence[JpegPicture | DecodedPicture]):
    """Image files, opened when indexed, with the errors of `open_picture`."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> JpegPicture | DecodedPicture:  # type: ignore[override]
        return open_picture(self.paths[index])

    def name(self, index: int, root: Path) -> str:
        """Name of an image, relative to `root`."""
        return self.paths[index].relative_to(root).as_posix()

    def names(self, root: Path) -> list[str]:
        """One name per image, relative to `root`."""
        return [self.name(index, root) for index in range(len(self))]


class PretrainingImages(Sequence[JpegPicture | DecodedPicture]):
    """Image files, then video frames, under one index."""

    def __init__(self, root: Path, images: PictureFiles, videos: VideoFrames) -> None:
        self.root, self.parts = root, (images, videos)
        self.ends = list(itertools.accumulate(map(len, self.parts)))

    @property
    def fingerprint(self) -> str:
        """Number of pictures and a hash of their names below the root."""
        return names_fingerprint(name for part in self.parts for name in part.names(self.root))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> JpegPicture | DecodedPicture:  # type: ignore[override]
        part, within = self._find(index)
        return self.parts[part][within]

    def name(self, index: int) -> str:
        """Name of a picture, relative to the root."""
        part, within = self._find(index)
        return self.parts[part].name(within, self.root)

    def _find(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"picture {index} of {len(self)}")
        part = bisect.bisect_right(self.ends, index)
        return part, index - (self.ends[part] - len(self.parts[part]))


def open_pretraining_data(
    root: Path | str, frame_stride: int = 1, frames_per_video: int | None = None
) -> PretrainingImages | ShardImages | ParquetImages:
    """Open all training pictures below `root`: images (nested, flat, folders of frames) and video files.

    Args:
        root: a folder, one video file, tar shards (`shards/{000..127}.tar`), or Parquet files of images
            (`data/train-*.parquet`).
        frame_stride, frames_per_video: frames of each video file, see `VideoFrames`.

    Raises:
        FileNotFoundError: no such path.
        DataError: no images or videos, a broken video, a broken shard, or a broken Parquet file.
    """
    if is_url(root):
        return ShardImages(list_urls(str(root)))
    if is_shards(root):
        return ShardImages([LocalShard(path) for path in list_shards(root)])
    if is_parquet(root):
        return ParquetImages(list_shards(root))
    root = Path(root)
    if root.is_file() and root.suffix.lower() in VIDEO_SUFFIXES:
        return PretrainingImages(root.parent, PictureFiles([]), VideoFrames([root], frame_stride, frames_per_video))
    if (root / "Annotations").is_dir() and (root / "JPEGImages").is_dir():
        raise DataError(f"{root}: a DAVIS or VOC tree: its masks are no training pictures. Use {root}/JPEGImages.")
    files = list_files(root, IMAGE_SUFFIXES | VIDEO_SUFFIXES)
    if not files:
        for suffix in (TAR_SUFFIX, PARQUET_SUFFIX):
            if any(root.glob(f"*{suffix}")):
                raise DataError(f"{root}: {suffix[1:]} files in it. Name them by a pattern: '{root}/*{suffix}'.")
        endings = ", ".join([*COMMON_SUFFIXES, *sorted(VIDEO_SUFFIXES)])
        raise DataError(f"{root}: no images or videos in it. Expected files ending in {endings}, ....")
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES - IMAGE_SUFFIXES]
    images = [path for path in files if path.suffix.lower() not in VIDEO_SUFFIXES - IMAGE_SUFFIXES]
    return PretrainingImages(root, PictureFiles(images), VideoFrames(videos, frame_stride, frames_per_video))
