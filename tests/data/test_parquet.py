"""Images in Parquet files: the same as in a folder; broken files and rows are refused by name, groups are read once."""

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data import DataError
from data.parquet import ParquetImages
from data.pretraining import open_pretraining_data
from dino_dense.distributed import World
from dino_dense.training.plan import Plan

KIND = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def encoded(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9 + seed, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG" if seed % 3 else "PNG")
    return buffer.getvalue()


def row(seed: int) -> dict[str, Any]:
    return {"bytes": encoded(seed), "path": f"{seed:03d}.{'jpg' if seed % 3 else 'png'}"}


def write(path: Path, rows: Sequence[Any], *, column: str = "image", group: int = 3, **others: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"label": list(range(len(rows))), column: pa.array(rows, KIND), **others})
    pq.write_table(table, path, row_group_size=group)
    return path


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Two files: row groups of 3 and 2 images, and of 3."""
    write(tmp_path / "set" / "train-0.parquet", [row(i) for i in range(5)])
    write(tmp_path / "set" / "train-1.parquet", [row(i) for i in range(5, 8)], column="img")
    return tmp_path / "set"


def pictures(source: Any) -> Counter[bytes]:
    return Counter(source[i].decode().tobytes() + bytes(source[i].size) for i in range(len(source)))


def test_files_give_the_pictures_of_a_folder(files: Path, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    for i in range(8):
        (tmp_path / "folder" / row(i)["path"]).write_bytes(row(i)["bytes"])
    images = open_pretraining_data(str(files / "train-*.parquet"))
    assert isinstance(images, ParquetImages)
    assert len(images) == 8
    assert pictures(images) == pictures(open_pretraining_data(tmp_path / "folder"))
    assert images[4].size == (13, 12)
    assert [images.name(i) for i in (0, 4, 5)] == ["train-0.parquet/0", "train-0.parquet/4", "train-1.parquet/0"]
    assert images[1].reductions == (1, 2, 4, 8)  # a JPEG is still decoded at reduced size
    assert list(images.read_groups.sizes) == [3, 2, 3]
    with pytest.raises(IndexError):
        images[8]


def test_patterns_and_fingerprints(files: Path):
    both, one = (open_pretraining_data(str(files / name)) for name in ("train-{0..1}.parquet", "train-1.parquet"))
    assert (len(both), len(one)) == (8, 3)
    assert both.fingerprint != one.fingerprint
    assert both.fingerprint == open_pretraining_data(str(files / "*.parquet")).fingerprint
    write(files / "train-1.parquet", [row(i) for i in range(6, 9)])
    assert both.fingerprint != open_pretraining_data(str(files / "*.parquet")).fingerprint
    with pytest.raises(DataError, match=r"parquet files in it. Name them by a pattern: '.*\*\.parquet'"):
        open_pretraining_data(files)
    with pytest.raises(FileNotFoundError, match=r"1 of 3 shards are missing: train-2\.parquet"):
        open_pretraining_data(str(files / "train-{0..2}.parquet"))
    with pytest.raises(DataError, match=r"no file has such a name.* \{000\.\.127\}\.parquet"):
        open_pretraining_data(str(files / "x*.parquet"))


@pytest.mark.parametrize("size", [0, 3, 400, -1])
def test_a_file_that_ends_early_or_is_no_parquet_is_refused(size: int, files: Path):
    file = files / "train-1.parquet"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(DataError, match=r"train-1\.parquet: not a whole Parquet file"):
        open_pretraining_data(str(files / "*.parquet"))


def test_a_file_without_rows_or_without_a_column_of_images_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"empty\.parquet: no rows in it"):
        open_pretraining_data(str(write(tmp_path / "empty.parquet", [])))
    pq.write_table(pa.table({"label": [1], "image": ["a.jpg"]}), tmp_path / "paths.parquet")
    with pytest.raises(
        DataError, match=r"paths\.parquet: expected a column 'image'.*; found label \(int64\), image \(s"
    ):
        open_pretraining_data(str(tmp_path / "paths.parquet"))
    two = write(tmp_path / "two.parquet", [row(0)], column="left", right=pa.array([row(1)], KIND))
    with pytest.raises(DataError, match=r"two\.parquet: expected a column 'image', or a single column"):
        open_pretraining_data(str(two))


def test_bad_rows_are_named_and_the_others_are_read(tmp_path: Path):
    rows = [row(0), None, {"bytes": None, "path": "far/a.jpg"}, {"bytes": b"no image", "path": None}]
    images = open_pretraining_data(str(write(tmp_path / "a.parquet", rows)))
    assert images[0].size == (9, 12)
    with pytest.raises(DataError, match=r"a\.parquet/1: the row has no bytes of an image, nothing"):
        images[1]
    with pytest.raises(DataError, match=r"a\.parquet/2: .* only the path far/a\.jpg"):
        images[2]
    with pytest.raises(DataError, match=r"a\.parquet/3: not an image that can be read"):
        images[3]


def test_a_damaged_row_group_a_lost_and_a_changed_file_are_named(files: Path):
    images = open_pretraining_data(str(files / "*.parquet"))
    file = files / "train-0.parquet"
    whole = bytearray(file.read_bytes())
    about = pq.ParquetFile(file).metadata.row_group(1).column(1)
    start = about.dictionary_page_offset or about.data_page_offset
    file.write_bytes(whole[:start] + bytes([255] * 16) + whole[start + 16 :])
    with pytest.raises(DataError, match=r"train-0\.parquet: row group 1 \(rows 3 to 4\) cannot be read"):
        images[3]
    assert images[2].size == (11, 12)
    write(files / "train-1.parquet", [row(i) for i in range(5, 7)], column="img")
    with pytest.raises(DataError, match=r"train-1\.parquet: changed since the run began"):
        images[7]
    (files / "train-1.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-1\.parquet: removed since it was listed"):
        images[7]


def test_an_epoch_reads_each_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(tmp_path / "a.parquet", [row(i % 8) for i in range(40)], group=4)
    size = sum(len(encoded(i % 8)) for i in range(40))
    monkeypatch.setattr("data.parquet.WINDOW_BYTES", size // 3)
    images = ParquetImages([path])
    window = images.read_groups.window
    assert 1 < window < 10
    reads = list[int]()
    read = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, i, **rest: reads.append(i) or read(self, i, **rest)
    )
    plan = Plan(40, 8, 2, World(), groups=images.read_groups)
    for index in plan.order(0):
        images[index]
    assert sorted(reads) == list(range(10))
    orders = [plan.order(epoch) for epoch in range(2)]
    assert orders[0] != orders[1]
    for order in orders:
        assert sorted(order) == list(range(40))
        for at in range(0, 40, 4 * window):
            part = order[at : at + 4 * window]
            assert Counter(index // 4 for index in part) == dict.fromkeys({index // 4 for index in part}, 4)
            assert part != sorted(part)
