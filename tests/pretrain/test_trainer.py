"""Whole runs: the same curve twice, after a resume, in micro-batches; and what a run leaves behind."""

import os
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from data import DataError
from data.pretraining import open_pretraining_data
from dino_dense import load_backbone
from dino_dense.checkpoint import read_tensors, write_tensors
from dino_dense.config import command_line, schema
from dino_dense.distributed import World
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.run_folder import EARLIER_NAMES, RunError
from dino_dense.pretrain.trainer import Trainer
from dino_dense.training.gradients import DivergedError
from tests.pretrain.test_bodies import BODIES
from tests.pretrain.tiny_run import TINY, write_pictures

Train = Callable[..., pd.DataFrame]
TIMES = ["images_per_s", "seconds"]


class Killed(BaseException):
    """Stands for kill -9: nothing of ours runs after it."""


class Interrupting:
    """The pictures, and an event when one has been read so many times."""

    def __init__(self, root: Path, reads: int, event: Callable[[], None]) -> None:
        self.inner, self.reads, self.event = open_pretraining_data(root), reads, event
        self.fingerprint = self.inner.fingerprint

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Image.Image:
        self.reads -= 1
        if self.reads == 0:
            self.event()
        return self.inner[index]

    def name(self, index: int) -> str:
        return self.inner.name(index)


def kill() -> None:
    raise Killed


