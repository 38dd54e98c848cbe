"""Runs in one process leave no open file and no child behind, however they end."""

import gc
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from data import DataError
from data.pretraining import open_pretraining_data
from tests.faults import broken
from tests.pretrain.tiny_run import write_pictures

DESCRIPTORS = Path("/proc/self/fd")


def open_files() -> int:
    gc.collect()  # an error's traceback and its frames refer to each other
    return len(list(DESCRIPTORS.iterdir()))


@pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="needs /proc")
@pytest.mark.parametrize("ending", ["success", "error"])
def test_no_open_files_and_no_children(ending: str, tmp_path: Path, train: Callable[..., pd.DataFrame]):
    write_pictures(tmp_path / "pictures", 24)
    images = open_pretraining_data(tmp_path / "pictures")
    if ending == "error":
        broken.cut(tmp_path / "pictures" / "20.png")

    def run(name: str) -> None:
        options = {"max_steps": 3, "num_workers": 1, "on_bad_sample": "raise"}
        if ending == "success":
            train(tmp_path / name, images, **options)
            return
        with pytest.raises(DataError):
            train(tmp_path / name, images, **options)

    run("first")  # opens what stays open: the resource tracker, fonts
    before = open_files()
    run("second")
    run("third")
    assert open_files() <= before
    assert not multiprocessing.active_children()
