"""Loader processes: a lost process is explained however it is lost, and errors of items stay plain."""

import gc
import io
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import resource_sharer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from data.pretraining import open_pretraining_data
from data.segmentation import LabeledPixels
from dino_dense import Backbone, load_backbone
from dino_dense.distributed import World
from dino_dense.loaders import (
    MOST_WORKERS,
    LostWorkerError,
    WorkerItems,
    default_workers,
    lost_workers_explained,
    read_items,
)
from dino_dense.pretrain.trainer import Trainer
from dino_dense.probes.pixels import PixelProbe, train_head
from tasks import RunOptions, Session, get, run_one
from tasks.finetuning.config import FinetuneConfig
from tasks.images.descriptors import Thumbnails, describe_all
from tasks.images.features import Preprocessing, image_features
from tasks.images.linear_config import LinearConfig
from tests.pretrain.tiny_run import TINY

RANDOM = "random:vit_micro_patch8_64"
LAST_BREATH = 0.3  # seconds that a worker lives on after its sockets are closed, as on a busy machine


def refuse(listener: Any) -> None:
    """The socket is gone before the main process asks for the tensor."""
    listener.close()


def hang_up(listener: Any) -> None:
    """The connection closes with an unread request in it."""
    listener.accept().close()


def hang_up_late(listener: Any) -> None:
    """The request is read, and never answered."""
    connection = listener.accept()
    connection.recv()
    connection.close()


class Numbers(Dataset[Tensor]):
    """Tensors 0 to 9; `act(index)` runs first, in the worker."""

    def __init__(self, act: Callable[[int], None]) -> None:
        self.act = act

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Tensor:
        self.act(index)
        return torch.full((3,), index)


def name(index: int) -> str:
    return f"number {index}"


def dies_handing_over(end: Callable[[Any], None]) -> Callable[[int], None]:
    """Tensors are handed over by a process that closes its sockets, and is gone a little later."""

    def serve(sharer: Any) -> None:
        try:
            end(sharer._listener)
        finally:
            time.sleep(LAST_BREATH)
            os.kill(os.getpid(), signal.SIGKILL)

    def act(index: int) -> None:
        resource_sharer._ResourceSharer._serve = serve  # type: ignore[attr-defined]

    return act


@pytest.mark.parametrize("end", [refuse, hang_up, hang_up_late])
def test_a_worker_that_dies_while_it_hands_over_a_tensor_is_explained(end: Callable[[Any], None]):
    worker_items = WorkerItems(1, name)
    with pytest.raises(LostWorkerError, match=r"loader process \d+ died (while|after) reading number \d\. .*--workers"):
        list(read_items(Numbers(dies_handing_over(end)), worker_items, batch_size=None))


def kill_at(index: int, number: int) -> Callable[[int], None]:
    def act(item: int) -> None:
        if item == index:
            os.kill(os.getpid(), number)

    return act


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (signal.SIGKILL, r"ran out of memory: take fewer --loaders"),
        (signal.SIGBUS, r"/dev/shm, is full: take fewer --loaders, .*--shm-size=8g"),
        (signal.SIGSEGV, r"crashes the decoder: remove it"),
    ],
)
def test_the_way_it_died_says_what_to_do(number: int, hint: str):
    with pytest.raises(LostWorkerError, match=rf"died while reading number 5\. .*{hint}"):
        list(read_items(Numbers(kill_at(5, number)), WorkerItems(1, name, "--loaders"), batch_size=2))


def test_a_worker_that_leaves_without_a_signal_is_explained():
    def leave(index: int) -> None:
        if index == 5:
            os._exit(3)

    with pytest.raises(LostWorkerError, match="died while reading number 5"):
        list(read_items(Numbers(leave), WorkerItems(2, name), batch_size=None))


def test_a_death_raises_when_a_batch_is_read_and_nowhere_else():
    """torch's own handler would raise at any line of this process, even in one that explains another death."""
    worker_items = WorkerItems(1, name)
    batches = read_items(Numbers(lambda index: time.sleep(60 * index)), worker_items, batch_size=1)
    next(batches)
    (child,) = worker_items.processes.values()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # torch's handler acts only before the child is joined
    message = r"^runs/a: .*died (while|after) reading number [01]\. .* Then resume\.$"  # it may not have begun with 1
    with pytest.raises(LostWorkerError, match=message), lost_workers_explained("runs/a", "Then resume."):
        next(batches)


