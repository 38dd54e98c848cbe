"""States that cannot be written or read: the one before is used, or the error says so."""

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch

from dino_dense import load_backbone
from dino_dense.checkpoint import CheckpointError, read_tensors, write_tensors
from dino_dense.files import WriteError, replacing, write_text
from dino_dense.pretrain.run_folder import RunError, state_files

Train = Callable[..., pd.DataFrame]
SHORT = {"max_steps": 6, "save_every": 2}


@pytest.fixture(autouse=True)
def without_a_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a short run's time goes into its picture."""
    monkeypatch.setattr("dino_dense.pretrain.monitor.draw_curve", lambda run, levels: None)


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def steps(run: Path) -> list[int]:
    return [read_tensors(path)[1]["step"] for path in state_files(run)]


@pytest.mark.parametrize(("keep", "kept"), [(1, [6]), (2, [6, 4]), (5, [6, 4, 2])])
def test_the_last_states_are_kept(keep: int, kept: list[int], tmp_path: Path, train: Train):
    train(tmp_path / "run", keep=keep, **SHORT)
    assert steps(tmp_path / "run") == kept


def test_fewer_are_kept_once_fewer_are_wanted(tmp_path: Path, train: Train):
    train(tmp_path / "run", keep=3, **SHORT)
    train(tmp_path / "run", keep=2, resume=True, max_steps=8, save_every=2)
    assert steps(tmp_path / "run") == [8, 6]


@pytest.mark.parametrize("damage", [flip_a_byte, cut, lambda path: path.write_bytes(b""), Path.unlink])
def test_a_damaged_state_gives_way_to_the_one_before(
    damage: Callable[[Path], None], tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
):
    run = tmp_path / "run"
    whole = train(tmp_path / "whole", **SHORT)
    train(run, **SHORT)
    damage(run / "last.safetensors")
    log = train(run, resume=True, **SHORT)
    times = ["images_per_s", "seconds"]
    pd.testing.assert_frame_equal(log.drop(columns=times), whole.drop(columns=times), check_exact=True)
    assert steps(run) == [6, 4]
    said = capsys.readouterr().out
    assert "resumes from earlier-1.safetensors at step 4" in said
    if damage is not Path.unlink:
        assert "last.safetensors: " in said
        assert (run / "last.damaged").exists(), "it is set aside, not lost"


def test_when_every_state_is_damaged_the_error_names_them(tmp_path: Path, train: Train):
    train(tmp_path / "run", **SHORT)
    for path in state_files(tmp_path / "run"):
        flip_a_byte(path)
    with pytest.raises(RunError, match=r"none of its states.*last\.safetensors: damaged.*earlier-1\.safetensors: dam"):
        train(tmp_path / "run", resume=True, **SHORT)


def test_a_full_disk_stops_the_run_and_keeps_the_state_before(tmp_path: Path, train: Train):
    run = tmp_path / "run"
    train(run, **SHORT)
    with largest_file(200_000), pytest.raises(WriteError, match=r"cannot be written \(.*too large.*before is kept"):
        train(run, resume=True, max_steps=8, save_every=2)
    assert steps(run) == [6, 4]
    load_backbone(str(run))
    assert not list(run.glob(".*"))
    assert len(train(run, resume=True, max_steps=8, save_every=2)) == 8


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch):
    def read_only(*_args: object, **_options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("dino_dense.files.tempfile.mkdtemp", read_only)
    with pytest.raises(WriteError, match=r"run/config\.yaml: cannot be written \(Read-only file system\).*--out"):
        train(tmp_path / "run", **SHORT)


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path, train: Train):
    (tmp_path / "run").write_text("not a folder")
    with pytest.raises(WriteError, match=r"run/config\.yaml: cannot be written"):
        train(tmp_path / "run", **SHORT)


@pytest.mark.parametrize("where", ["tensor", "metadata"])
def test_content_is_verified(where: str, tmp_path: Path):
    """The header too: a step or a config that changed is as wrong as a weight."""
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.arange(100.0)}, {"step": 1234})
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"\x01" if where == "tensor" else content.replace(b"1234", b"1235"))
    with pytest.raises(CheckpointError, match=r"a\.safetensors: damaged since it was written.*SHA-256"):
        read_tensors(path)


def test_a_block_that_fails_leaves_what_was_there(tmp_path: Path):
    write_text(tmp_path / "a.txt", "before")
    with pytest.raises(UnicodeEncodeError), replacing(tmp_path / "a.txt") as path:
        path.write_text("half" + 10_000 * "x" + "é", encoding="ascii")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "before")]


def test_resuming_auto_begins_and_goes_on(tmp_path: Path, train: Train):
    train(tmp_path / "run", resume="auto", max_steps=2, save_every=2)
    assert len(train(tmp_path / "run", resume="auto", **SHORT)) == 6


def test_other_batch_statistics_are_refused_and_other_freedoms_said(
    tmp_path: Path, train: Train, capsys: pytest.CaptureFixture[str]
):
    train(tmp_path / "norm", use_bn_in_head=True, max_steps=1)
    with pytest.raises(RunError, match="compares images saw 8 images at a time, now 4"):
        train(tmp_path / "norm", use_bn_in_head=True, max_steps=2, accumulate=2, resume=True)
    train(tmp_path / "plain", max_steps=1)
    train(tmp_path / "plain", max_steps=2, accumulate=2, resume=True)
    assert "(accumulate was 1, now 2; max_steps was 1, now 2)" in capsys.readouterr().out
