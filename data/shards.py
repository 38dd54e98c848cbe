"""Images in tar shards, under one index: each is read alone, from its place in its shard.

An index instead of a stream: the order of an epoch is then a permutation of all images, as for a folder, whatever the
number of processes and workers, and a run resumes at the exact image. A stream's shuffle buffer would depend on them.
"""

import itertools
import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from os.path import commonpath
from pathlib import Path, PurePath
from typing import Any, NamedTuple, Protocol, cast

from data import DataError
from data.files import IMAGE_SUFFIXES, natural_key
from data.images import DecodedPicture, JpegPicture, names_fingerprint, picture_of

TAR_SUFFIX = ".tar"
BLOCK = 512
"""Bytes of a header, and of each of the two blocks of zeros at the end of an archive (POSIX, pax)."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


class Member(NamedTuple):
    """An image in a shard."""

    name: str
    offset: int
    """First byte of its content in the shard."""
    size: int
    """Bytes."""


def is_shards(root: Path | str) -> bool:
    """Whether `root` names tar files: `x.tar`, or a pattern such as `shards/{000..127}.tar`."""
    return str(root).endswith(TAR_SUFFIX) and not Path(root).is_dir()


def expand_braces(pattern: str) -> list[str]:
    """`a{00..02}.tar` -> a00.tar, a01.tar, a02.tar; `{a,b}.tar` -> a.tar, b.tar. Zeros in front are kept."""
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    if bounds := _RANGE.fullmatch(match[1]):
        first, last = bounds.groups()
        inside = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    else:
        inside = match[1].split(",")
    return [
        whole for part in inside for whole in expand_braces(pattern[: match.start()] + part + pattern[match.end() :])
    ]


def list_shards(pattern: Path | str) -> list[Path]:
    """The shards of a pattern, in its order: braces anywhere, wildcards in the name of the file.

    Raises:
        FileNotFoundError: a shard of the pattern is missing; the message names the first missing shards.
        DataError: the pattern names no shard.
    """
    paths: list[Path] = []
    for name in expand_braces(str(pattern)):
        path = Path(name)
        paths += sorted(path.parent.glob(path.name), key=natural_key) if set(path.name) & set("*?[") else [path]
    if not paths:
        range_of = "{000..127}" + Path(pattern).suffix
        raise DataError(f"{pattern}: no file has such a name. Check the path, or write a range: {range_of}.")
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        some = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise FileNotFoundError(
            f"{pattern}: {len(missing)} of {len(paths)} shards are missing: {some}. Restore them, or shorten the range."
        )
    return paths


class Shard(Protocol):
    """A tar file, here or on a server. Its text names it in messages."""

    @property
    def place(self) -> PurePath:
        """Its path."""

    @property
    def size(self) -> int:
        """Bytes."""

    def members(self) -> list[Member]:
        """The images in it, with the errors of `index_archive`."""

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the shard; fewer at its end."""


class LocalShard:
    """A tar file on a disk."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __str__(self) -> str:
        return str(self.place)

    @property
    def size(self) -> int:
        """Bytes."""
        return self.place.stat().st_size

    def members(self) -> list[Member]:
        """The images in it, with the errors of `index_archive`."""
        with self.place.open("rb") as file:
            return index_archive(self, file, goes_back=True)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the shard; fewer at its end."""
        with self.place.open("rb", buffering=0) as file:
            file.seek(offset)
            return file.read(size)


def index_archive(shard: Shard, content: Any, *, goes_back: bool) -> list[Member]:
    """The images of a shard, in its order; members with another suffix are left out.

    Args:
        shard: reads the end, and is named in messages.
        content: the shard from its first byte: an object with `read`.
        goes_back: whether it has `seek` and `tell` too.

    Raises:
        DataError: the shard is no plain tar file, ends early, has a damaged header, or holds no image.
    """
    members: list[Member] = []
    last, mode = "", "r:" if goes_back else "r|"
    try:
        with tarfile.open(fileobj=content, mode=cast(Any, mode)) as archive:
            while (member := archive.next()) is not None:
                last = member.name
                vars(archive)["members"] = []  # tarfile keeps every header otherwise
                if member.isreg() and Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
                    members.append(Member(member.name, member.offset_data, member.size))
            end = archive.offset
    except tarfile.ReadError as error:
        if not last:
            raise DataError(f"{shard}: not a plain tar file ({error}). Decompress it, or fetch it again.") from None
        raise _cut(shard, last) from None
    block = shard.read(end, BLOCK)
    if len(block) < BLOCK:
        raise _cut(shard, last)
    if any(block):
        raise DataError(f"{shard}: the header after member {last} is damaged (byte {end}). Fetch the shard again.")
    if not members:
        raise DataError(f"{shard}: no image in it. Expected members such as 000001.jpg.")
    return members


def _cut(shard: Shard, last: str) -> DataError:
    return DataError(
        f"{shard}: ends early, at member {last} or after it ({shard.size} bytes, without the end mark of an archive). "
        "Fetch the shard again."
    )


class ShardImages(Sequence[JpegPicture | DecodedPicture]):
    """The images of tar shards, opened when indexed.

    Args:
        shards: tar files.

    Raises:
        DataError: see `index_archive`. An index raises DataError, with shard and member, for a damaged image.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = list(shards)
        self.root = PurePath(commonpath([shard.place.parent for shard in self.shards]))
        self.names: list[str] = []
        self.offsets, self.sizes = array("q"), array("q")
        counts = []
        for shard in self.shards:
            members = shard.members()
            counts.append(len(members))
            self.names += [member.name for member in members]
            self.offsets.extend(member.offset for member in members)
            self.sizes.extend(member.size for member in members)
        self.shard_of = array("l", itertools.chain.from_iterable([i] * count for i, count in enumerate(counts)))

    @property
    def fingerprint(self) -> str:
        """Number of images and a hash of their names."""
        return names_fingerprint(map(self.name, range(len(self))))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[JpegPicture | DecodedPicture]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> JpegPicture | DecodedPicture:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        shard, size = self.shards[self.shard_of[index]], self.sizes[index]
        encoded = shard.read(self.offsets[index], size)
        member = Path(shard.place) / self.names[index]
        if len(encoded) < size:
            raise DataError(f"{member}: {len(encoded)} of {size} bytes: the shard became shorter. Fetch it again.")
        return picture_of(encoded, member)

    def name(self, index: int) -> str:
        """SHARD.tar/MEMBER, relative to the folder of the shards."""
        place = self.shards[self.shard_of[index]].place
        return (place.relative_to(self.root) / self.names[index]).as_posix()