def test_the_handler_of_a_loader_of_the_user_is_taken_away(monkeypatch: pytest.MonkeyPatch):
    """torch sets it once in a process, and it watches the workers of every loader."""
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    before = signal.getsignal(signal.SIGCHLD)
    list(DataLoader(Numbers(lambda index: None), num_workers=1))
    assert signal.getsignal(signal.SIGCHLD) is not before
    list(read_items(Numbers(lambda index: None), WorkerItems(1, name), batch_size=1))
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL


def test_of_two_open_loaders_each_names_its_own_item():
    """The one opened first loses its process; then, in a second try, the one opened last."""
    for deaths, option in (((5, None), "--first"), ((None, 5), "--second")):
        first, second = (
            read_items(
                Numbers(kill_at(-1 if death is None else death, signal.SIGKILL)),
                WorkerItems(1, lambda index, label=label: f"{label} {index}", label),  # type: ignore[misc]
                batch_size=1,
            )
            for label, death in zip(("--first", "--second"), deaths, strict=True)
        )
        with pytest.raises(LostWorkerError, match=rf"(reading|after) {option} \d.*fewer {option}"):
            for _ in zip(first, second, strict=True):
                pass


def test_workers_are_gone_when_a_loop_is_left():
    """Though one of them reads a slow picture, and though the traceback of the error is kept."""

    def slow(index: int) -> None:
        if index == 1:
            time.sleep(600)
        elif index == 0:
            raise ValueError("0.jpg: cut short")

    with pytest.raises(ValueError, match="cut short") as kept:
        list(read_items(Numbers(slow), WorkerItems(2, name), batch_size=1))
    assert not multiprocessing.active_children()
    assert kept.tb is not None


class Remains:
    """Garbage in a cycle that writes which process frees it."""

    def __init__(self, log: Path) -> None:
        self.log, self.cycle = log, self

    def __del__(self) -> None:
        with self.log.open("a") as file:
            file.write(f"{os.getpid()}\n")


def collect(_index: int) -> None:
    gc.collect()


def test_workers_do_not_free_what_their_parent_left(tmp_path: Path):
    """A frame of PyAV, freed in a forked worker, waits forever for threads that only the parent has."""
    log = tmp_path / "freed.txt"
    gc.collect()
    gc.disable()
    try:
        Remains(log)
        list(read_items(Numbers(collect), WorkerItems(2, name), batch_size=2))
        assert not log.exists()
    finally:
        gc.enable()
    gc.collect()
    assert log.read_text() == f"{os.getpid()}\n"


FAULTY = """
import time
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling
from dino_dense.loaders import WorkerItems, read_items

class Faulty(Dataset):
    def __len__(self): return 10
    def __getitem__(self, index):
        if index == 5: raise KeyError(index)
        return index

list(read_items(Faulty(), WorkerItems(2, str), batch_size=1))
"""


def test_a_traceback_that_holds_the_loader_does_not_keep_the_process_from_its_end():
    done = subprocess.run([sys.executable, "-c", FAULTY], capture_output=True, text=True, timeout=400)
    assert done.returncode == 1
    assert "KeyError" in done.stderr


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("error", [ValueError("3.jpg: cut short"), FileNotFoundError(2, "gone", "3.jpg")])
def test_an_error_of_an_item_arrives_as_it_was_raised(workers: int, error: Exception):
    def fail(index: int) -> None:
        if index == 3:
            raise error

    begun = time.monotonic()
    with pytest.raises(type(error)) as raised, lost_workers_explained("runs/a"):
        list(read_items(Numbers(fail), WorkerItems(workers, name), batch_size=2))
    assert str(raised.value) == str(error)
    assert time.monotonic() - begun < 60


def test_a_fault_of_the_program_stays_a_traceback():
    def fail(index: int) -> None:
        raise KeyError(index)

    with pytest.raises(KeyError, match="Traceback"):
        list(read_items(Numbers(fail), WorkerItems(1, name), batch_size=2))


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("size", [None, 4])
def test_the_items_do_not_depend_on_the_number_of_workers(workers: int, size: int | None):
    batches = list(read_items(Numbers(lambda index: None), WorkerItems(workers, name), batch_size=size))
    items = torch.stack(batches) if size is None else torch.cat(batches)
    assert items[:, 0].tolist() == list(range(10))
    assert len(batches) == (10 if size is None else 3)


