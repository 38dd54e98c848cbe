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
from pathlib import Path
from typing import NamedTuple

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
        raise DataError(f"{pattern}: no file has such a name. Check the path, or write a range: {{000..127}}.tar.")
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        some = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise FileNotFoundError(
            f"{pattern}: {len(missing)} of {len(paths)} shards are missing: {some}. Restore them, or shorten the range."
        )
    return paths


def index_shard(shard: Path) -> list[Member]:
    """The images of a shard, in its order; members with another suffix are left out.

    Raises:
        DataError: the shard is no plain tar file, ends early, has a damaged header, or holds no image.
    """
    members: list[Member] = []
    last = ""
    try:
        with tarfile.open(shard, "r:") as archive:
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
    with shard.open("rb") as file:
        file.seek(end)
        block = file.read(BLOCK)
    if len(block) < BLOCK:
        raise _cut(shard, last)
    if any(block):
        raise DataError(f"{shard}: the header after member {last} is damaged (byte {end}). Fetch the shard again.")
    if not members:
        raise DataError(f"{shard}: no image in it. Expected members such as 000001.jpg.")
    return members


def _cut(shard: Path, last: str) -> DataError:
    return DataError(
        f"{shard}: ends early, at member {last} or after it ({shard.stat().st_size} bytes, without the end mark of an "
        "archive). Fetch the shard again."
    )


class ShardImages(Sequence[JpegPicture | DecodedPicture]):
    """The images of tar shards, opened when indexed.

    Args:
        shards: tar files.

    Raises:
        DataError: see `index_shard`. An index raises DataError, with shard and member, for a damaged image.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        self.shards = list(shards)
        self.root = Path(commonpath([shard.parent for shard in self.shards]))
        self.names: list[str] = []
        self.offsets, self.sizes = array("q"), array("q")
        counts = []
        for shard in self.shards:
            members = index_shard(shard)
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
        with shard.open("rb", buffering=0) as file:
            file.seek(self.offsets[index])
            encoded = file.read(size)
        member = shard / self.names[index]
        if len(encoded) < size:
            raise DataError(f"{member}: {len(encoded)} of {size} bytes: the shard became shorter. Fetch it again.")
        return picture_of(encoded, member)

    def name(self, index: int) -> str:
        """SHARD.tar/MEMBER, relative to the folder of the shards."""
        return (self.shards[self.shard_of[index]].relative_to(self.root) / self.names[index]).as_posix()
