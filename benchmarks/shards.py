"""An epoch of crops from tar shards and from Parquet files, against the same pictures in a folder.

Measures images per second of one core, by CPU time of one thread, from storage to crops in the order of a run.
"""

import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch

from benchmarks.bench import Row, publish
from benchmarks.crops import ON_DEVICE, pictures, rates
from data.pretraining import open_pretraining_data
from dino_dense.distributed import World
from dino_dense.pretrain.batches import GroupedSource, build_loader, pretraining_plan

SHARDS = 4
COPIES = 4
"""Times that each picture is stored, under other names."""
ROW_GROUP = 50
"""Images."""
CONFIG = replace(ON_DEVICE, batch_size=10, epochs=1, warmup_epochs=0)


def write_folder(paths: Sequence[Path], root: Path) -> list[Path]:
    root.mkdir()
    written = []
    for copy in range(COPIES):
        for number, path in enumerate(paths):
            written.append(root / f"{copy}-{number:04}{path.suffix.lower()}")
            written[-1].write_bytes(path.read_bytes())
    return written


def write_shards(files: Sequence[Path], root: Path) -> str:
    root.mkdir()
    for shard in range(SHARDS):
        with tarfile.open(root / f"{shard}.tar", "w") as archive:
            for path in files[shard::SHARDS]:
                archive.add(path, path.name)
    return str(root / f"{{0..{SHARDS - 1}}}.tar")


def write_parquet(files: Sequence[Path], root: Path) -> str:
    root.mkdir()
    for part in range(SHARDS):
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in files[part::SHARDS]]
        table = pyarrow.table({"image": images})
        pyarrow.parquet.write_table(table, root / f"train-{part}.parquet", row_group_size=ROW_GROUP)
    return str(root / "train-*.parquet")


def epoch(data: Path | str, count: int) -> Callable[[], None]:
    """A call that makes all micro-batches of an epoch."""
    images = open_pretraining_data(data)
    if len(images) != count:
        raise ValueError(f"{data}: {len(images)} pictures, expected {count}")
    groups = images.read_groups if isinstance(images, GroupedSource) else None
    plan = pretraining_plan(len(images), CONFIG, World(), groups)

    def run() -> None:
        # Workers would hide the time: their CPU time is not this process's.
        for _ in build_loader(images, plan, 0, CONFIG, workers=0, pin_memory=False):
            pass

    return run


def main() -> list[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pictures() as (paths, what), tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            files = write_folder(paths, root / "files")
            sources = (root / "files", write_shards(files, root / "tar"), write_parquet(files, root / "parquet"))
            speeds = rates(len(files), *(epoch(source, len(files)) for source in sources))
    finally:
        torch.set_num_threads(threads)
    check = f"{len(files)} pictures an epoch from each"
    rows = [
        Row(
            "shards",
            f"{len(files)} {what}, 2x224 + 8x96: {kind} (plain: files in a folder)",
            speeds[0],
            speed,
            "images/s a core",
            target=0.95,
            check=check,
            better="higher",
        )
        for kind, speed in zip((f"{SHARDS} tar shards", f"{SHARDS} Parquet files"), speeds[1:], strict=True)
    ]
    publish(rows)
    return rows


if __name__ == "__main__":
    main()
