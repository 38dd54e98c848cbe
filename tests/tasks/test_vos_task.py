"""Late objects: trees with every trap of the benchmarks' readers, masks and zips as servers want them, refusals."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from data import DataError
from data.masks import write_mask
from data.vos import load_vos
from tasks import RunOptions, Session, get, measured, run_one
from tasks.vos import VosConfig, open_videos
from tests.device import chosen_name
from tests.oracles import oracle_backbone
from tests.overlapping import let_two_meet

RANDOM = "random:vit_micro_patch8_64"
SIZE = (37, 53)  # odd, height and width
PALETTE = [value % 256 for value in range(7, 7 + 768)]
NAMES = [f"{5 * index:05d}" for index in range(6)]


def ids_at(*objects: int) -> np.ndarray:
    """A square for each object, side by side."""
    ids = np.zeros(SIZE, np.uint8)
    for place, identity in enumerate(objects):
        ids[8:24, 3 + 16 * place : 17 + 16 * place] = identity
    return ids


def write_frames(folder: Path) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in NAMES:
        Image.fromarray(rng.integers(0, 255, (*SIZE, 3), np.uint8)).save(folder / f"{name}.jpg")


def youtube(root: Path, change: Callable[[dict], object] = lambda objects: None) -> Path:
    """First mask at the second frame; ids 1 and 3, the later given at a frame that is not named."""
    write_frames(root / "all_frames" / "valid_all_frames" / "JPEGImages" / "zebra")
    masks = root / "valid" / "Annotations" / "zebra"
    write_mask(masks / f"{NAMES[1]}.png", ids_at(1), PALETTE)
    write_mask(masks / f"{NAMES[2]}.png", ids_at(0, 3))
    objects = {
        "1": {"category": "zebra", "frames": [NAMES[0], NAMES[1], NAMES[3]]},
        "3": {"frames": [NAMES[3], NAMES[5]]},
    }
    change(objects)
    videos = {"zebra": {"objects": objects}, "without masks": {"objects": {"1": {"frames": [NAMES[0]]}}}}
    (root / "valid" / "meta.json").write_text(json.dumps({"videos": videos}))
    return root


def plain(root: Path, masks: dict[str, np.ndarray]) -> Path:
    """The layout of MOSE and LVOS."""
    write_frames(root / "valid" / "JPEGImages" / "zebra")
    for name, ids in masks.items():
        write_mask(root / "valid" / "Annotations" / "zebra" / f"{name}.png", ids)
    return root


# --- Trees ---


def test_youtube_vos(tmp_path: Path):
    layout, (video,) = load_vos(youtube(tmp_path))
    assert layout == "youtube"
    assert [frame.stem for frame in video.frames] == NAMES[1:], "frames before the first mask are skipped"
    assert video.starts == {1: 0, 3: 1}
    assert sorted(video.wanted) == [0, 2, 4], "named frames; the one before the first mask cannot be written"
    np.testing.assert_array_equal(video.read_given(1), ids_at(0, 3))
    assert video.read_given(2) is None
    assert video.palette[:6] == PALETTE[:6]


def test_mose_takes_its_first_mask_alone(tmp_path: Path):
    layout, (video,) = load_vos(plain(tmp_path, {NAMES[0]: ids_at(2, 5)}))
    assert layout == "mose"
    assert video.starts == {2: 0, 5: 0}
    assert len(video.wanted) == 6
    plain(tmp_path / "more", {NAMES[0]: ids_at(2), NAMES[3]: ids_at(2, 5)})
    _, (video,) = load_vos(tmp_path / "more", "mose")
    assert video.starts == {2: 0}


def test_lvos_gives_ids_where_they_are_first_seen(tmp_path: Path):
    masks = {NAMES[0]: ids_at(1), NAMES[2]: ids_at(1, 4), NAMES[4]: ids_at(1, 4), NAMES[5]: ids_at(0, 4)}
    layout, (video,) = load_vos(plain(tmp_path, masks))
    assert layout == "lvos"
    assert video.starts == {1: 0, 4: 2}
    np.testing.assert_array_equal(video.read_given(2), ids_at(0, 4))
    assert video.read_given(4) is None
    assert sorted(video.truth) == [0, 2, 4, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda objects: objects["1"]["frames"].append("00099"), "meta.json names frame 00099 of video 'zebra'"),
        (
            lambda objects: objects.update({"7": {"frames": [NAMES[3]]}}),
            "object 7 of video 'zebra', .* appears in no mask",
        ),
        (lambda objects: objects.update({"1": {"category": "zebra"}}), "expected videos, of each its objects"),
        (lambda objects: objects.update({"one": {"frames": []}}), "expected videos, of each its objects"),
    ],
)
def test_a_meta_json_that_does_not_fit_is_refused(change: Callable[[dict], object], message: str, tmp_path: Path):
    with pytest.raises(DataError, match=message):
        load_vos(youtube(tmp_path, change))


def test_other_refusals(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        load_vos(tmp_path / "nowhere")
    with pytest.raises(DataError, match="none of the layouts youtube, mose, lvos"):
        load_vos(tmp_path)
    root = plain(tmp_path / "tree", {NAMES[0]: ids_at(1)})
    with pytest.raises(DataError, match="no video 'dog'; there are zebra"):
        load_vos(root, videos=["dog"])
    with pytest.raises(DataError, match="no such folder of true masks"):
        load_vos(root, truth=tmp_path / "nothing")
    write_mask(root / "valid" / "Annotations" / "zebra" / "00099.png", ids_at(1))
    with pytest.raises(DataError, match="no frame 00099"):
        load_vos(root)
    empty = plain(tmp_path / "empty", {NAMES[0]: ids_at()})
    with pytest.raises(DataError, match="no object in the masks"):
        load_vos(empty)
    other = plain(tmp_path / "other", {NAMES[0]: np.ones((9, 9), np.uint8)})
    with pytest.raises(DataError, match="frames and masks must have one size"):
        load_vos(other)


# --- Masks and zips ---


def run(config: VosConfig, out: Path):
    return run_one(get("vos"), RunOptions(ckpt=RANDOM, out=str(out), device=chosen_name()), config)


@pytest.mark.parametrize(("layout", "top"), [("youtube", "Annotations/"), ("mose", ""), ("lvos", "Annotations/")])
def test_masks_and_zips_are_as_servers_want_them(layout: str, top: str, tmp_path: Path):
    root = tmp_path / "data"
    if layout == "youtube":
        youtube(root)
    else:
        plain(root, {NAMES[0]: ids_at(1, 3)})
    report = run(VosConfig(data=str(root), layout=layout, short_side=None, rounding="ceil"), tmp_path / "out")  # type: ignore[arg-type]
    names = [NAMES[1], NAMES[3], NAMES[5]] if layout == "youtube" else NAMES
    with zipfile.ZipFile(tmp_path / "out" / "submission.zip") as archive:
        assert sorted(archive.namelist()) == [f"{top}zebra/{name}.png" for name in names]
    for name in names:
        with Image.open(tmp_path / "out" / "masks" / "zebra" / f"{name}.png") as image:
            assert image.mode == "P"
            assert image.size == SIZE[::-1]
            assert set(np.unique(np.array(image))) <= {0, 1, 3}
            if layout == "youtube":
                assert image.getpalette()[:6] == PALETTE[:6]
    if layout == "lvos":
        assert report.scores == () or report.samples
    else:
        assert report.scores == ()
        assert "Not scored: no true masks here" in report.note


def test_on_a_gpu_videos_overlap_and_the_masks_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two videos meet before they propagate, and nothing else changes."""
    root = plain(tmp_path / "data", {NAMES[0]: ids_at(1, 3)})
    for folder in (root / "valid" / "JPEGImages", root / "valid" / "Annotations"):
        shutil.copytree(folder / "zebra", folder / "again")
    config = VosConfig(data=str(root), layout="mose", short_side=None, rounding="ceil")
    run(config, tmp_path / "alone")
    let_two_meet(monkeypatch)
    run(config, tmp_path / "together")
    alone, together = (
        {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*.png"))}
        for out in (tmp_path / "alone" / "masks", tmp_path / "together" / "masks")
    )
    assert len(alone) == 2 * len(NAMES)
    assert together == alone


def test_an_object_is_not_written_before_its_first_mask(tmp_path: Path):
    config = VosConfig(data=str(youtube(tmp_path / "data")), short_side=None, rounding="ceil")
    run(config, tmp_path / "out")
    with Image.open(tmp_path / "out" / "masks" / "zebra" / f"{NAMES[1]}.png") as image:
        np.testing.assert_array_equal(np.array(image), ids_at(1))


def test_true_features_score_near_the_top_and_late_objects_count_from_their_mask(tmp_path: Path):
    config = VosConfig(short_side=192)
    session = Session(out=tmp_path, device=torch.device("cpu"))
    outcome = measured(get("vos"), oracle_backbone(), open_videos(config), config, session)
    assert outcome.scores[0].value > 70
    frames = outcome.tables["per_frame"]
    for _, rows in frames.groupby("sequence"):
        first = rows.groupby("object")["frame"].min().astype(int)
        assert (first.iloc[:-1] == 10).all(), "frame 0 is given"
        assert first.iloc[-1] == 20, "given at frame 15, which is not to be written"
        assert rows["frame"].astype(int).max() == 30, "the last frame, 40, is not scored"
    assert pd.api.types.is_float_dtype(outcome.samples["J&F-Mean"])


def test_masks_of_every_frame_that_are_true_score_100(tmp_path: Path):
    """A run whose masks are already there scores them."""
    config = VosConfig(short_side=192)
    videos = open_videos(config)
    for video in videos.items:
        for index in video.wanted:
            write_mask(tmp_path / "masks" / video.name / f"{video.frames[index].stem}.png", video.read_truth(index))
    session = Session(out=tmp_path, device=torch.device("cpu"))
    outcome = measured(get("vos"), oracle_backbone(), videos, config, session)
    assert [score.value for score in outcome.scores] == [100, 100, 100]
