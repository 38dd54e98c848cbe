"""Images in tar shards: the same as in a folder; broken shards are refused by name, broken members named."""

import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import DataError
from data.pretraining import open_pretraining_data
from data.shards import expand_braces, list_shards


def encoded(seed: int, form: str) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9 + seed, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


IMAGES = {f"{'deep/' * (i % 2)}{i:03d}.{('jpg', 'png')[i % 3 == 0]}": i for i in range(8)}


def content(name: str) -> bytes:
    return encoded(IMAGES[name], "PNG" if name.endswith("png") else "JPEG")


def write_shard(path: Path, names: list[str], style: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=style) as archive:
        for name in names:
            for member, data in ((name, content(name)), (name + ".json", b"{}")):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    names = list(IMAGES)
    write_shard(tmp_path / "s" / "000.tar", names[:5])
    write_shard(tmp_path / "s" / "001.tar", names[5:], tarfile.GNU_FORMAT)
    return tmp_path / "s"


def test_a_shard_gives_the_pictures_of_a_folder(shards: Path, tmp_path: Path):
    for name in IMAGES:
        file = tmp_path / "folder" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content(name))
    folder = open_pretraining_data(tmp_path / "folder")
    images = open_pretraining_data(str(shards / "{000..001}.tar"))
    assert len(images) == len(folder) == 8

    def pictures(source) -> Counter[bytes]:
        return Counter(source[i].decode().tobytes() + bytes(source[i].size) for i in range(len(source)))

    assert pictures(images) == pictures(folder)
    assert images.name(6) == f"001.tar/{list(IMAGES)[6]}"
    assert images[1].reductions == (1, 2, 4, 8)  # a JPEG is still decoded at reduced size
    assert images[0].reductions == (1,)


def test_patterns(shards: Path):
    assert expand_braces("a{08..10}.tar") == ["a08.tar", "a09.tar", "a10.tar"]
    assert expand_braces("{a,b}/{1..2}") == ["a/1", "a/2", "b/1", "b/2"]
    assert list_shards(str(shards / "*.tar")) == [shards / "000.tar", shards / "001.tar"]
    both, one = (open_pretraining_data(str(shards / name)) for name in ("*.tar", "001.tar"))
    assert (len(both), len(one)) == (8, 3)
    assert both.fingerprint != one.fingerprint
    with pytest.raises(DataError, match=r"tar files in it. Name them by a pattern: '.*\*\.tar'"):
        open_pretraining_data(shards)


def test_missing_shards_are_named(shards: Path):
    with pytest.raises(FileNotFoundError, match=r"2 of 4 shards are missing: 002\.tar, 003\.tar\."):
        open_pretraining_data(str(shards / "{000..003}.tar"))
    with pytest.raises(DataError, match="no file has such a name"):
        open_pretraining_data(str(shards / "x*.tar"))


def blocks(shard: Path) -> list[int]:
    """The starts of its members, and the end of the last."""
    with tarfile.open(shard) as archive:
        return [member.offset for member in archive] + [archive.offset]


@pytest.mark.parametrize("cut", ["in a header", "in a member", "between members", "before the end mark"])
def test_a_shard_that_ends_early_is_refused_and_named(cut: str, shards: Path):
    shard = shards / "001.tar"
    starts, whole = blocks(shard), shard.read_bytes()
    size = {
        "in a header": starts[2] + 100,
        "in a member": starts[2] + 700,
        "between members": starts[2],
        "before the end mark": starts[-1],
    }[cut]
    shard.write_bytes(whole[:size])
    with pytest.raises(DataError, match=r"001\.tar: ends early, at member \S*00\d\.\S+ or after it"):
        open_pretraining_data(str(shards / "*.tar"))


def test_a_damaged_header_is_refused_though_tarfile_would_stop_silently(shards: Path):
    shard = shards / "001.tar"
    start, whole = blocks(shard)[2], bytearray(shard.read_bytes())
    whole[start + 148] ^= 0xFF  # in its checksum
    shard.write_bytes(whole)
    with pytest.raises(DataError, match=rf"001\.tar: the header after member .*005\S+ is damaged \(byte {start}\)"):
        open_pretraining_data(str(shards / "*.tar"))


def test_other_files_are_refused(shards: Path, tmp_path: Path):
    (tmp_path / "a.tar").write_bytes(b"no archive at all" * 100)
    with pytest.raises(DataError, match=r"a\.tar: not a plain tar file"):
        open_pretraining_data(str(tmp_path / "a.tar"))
    with tarfile.open(tmp_path / "b.tar", "w:gz") as archive:
        archive.add(shards / "000.tar", "000.tar")
    with pytest.raises(DataError, match=r"b\.tar: not a plain tar file .* Decompress it"):
        open_pretraining_data(str(tmp_path / "b.tar"))
    with tarfile.open(tmp_path / "c.tar", "w") as archive:
        archive.add(shards / "000.tar", "000.tar")
    with pytest.raises(DataError, match=r"c\.tar: no image in it"):
        open_pretraining_data(str(tmp_path / "c.tar"))


def test_a_damaged_image_and_a_shard_cut_later_are_named_with_their_member(shards: Path):
    images = open_pretraining_data(str(shards / "*.tar"))
    shard = shards / "000.tar"
    with tarfile.open(shard) as archive:
        member = archive.getmember(images.name(0).removeprefix("000.tar/"))
    whole = bytearray(shard.read_bytes())
    whole[member.offset_data : member.offset_data + 64] = bytes(64)
    shard.write_bytes(whole)
    with pytest.raises(DataError, match=r"000\.tar/000\.png: not an image that can be read"):
        images[0]
    shard.write_bytes(whole[: member.offset_data + 10])
    with pytest.raises(DataError, match=r"000\.tar/000\.png: 10 of \d+ bytes: the shard became shorter"):
        images[0]