# --- Every loader of the project ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(RANDOM)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, train and val; reading deadly.png ends the process that reads it."""
    for split in ("train", "val"):
        for label in ("a", "b"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for index in range(6):
                Image.new("RGB", (32, 32), (40 * index, 9, 9)).save(folder / f"{index}.png")
    return tmp_path / "images"


@pytest.fixture
def deadly(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Make a file deadly to the worker that opens it."""
    parent, whole = os.getpid(), Image.open

    def make(path: Path) -> Path:
        target = path.rename(path.with_name("deadly.png"))
        Image.new("RGB", (32, 32), (1, 200, 3)).save(target)  # like no other
        content = target.read_bytes()

        def opened(file: Any, *args: Any, **options: Any) -> Image.Image:
            read = file.getvalue() == content if isinstance(file, io.BytesIO) else "deadly" in str(file)
            if read and os.getpid() != parent:
                os.kill(os.getpid(), signal.SIGKILL)
            return whole(file, *args, **options)

        monkeypatch.setattr(Image, "open", opened)
        return target

    return make


def run_task(task: str, config: Any, out: Path) -> None:
    run_one(get(task), RunOptions(ckpt=RANDOM, device="cpu", out=str(out)), config)


def pretraining(root: Path, _backbone: Backbone) -> None:
    config = replace(TINY, out=str(root / "run"), num_workers=1, max_steps=6, batch_size=4)
    images = open_pretraining_data(root / "train")
    Trainer(config, images, World(), torch.device("cpu")).train()


def features(root: Path, backbone: Backbone) -> None:
    paths = sorted((root / "train").rglob("*.png"))
    image_features(backbone, paths, Preprocessing(32, 32), session=Session(out=root), workers=1)


def thumbnails(root: Path, backbone: Backbone) -> None:
    paths = sorted((root / "train").rglob("*.png"))
    describe_all(
        Thumbnails(paths, 32),
        len(paths),
        lambda x: x.float().mean((2, 3)),
        session=Session(out=root),
        batch_size=2,
        workers=1,
        names=paths,
    )


def linear(root: Path, _backbone: Backbone) -> None:
    config = LinearConfig(data=str(root), crop=32, resize=32, epochs=1, batch_size=4, workers=1, features="augmented")
    run_task("linear", config, root / "linear")


def finetune(root: Path, _backbone: Backbone) -> None:
    run_task(
        "finetune",
        FinetuneConfig(data=str(root), crop=32, resize=32, epochs=1, warmup_epochs=0, batch_size=4, workers=1),
        root / "ft",
    )


def pixels(root: Path, backbone: Backbone) -> None:
    paths = sorted((root / "train").rglob("*.png"))
    pairs = [LabeledPixels(path, root / "val" / "a" / "0.png", is_binary=True) for path in paths]
    config = PixelProbe(steps=3, batch_size=4, crop=32)
    train_head(backbone, config, pairs, 2, state=root / "state", world=World(), seed=0, workers=1)


@pytest.mark.parametrize("start", [pretraining, features, thumbnails, linear, finetune, pixels])
def test_every_loader_names_the_picture_that_its_process_died_of(
    start: Callable[[Path, Backbone], None], root: Path, backbone: Backbone, deadly: Callable[[Path], Path]
):
    deadly(root / "train" / "a" / "1.png")
    with pytest.raises(LostWorkerError, match=r"loader process \d+ died while reading .*deadly"):
        start(root, backbone)


@pytest.mark.parametrize(("on_gpu", "cores", "expected"), [(False, 64, 0), (True, 4, 4), (True, 64, MOST_WORKERS)])
def test_images_are_read_by_other_processes_where_a_gpu_waits_for_them(
    on_gpu: bool, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: on_gpu)
    monkeypatch.setattr("dino_dense.loaders.processors", lambda: cores)
    assert default_workers() == expected
    assert len(WorkerItems(None, str).table) == expected
    assert len(WorkerItems(3, str).table) == 3
