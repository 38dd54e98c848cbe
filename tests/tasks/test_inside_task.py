"""Points inside masks: a naive count, true features and noise, the command, refusals."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from data import DataError
from data.masks import write_mask
from tasks import Outcome, RunOptions, Session, get, measured, run_one
from tasks.inside import InsideConfig, open_videos
from tests.clip_files import moving_disc, moving_mask
from tests.color_backbone import color_backbone
from tests.device import chosen_name

SIZE, LENGTH, GONE = (48, 64), 6, 4
CONFIG = InsideConfig(year=2016, short_side=48, points=20, gap=3, pairs=2)


@pytest.fixture
def tree(tmp_path: Path) -> str:
    """A bright square that moves; in one frame its mask is empty."""
    root = tmp_path / "DAVIS"
    frames, masks = root / "JPEGImages" / "480p" / "square", root / "Annotations" / "480p" / "square"
    frames.mkdir(parents=True)
    for index in range(LENGTH):
        Image.fromarray(moving_disc(index, SIZE)).save(frames / f"{index:05d}.jpg", quality=95)
        write_mask(masks / f"{index:05d}.png", moving_mask(index, SIZE) * (index != GONE))
    (root / "ImageSets" / "2016").mkdir(parents=True)
    (root / "ImageSets" / "2016" / "val.txt").write_text("square\n")
    return str(root)


def outcome_of(tree: str, out: Path) -> Outcome:
    config = replace(CONFIG, data=tree)
    session = Session(out=out, device=torch.device("cpu"))
    return measured(get("inside"), color_backbone(), open_videos(config), config, session)


def test_places_are_looked_up_in_the_masks_of_frames_that_show_the_object(tree: str, tmp_path: Path):
    outcome = outcome_of(tree, tmp_path / "out")
    (row,) = outcome.tables["per_video"].to_dict("records")
    result = outcome.to_draw[0]
    inside = [
        moving_mask(frame, SIZE)[int(y), int(x)] > 0
        for frame in range(1, LENGTH)
        if frame != GONE
        for x, y in result.tracks[:, frame]
    ]
    assert row["stays inside"] == pytest.approx(100 * np.mean(inside))
    assert row["stays inside"] > 80
    assert (row["points"], row["frames"]) == (20, LENGTH)
    assert row["matches"] == 40, "20 of each of the pairs (0, 3) and (2, 5)"
    assert row["chance"] == pytest.approx(100 * moving_mask(0, SIZE).mean())
    by_frame = outcome.tables["by_frame"].set_index("frame")["inside"]
    assert np.isnan(by_frame[GONE])
    assert by_frame.drop(GONE).mean() == pytest.approx(row["stays inside"])


def test_the_command_writes_tables_and_pictures(tmp_path: Path):
    options = RunOptions(ckpt="random:vit_micro_patch8_64", out=str(tmp_path), device=chosen_name())
    report = run_one(get("inside"), options, replace(get("inside").smoke, points=5))
    assert {score.metric for score in report.scores} == {"stays inside", "match inside"}
    assert "A place drawn at random is inside in" in report.note
    assert all((tmp_path / picture.file).is_file() for picture in report.pictures)
    assert set(pd.read_csv(tmp_path / "by_frame.csv")["frame"]) == {1, 2, 3}


def test_refusals(tree: str):
    with pytest.raises(ValueError, match="gap is 0"):
        InsideConfig(gap=0)
    with pytest.raises(DataError, match="no sequence has more than 6 frames"):
        open_videos(replace(CONFIG, data=tree, gap=6))
    for mask in sorted((Path(tree) / "Annotations" / "480p" / "square").iterdir())[1:]:
        mask.unlink()
    with pytest.raises(DataError, match="no masks beyond the first frame in square"):
        open_videos(replace(CONFIG, data=tree))