@pytest.fixture(scope="module")
def reference_run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TINY from start to end, without a break."""
    out = tmp_path_factory.mktemp("runs") / "reference"
    config = schema.from_plain(PretrainConfig, {**schema.to_plain(TINY), "out": str(out)})
    Trainer(config, open_pretraining_data(pictures), World(), torch.device("cpu")).train()
    return out


def curve(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "log.csv").drop(columns=TIMES)


def assert_same_state(a: Path, b: Path) -> None:
    ours, theirs = (read_tensors(run / "last.safetensors")[0] for run in (a, b))
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
    assert not different


def test_two_runs_with_one_seed_are_identical(reference_run: Path, tmp_path: Path, train: Train):
    train(tmp_path / "again")
    pd.testing.assert_frame_equal(curve(tmp_path / "again"), curve(reference_run), check_exact=True)
    assert_same_state(tmp_path / "again", reference_run)
    other = train(tmp_path / "other", seed=1)
    assert (other["loss"] != curve(reference_run)["loss"]).all()


def test_the_student_learns_a_teacher_that_stands_still(tmp_path: Path, train: Train):
    still = {"momentum_teacher": 1.0, "center_momentum": 1.0, "drop_path_rate": 0.0, "freeze_last_layer": 0}
    log = train(tmp_path / "run", epochs=20, lr=0.03, save_every=100, teacher_temp=0.04, **still)
    assert log["kl"].iloc[-10:].mean() < 0.75 * log["kl"].iloc[:5].mean()


def test_the_log_follows_the_schedules(reference_run: Path):
    log = curve(reference_run)
    assert log["step"].tolist() == list(range(1, 16))
    assert log["lr"].iloc[0] == 0
    assert log["lr"].max() == pytest.approx(0.01 * 8 / 256)
    assert log["momentum"].is_monotonic_increasing
    np.testing.assert_allclose(log["teacher_temp"], np.repeat([0.04, 0.05, 0.06, 0.06, 0.06], 3))
    np.testing.assert_allclose(log["loss"], log["teacher_entropy"] + log["kl"], atol=1e-5)


@pytest.mark.parametrize("reads", [4, 8 * 7 + 3, 8 * 11])
def test_a_killed_run_resumes_bit_for_bit(
    reads: int, reference_run: Path, pictures: Path, tmp_path: Path, train: Train
):
    """Killed in step 1, 8 (mid-epoch, 2 steps after a checkpoint and logged) and 11 of 15."""
    out = tmp_path / "run"
    with pytest.raises(Killed):
        train(out, Interrupting(pictures, reads, kill))
    if reads < 8 * 5:  # before the first checkpoint: nothing to resume, and nothing to lose
        with pytest.raises(RunError, match=r"no last\.safetensors to resume from"):
            train(out, resume=True)
        train(out)
    else:
        train(out, resume=True)
    pd.testing.assert_frame_equal(curve(out), curve(reference_run), check_exact=True)
    assert_same_state(out, reference_run)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(
    number: signal.Signals,
    reference_run: Path,
    pictures: Path,
    tmp_path: Path,
    train: Train,
    capsys: pytest.CaptureFixture[str],
):
    out = tmp_path / "run"
    train(out, Interrupting(pictures, 8 * 6 + 2, lambda: os.kill(os.getpid(), number)))
    assert read_tensors(out / "last.safetensors")[1]["step"] == 7
    assert f"--config {out}/config.yaml --resume" in capsys.readouterr().out
    train(out, resume=True)
    pd.testing.assert_frame_equal(curve(out), curve(reference_run), check_exact=True)


@pytest.mark.parametrize("changes", [{"optimizer": "sgd"}, {"optimizer": "lars"}, {"dtype": "bf16"}, {"dtype": "fp16"}])
def test_every_optimizer_and_type_resumes_bit_for_bit(changes: dict, tmp_path: Path, train: Train):
    whole = train(tmp_path / "whole", max_steps=6, **changes)
    assert np.isfinite(whole["loss"]).all()
    train(tmp_path / "parts", max_steps=4, **changes)
    train(tmp_path / "parts", max_steps=6, resume=True, **changes)
    pd.testing.assert_frame_equal(curve(tmp_path / "parts"), curve(tmp_path / "whole"), check_exact=True)
    assert_same_state(tmp_path / "parts", tmp_path / "whole")


def test_micro_batches_give_the_curve_of_the_whole_batch(reference_run: Path, tmp_path: Path, train: Train):
    log = train(tmp_path / "run", accumulate=4)
    np.testing.assert_allclose(log["loss"], curve(reference_run)["loss"], atol=1e-4)
    np.testing.assert_allclose(log["grad_norm"], curve(reference_run)["grad_norm"], rtol=1e-2)
    ours, theirs = (read_tensors(run / "last.safetensors")[0] for run in (tmp_path / "run", reference_run))
    center = "objectives.dino.loss.center"
    torch.testing.assert_close(ours[center], theirs[center], rtol=0, atol=1e-4)


def test_the_run_folder_holds_what_others_read(reference_run: Path):
    tensors, metadata = read_tensors(reference_run / "last.safetensors")
    starts = {".".join(name.split(".")[:3]).partition(".blocks")[0] for name in tensors}
    heads = {"objectives.dino.student_head", "objectives.dino.teacher_head"}
    assert {"teacher.backbone", "student.backbone", "optimizer.student.backbone", *heads} <= starts
    assert "objectives.dino.loss.center" in tensors
    assert metadata["step"] == 15
    backbone = load_backbone(str(reference_run))
    for name, weight in backbone.module.state_dict().items():
        assert torch.equal(weight, tensors[f"teacher.backbone.{name}"])
    assert (reference_run / "loss.png").stat().st_size > 1000
    assert list((reference_run / "tensorboard").glob("events*"))
    saved = command_line.parse(
        PretrainConfig, prog="x", description="x", argv=["--config", str(reference_run / "config.yaml")]
    )
    assert saved.lr == TINY.lr
    assert saved.global_crops_scale == TINY.global_crops_scale


def test_the_last_layer_stays_as_it_is_in_the_first_epochs(tmp_path: Path, train: Train):
    def last_layer(steps: int) -> torch.Tensor:
        train(tmp_path / f"{steps}", max_steps=steps, freeze_last_layer=2)
        tensors, _ = read_tensors(tmp_path / f"{steps}" / "last.safetensors")
        return tensors["objectives.dino.student_head.last_layer.weight_v"]

    first, end_of_frozen, later = (last_layer(steps) for steps in (1, 6, 8))
    assert torch.equal(first, end_of_frozen)
    assert not torch.equal(end_of_frozen, later)


def test_a_run_is_never_overwritten(reference_run: Path, train: Train):
    before = {path.name: path.stat().st_mtime_ns for path in reference_run.iterdir()}
    with pytest.raises(RunError, match=r"already holds a run\. Continue it with --resume"):
        train(reference_run)
    assert {path.name: path.stat().st_mtime_ns for path in reference_run.iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.5}, r"lr was 0\.01, now 0\.5"),
        ({"out_dim": 64, "seed": 3}, r"out_dim was 48, now 64; seed was 0, now 3"),
        ({"augment_on": "device"}, r"augment_on was 'loader', now 'device'"),
        ({"local_crops_scale": (0.1, 0.2)}, r"local_crops_scale was \[0\.05, 0\.4\], now \[0\.1, 0\.2\]"),
    ],
)
def test_resuming_with_other_settings_names_the_field_and_both_values(
    changes: dict, message: str, reference_run: Path, train: Train
):
    before = (reference_run / "log.csv").read_bytes()
    with pytest.raises(ValueError, match=message):
        train(reference_run, resume=True, **changes)
    assert (reference_run / "log.csv").read_bytes() == before


def test_resuming_on_other_pictures_is_an_error(reference_run: Path, tmp_path: Path, train: Train):
    write_pictures(tmp_path / "others", 25)
    with pytest.raises(RunError, match=r"the images differ: 26 files .* then, 25 files .* now"):
        train(reference_run, open_pretraining_data(tmp_path / "others"), resume=True)


def test_a_state_of_the_time_of_one_objective_resumes_bit_for_bit(reference_run: Path, tmp_path: Path, train: Train):
    """Its names began otherwise, and its settings had no objectives."""
    out = tmp_path / "run"
    train(out, max_steps=5)
    tensors, metadata = read_tensors(out / "last.safetensors")
    before = {now: then for then, now in EARLIER_NAMES.items()}
    renamed = {}
    for name, tensor in tensors.items():
        start = max((now for now in before if name.startswith(now)), key=len, default="")
        renamed[before.get(start, "") + name.removeprefix(start)] = tensor
    assert {"loss.center", "student.head.last_layer.weight_v", "optimizer.head.mlp.0.weight.exp_avg"} <= renamed.keys()
    del metadata["config"]["objectives"]
    write_tensors(out / "last.safetensors", renamed, metadata)
    train(out, resume=True)
    pd.testing.assert_frame_equal(curve(out), curve(reference_run), check_exact=True)
    assert_same_state(out, reference_run)


def test_resuming_where_there_is_nothing_is_an_error(tmp_path: Path, train: Train):
    with pytest.raises(RunError, match=r"no last\.safetensors to resume from"):
        train(tmp_path / "nothing", resume=True)
    assert not (tmp_path / "nothing").exists()


def test_a_finished_run_resumes_to_nothing_more(reference_run: Path, train: Train):
    state = (reference_run / "last.safetensors").read_bytes()
    log = train(reference_run, resume=True)
    assert len(log) == 15
    assert (reference_run / "last.safetensors").read_bytes() == state


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_picture_stops_the_run_and_is_named(workers: int, tmp_path: Path, train: Train):
    write_pictures(tmp_path / "pictures", 8, "jpg")
    broken = tmp_path / "pictures" / "3.jpg"
    broken.write_bytes(broken.read_bytes()[:-300])
    images = open_pretraining_data(tmp_path / "pictures")
    with pytest.raises(DataError, match=r"3\.jpg: cannot be read whole") as error:
        train(tmp_path / "run", images, num_workers=workers, on_bad_sample="raise")
    assert "Traceback" not in str(error.value)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path, train: Train):
    out = tmp_path / "run"
    with pytest.raises(DivergedError, match=r"not finite since step \d+\. The last checkpoint") as error:
        train(out, lr=1e30, clip_grad=0, optimizer="sgd", save_every=1, freeze_last_layer=0)
    step = int(str(error.value).split("since step ")[1].split(".")[0])
    tensors, metadata = read_tensors(out / "last.safetensors")
    assert metadata["step"] == step - 1
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_augmenting_on_the_device_is_the_same_run_but_for_rounding(tmp_path: Path, train: Train):
    """Micro-batches and a second start change nothing here either."""
    in_loader = train(tmp_path / "loader", max_steps=3)
    whole = train(tmp_path / "device", max_steps=3, augment_on="device")
    train(tmp_path / "parts", max_steps=1, augment_on="device", accumulate=2)
    parts = train(tmp_path / "parts", max_steps=3, augment_on="device", accumulate=2, resume=True)
    np.testing.assert_allclose(whole["loss"], parts["loss"], rtol=1e-5)
    np.testing.assert_allclose(whole["loss"], in_loader["loss"], rtol=0.02)
    assert (whole["loss"] != in_loader["loss"]).any()


def test_without_local_crops(tmp_path: Path, train: Train):
    log = train(tmp_path / "run", local_crops_number=0, max_steps=2)
    assert np.isfinite(log["loss"]).all()


def test_a_conv_net_keeps_batch_statistics_of_its_own_teacher(tmp_path: Path, train: Train):
    train(tmp_path / "run", arch="resnet10t", max_steps=2, optimizer="sgd", use_bn_in_head=True, lr=1.0)
    tensors, _ = read_tensors(tmp_path / "run" / "last.safetensors")
    student, teacher = (tensors[f"{who}.backbone.bn1.running_mean"] for who in ("student", "teacher"))
    assert student.any()
    assert teacher.any()
    assert not torch.equal(student, teacher)
    assert tensors["student.backbone.bn1.num_batches_tracked"] == 2 * 2  # global and local crops
    assert tensors["teacher.backbone.bn1.num_batches_tracked"] == 2  # global crops only


def test_tar_shards_train_as_the_folder_and_resume_within_a_shard(pictures: Path, tmp_path: Path, train: Train):
    """The order is a permutation of all images of all shards: a resumed run loses and repeats none."""
    files = open_pretraining_data(pictures)
    paths = [pictures / files.name(index) for index in range(len(files))]
    for number, part in enumerate((paths[:11], paths[11:])):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            for path in part:
                archive.add(path, path.name)
    shards = open_pretraining_data(str(tmp_path / "{0..1}.tar"))
    folder = train(tmp_path / "folder", max_steps=5)
    train(tmp_path / "tar", shards, max_steps=2, save_every=2)
    train(tmp_path / "tar", shards, max_steps=5, resume=True)
    pd.testing.assert_frame_equal(curve(tmp_path / "tar"), folder.drop(columns=TIMES), check_exact=True)
    assert_same_state(tmp_path / "tar", tmp_path / "folder")


def test_parquet_files_resume_within_a_row_group(
    pictures: Path, tmp_path: Path, train: Train, monkeypatch: pytest.MonkeyPatch
):
    """The order is a function of seed and epoch: a resumed run loses and repeats no row."""
    rows = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(pictures.iterdir())]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), tmp_path / "a.parquet", row_group_size=5)
    monkeypatch.setattr("data.parquet.WINDOW_BYTES", 10 * len(rows[0]["bytes"]))
    images = open_pretraining_data(str(tmp_path / "a.parquet"))
    assert images.read_groups.window < len(images.read_groups.sizes) == 6
    train(tmp_path / "whole", images, max_steps=5)
    train(tmp_path / "parts", images, max_steps=2, save_every=2)
    train(tmp_path / "parts", open_pretraining_data(str(tmp_path / "a.parquet")), max_steps=5, resume=True)
    pd.testing.assert_frame_equal(curve(tmp_path / "parts"), curve(tmp_path / "whole"), check_exact=True)
    assert_same_state(tmp_path / "parts", tmp_path / "whole")


def test_a_run_that_skips_dropped_crops_has_the_same_curve_and_may_begin_in_the_middle(tmp_path: Path, train: Train):
    whole = train(tmp_path / "whole", max_steps=4)
    train(tmp_path / "kept", max_steps=2, save_every=2)
    kept = train(tmp_path / "kept", max_steps=4, resume=True, skip_dropped=True)
    np.testing.assert_allclose(kept["loss"], whole["loss"], atol=1e-4)
    np.testing.assert_allclose(kept["grad_norm"], whole["grad_norm"], rtol=1e-2)


@pytest.mark.parametrize(
    "changes",
    [{}, {"pack": True, "dtype": "bf16"}, {**BODIES["rotary"], "objectives": ("dino", "ibot"), "accumulate": 2}],
    ids=["crops", "packed", "rotary"],
)
def test_activation_checkpointing_changes_no_bit(tmp_path: Path, train: Train, changes: dict[str, Any]):
    """Drop path and crops of two sizes are on; the second pass of a block comes when others have run since."""
    runs = [tmp_path / "kept", tmp_path / "again"]
    logs = [train(out, max_steps=3, activation_checkpointing=out == runs[1], **changes) for out in runs]
    for column in ("loss", "grad_norm"):
        assert logs[0][column].tolist() == logs[1][column].tolist()
    kept, again = (read_tensors(out / "teacher.safetensors")[0] for out in runs)
    assert all(torch.equal(kept[name], again[name]) for name in kept)
