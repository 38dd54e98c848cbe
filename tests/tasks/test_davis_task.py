"""The DAVIS task from files to files: resuming, scoring, and input that cannot be used."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data import DataError
from data.masks import read_ids, write_mask
from dino_dense import Report
from dino_dense.propagation.video import Frame, VideoPropagator, pixel_note, pixel_statistics
from tasks import RunOptions, get, main, run_one
from tasks.davis import (
    DavisConfig,
    open_videos,
)
from tests.device import chosen_name
from tests.oracles import oracle_backbone
from tests.overlapping import let_two_meet

RANDOM = "random:vit_micro_patch8_64"
DAVIS = get("davis")
FRAMES = 5


def disc(center: tuple[int, int], size: tuple[int, int], radius: int = 14) -> np.ndarray:
    """Ids [H, W] with object 1 a disc around (x, y)."""
    return cv2.circle(np.zeros(size, np.uint8), center, radius, 1, -1)


def make_tree(root: Path, names: tuple[str, ...] = ("one", "two"), size: tuple[int, int] = (64, 96)) -> Path:
    """A DAVIS-2017 tree: a bright disc that moves over noise. Frame names begin at 00003."""
    rng = np.random.default_rng(0)
    for name in names:
        ground = rng.integers(0, 90, (*size, 3), np.uint8)
        for index in range(FRAMES):
            ids = disc((24 + 6 * index, 32), size)
            frame = np.where(ids[..., None] > 0, np.uint8(230), ground)
            path = root / "JPEGImages" / "480p" / name / f"{index + 3:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), frame)
            write_mask(root / "Annotations" / "480p" / name / f"{index + 3:05d}.png", ids)
    lists = root / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("\n".join(names) + "\n")
    return root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree")


def config_for(tree: Path, **changes: object) -> DavisConfig:
    return replace(DavisConfig(data=str(tree), short_side=None), **changes)  # type: ignore[arg-type]


def run(tree: Path, out: Path, **changes: object) -> Report:
    return run_one(DAVIS, RunOptions(ckpt=RANDOM, out=str(out), device=chosen_name()), config_for(tree, **changes))


def pngs(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted((out / "masks").rglob("*.png"))}


def test_masks_have_the_frames_names_and_native_size(tree: Path, tmp_path: Path):
    report = run(tree, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out" / "masks" / "one").iterdir())
    assert names == [f"{index + 3:05d}.png" for index in range(FRAMES)]
    for name in names:
        with Image.open(tmp_path / "out" / "masks" / "one" / name) as image:
            assert image.mode == "P"
            assert image.size == (96, 64)
    first = read_ids(tmp_path / "out" / "masks" / "one" / "00003.png")
    assert (first == disc((24, 32), (64, 96))).all()
    assert report.data["dataset"] is None
    table = pd.read_csv(tmp_path / "out" / "per_frame.csv")
    assert len(table) == 2 * (FRAMES - 2)
    official = pd.read_csv(tmp_path / "out" / "global_results-val.csv")
    columns = ["J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay"]
    assert list(official) == columns
    assert 100 * official["J&F-Mean"][0] == pytest.approx(report.scores[0].value)
    assert (tmp_path / "out" / "overlays" / "one.jpg").is_file()
    with Image.open(tmp_path / "out" / "overlays" / "one_curves.png") as curves:
        assert curves.width > 400
    captions = [picture.caption.partition(":")[0] for picture in report.pictures]
    worst, best = (name.removesuffix("_1") for name in by_score(tmp_path / "out"))
    assert captions == [f"{worst} (worst)"] * 2 + [f"{best} (best)"] * 2


def by_score(out: Path) -> list[str]:
    samples = pd.read_csv(out / "samples.csv")
    return samples.sort_values("J&F-Mean", kind="stable")["sample"].to_list()


def test_pictures_of_other_peoples_masks_do_without_the_last_frame(tree: Path, tmp_path: Path):
    shutil.copytree(tree / "Annotations" / "480p", tmp_path / "masks")
    for path in (tmp_path / "masks").glob("*/00007.png"):
        path.unlink()
    config = config_for(tree, score=str(tmp_path / "masks"))
    report = run_one(DAVIS, RunOptions(out=str(tmp_path / "out")), config)
    assert [(tmp_path / "out" / picture.file).is_file() for picture in report.pictures] == [True] * 4


def test_a_run_cut_off_and_started_again_gives_the_same_files(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run(tree, tmp_path / "whole")
    written = []

    def cut_off(path: Path, ids: np.ndarray) -> None:
        if len(written) == FRAMES + 2:  # in the middle of the second sequence
            raise KeyboardInterrupt
        written.append(path)
        write_mask(path, ids)

    with monkeypatch.context() as patch:
        patch.setattr("tasks.davis.write_mask", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run(tree, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "masks").iterdir()) == ["one"]
    before = (tmp_path / "out" / "masks" / "one" / "00004.png").stat().st_mtime_ns
    run(tree, tmp_path / "out")
    assert (tmp_path / "out" / "masks" / "one" / "00004.png").stat().st_mtime_ns == before
    assert pngs(tmp_path / "out") == pngs(tmp_path / "whole")


def test_a_folder_of_another_run_is_refused(tree: Path, tmp_path: Path):
    run(tree, tmp_path / "out")
    with pytest.raises(ValueError, match=r"out: holds the results of another run \(radius was 12, now 3\)"):
        run(tree, tmp_path / "out", radius=3)


def test_ground_truth_scores_100_and_needs_no_backbone(tree: Path, tmp_path: Path):
    config = config_for(tree, score=str(tree / "Annotations" / "480p"))
    report = run_one(DAVIS, RunOptions(out=str(tmp_path / "out")), config)
    values = {score.metric: score.value for score in report.scores}
    assert values["J&F-Mean"] == values["J-Recall"] == 100
    assert values["J-Decay"] == 0
    assert report.checkpoint == {}


def test_objects_of_a_video_are_one_draw(tree: Path, tmp_path: Path):
    """The error of the mean over objects is that of videos drawn, by a plain jackknife."""
    for path in (tree / "Annotations" / "480p").rglob("*.png"):
        moved = np.roll(read_ids(path), 2 if path.parent.name == "one" else 6, axis=1)
        write_mask(tmp_path / "masks" / path.parent.name / path.name, moved)
    report = run(tree, tmp_path / "out", score=str(tmp_path / "masks"))
    samples = pd.read_csv(tmp_path / "out" / "samples.csv")
    assert samples["cluster"].tolist() == [name.rpartition("_")[0] for name in samples["sample"]]
    left_out = [samples.loc[samples["cluster"] != video, "J-Mean"].mean() for video in samples["cluster"].unique()]
    expected = np.sqrt((len(left_out) - 1) * np.var(left_out))
    assert expected > 1
    assert {score.metric: score.stderr for score in report.scores}["J-Mean"] == pytest.approx(expected)


def test_scoring_says_which_file_is_wrong(tree: Path, tmp_path: Path):
    masks = tmp_path / "masks"
    shutil.copytree(tree / "Annotations" / "480p", masks)
    bad = masks / "two" / "00005.png"
    for spoil, says in (
        (lambda: write_mask(bad, np.full((64, 96), 2, np.uint8)), "predicted id 2"),
        (lambda: write_mask(bad, np.zeros((32, 96), np.uint8)), "32x96"),
        (bad.unlink, "no such file"),
    ):
        spoil()
        with pytest.raises(DataError, match=rf"00005\.png.*{says}"):
            run_one(DAVIS, RunOptions(out=str(tmp_path / "out")), config_for(tree, score=str(masks)))
    assert not (tmp_path / "out").exists()


def test_without_ground_truth_it_writes_masks_and_says_so(tree: Path, tmp_path: Path):
    for path in (tree / "Annotations" / "480p").glob("*/*.png"):
        if path.name != "00003.png":
            path.unlink()
    report = run(tree, tmp_path / "out")
    assert report.scores == ()
    assert "Not scored: 2 of 2 sequences have no ground truth" in report.note
    assert len(pngs(tmp_path / "out")) == 2 * FRAMES


def test_square_frames_keep_their_labels_in_place(tmp_path: Path):
    """The reference resizes a square frame to 480x448 and its labels to 448x480, which scrambles them."""
    tree = make_tree(tmp_path / "tree", names=("square",), size=(96, 96))
    config = config_for(tree, short_side=480)
    (sequence,) = open_videos(config).sequences
    truth = [sequence.read_mask(index) for index in range(FRAMES)]
    oracle = oracle_backbone(known_frames(sequence, truth))
    frames = [Frame(sequence.read_frame(index), None if index else truth[0]) for index in range(FRAMES)]
    propagator = VideoPropagator(oracle, config, sequence.size, [1])
    for (_, predicted), expected in zip(propagator.run(frames), truth, strict=True):
        assert (predicted == expected).mean() > 0.97


def known_frames(sequence, truth):
    import torch

    from tests.oracles import thumbnail, to_tensor

    thumbnails = [thumbnail(to_tensor(sequence.read_frame(index))) for index in range(len(sequence))]
    return torch.cat(thumbnails), truth


def test_year_2016_reads_any_value_as_the_object(tree: Path, tmp_path: Path):
    for path in (tree / "Annotations" / "480p").glob("*/*.png"):
        Image.fromarray(read_ids(path) * 255).save(path)
    (tree / "ImageSets" / "2016").mkdir()
    shutil.copy(tree / "ImageSets" / "2017" / "val.txt", tree / "ImageSets" / "2016")
    report = run(tree, tmp_path / "out", year=2016)
    assert report.scores[0].value > 0
    with pytest.raises(DataError, match=r"00003\.png.*255.*2016"):
        run(tree, tmp_path / "other")


def spoil_first_mask(tree: Path, ids: np.ndarray) -> None:
    write_mask(tree / "Annotations" / "480p" / "two" / "00003.png", ids)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda t: shutil.rmtree(t), "no such folder"),
        (lambda t: shutil.rmtree(t / "JPEGImages"), "not a DAVIS tree"),
        (lambda t: (t / "Annotations/480p/two/00003.png").unlink(), r"two/00003\.png: no such file"),
        (lambda t: spoil_first_mask(t, np.ones((10, 10), np.uint8)), r"two/00003\.png: 10x10"),
        (lambda t: spoil_first_mask(t, np.zeros((64, 96), np.uint8)), r"two/00003\.png: the first mask has no object"),
        (lambda t: spoil_first_mask(t, 2 * disc((20, 20), (64, 96))), r"two/00003\.png: object ids \[2\] have gaps"),
        (lambda t: spoil_first_mask(t, 255 * disc((20, 20), (64, 96))), r"two/00003\.png: value 255 \(void"),
    ],
)
def test_bad_trees_are_refused_before_anything_is_written(tree: Path, tmp_path: Path, spoil, says: str):
    spoil(tree)
    with pytest.raises(DataError, match=says):
        run(tree, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_truncated_frame_is_named_and_its_sequence_is_not_half_there(tree: Path, tmp_path: Path):
    frame = tree / "JPEGImages" / "480p" / "two" / "00005.jpg"
    frame.write_bytes(frame.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"two/00005\.jpg: truncated JPEG"):
        run(tree, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "masks").iterdir()) == ["one"]


def test_command_line(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["--ckpt", RANDOM, "--data", str(tree), "--sequences", "one", "--short-side", "64", "--max-frames", "3"]
    assert main("davis", [*argv, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "J&F-Mean" in text
    assert "part: 1 sequences, 3 frames" in text
    with pytest.raises(DataError, match="did you mean one"):
        main("davis", ["--ckpt", RANDOM, "--data", str(tree), "--sequences", "onne"])
    with pytest.raises(ValueError, match="which checkpoint"):
        main("davis", ["--data", str(tree)])


@pytest.mark.parametrize("preset", ["dino", "crw", "dinov3"])
@pytest.mark.parametrize("arch", ["vit_micro_patch14_70", "vit_micro_patch16_64", "resnet18"])
def test_presets_run_with_any_patch_size(tree: Path, tmp_path: Path, preset: str, arch: str):
    argv = ["--ckpt", f"random:{arch}", "--data", str(tree), "--sequences", "one", "--preset", preset]
    argv += ["--out", str(tmp_path / "out"), "--max-frames", "3", "--device", "cpu"]
    if preset != "crw":
        argv += ["--short-side", "96"]
    assert main("davis", argv) == 0
    assert len(pngs(tmp_path / "out")) == 3


def test_masks_of_other_data_are_not_reused(tree: Path, tmp_path: Path):
    run(tree, tmp_path / "out")
    frame = tree / "JPEGImages" / "480p" / "one" / "00005.jpg"
    cv2.imwrite(str(frame), np.zeros((64, 96, 3), np.uint8))
    with pytest.raises(ValueError, match=r"out: holds the results of another run \(data_sha256 was"):
        run(tree, tmp_path / "out")


def test_masks_of_unknown_origin_are_not_reused(tree: Path, tmp_path: Path):
    shutil.copytree(tree / "Annotations" / "480p", tmp_path / "out" / "masks")
    with pytest.raises(ValueError, match=r"holds masks but no run\.json"):
        run(tree, tmp_path / "out")


def test_memory_for_propagation_changes_no_result_and_no_folder(tree: Path, tmp_path: Path):
    first = run(tree, tmp_path / "out")
    again = run(tree, tmp_path / "out", max_memory=1)
    other = run(tree, tmp_path / "other", max_memory=1)
    assert first.scores == again.scores == other.scores


def test_the_written_config_repeats_the_run(tree: Path, tmp_path: Path):
    first = run(tree, tmp_path / "a", radius=3)
    argv = ["--config", str(tmp_path / "a" / "config.yaml"), "--out", str(tmp_path / "b")]
    assert main("davis", argv) == 0
    assert Report.from_json((tmp_path / "b" / "report.json").read_text()).scores == first.scores


def test_pixel_statistics_are_the_protocols_unless_the_backbone_has_its_own(tree: Path):
    config = config_for(tree)
    imagenet = oracle_backbone()
    imagenet.mean, imagenet.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert pixel_statistics(imagenet, config).std == (0.228, 0.224, 0.225)
    own = oracle_backbone()
    own.mean = own.std = (0.5, 0.5, 0.5)
    assert pixel_statistics(own, config) is own
    assert "mean (0.5, 0.5, 0.5)" in pixel_note(own)


def test_on_a_gpu_sequences_overlap_and_the_masks_are_the_same(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two sequences meet before they propagate, and nothing else changes."""
    alone = run(tree, tmp_path / "alone")
    let_two_meet(monkeypatch)
    together = run(tree, tmp_path / "together")
    assert together.scores == alone.scores
    assert pngs(tmp_path / "together") == pngs(tmp_path / "alone")


@pytest.mark.parametrize("frames", [1, 2])
def test_too_few_frames_are_refused_at_once(frames: int):
    with pytest.raises(ValueError, match=f"max_frames is {frames}: expected 3 or more"):
        DavisConfig(max_frames=frames)


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(tree: Path, tmp_path: Path):
    one = run(tree, tmp_path / "one")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--ckpt", RANDOM, "--data", str(tree), "--short-side", "null", "--device", "cpu"]
    command = [*launcher, "-m", "tasks.davis", *options, "--out", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    two = Report.from_json((tmp_path / "two" / "report.json").read_text())
    assert two.scores == one.scores
    assert pngs(tmp_path / "two") == pngs(tmp_path / "one")
