"""Parts: the reference's matrix through its tree, the command, refusals."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from data import DataError
from data.masks import write_mask
from data.sample.points import sample_parts
from data.vip import CLASSES, load_vip
from tasks import RunOptions, Session, get, measured, run_one
from tasks.scores.segmentation import confusion
from tasks.vip import VipConfig, open_videos
from tests.device import chosen_name
from tests.oracles import oracle_backbone
from tests.reference_files import reference


def write_tree(root: Path, videos: dict[str, np.ndarray]) -> Path:
    """Classes [T, H, W] of each video as VIP's tree, with black pictures."""
    for name, classes in videos.items():
        (root / "Images" / name).mkdir(parents=True)
        for index, ids in enumerate(classes):
            Image.new("RGB", ids.shape[::-1]).save(root / "Images" / name / f"{index:06d}.jpg")
            write_mask(root / "Annotations" / "Category_ids" / name / f"{index:06d}.png", ids)
    return root


def test_the_tree_gives_the_reference_matrix(tmp_path: Path):
    arrays = reference("vip")
    count = int(arrays["num_videos"])
    root = write_tree(tmp_path, {f"video{k}": arrays[f"video{k}.gt"] for k in range(count)})
    total = np.zeros((CLASSES, CLASSES), np.int64)
    for number, video in enumerate(load_vip(root)):
        for index, predicted in enumerate(arrays[f"video{number}.pred"]):
            truth = video.read_classes(index)
            resized = Image.fromarray(predicted).resize(truth.shape[::-1], Image.Resampling.NEAREST)
            total += confusion(np.array(resized), truth, CLASSES)
    np.testing.assert_array_equal(total, arrays["confusion"])


def test_true_features_keep_the_classes_and_samples_add_up(tmp_path: Path):
    config = VipConfig(image_size=240)
    session = Session(out=tmp_path, device=torch.device("cpu"))
    outcome = measured(get("vip"), oracle_backbone(), open_videos(config), config, session)
    assert outcome.scores[0].value > 75
    table = outcome.tables["per_class"]
    assert outcome.scores[0].value == pytest.approx(np.nanmean(table["IoU"]))
    assert table["pixels"].sum() == sum(
        video.read_classes(k).size for video in load_vip(sample_parts()) for k in range(len(video.frames))
    )


def test_the_command_writes_tables_and_pictures(tmp_path: Path):
    options = RunOptions(ckpt="random:vit_micro_patch8_64", out=str(tmp_path), device=chosen_name())
    report = run_one(get("vip"), options, VipConfig(image_size=160, max_videos=2))
    assert [score.metric for score in report.scores] == ["mIoU", "pixel accuracy", "mean accuracy", "weighted IoU"]
    assert len(pd.read_csv(tmp_path / "per_class.csv")) == CLASSES
    assert all((tmp_path / picture.file).is_file() for picture in report.pictures)


def test_refusals(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        load_vip(tmp_path / "nowhere")
    with pytest.raises(DataError, match="expected Images and Category_ids"):
        load_vip(tmp_path)
    root = write_tree(tmp_path / "tree", {"a": np.zeros((3, 8, 9), np.uint8)})
    with pytest.raises(DataError, match=r"test_videos\.txt: no such list"):
        load_vip(root, "test")
    write_mask(root / "Annotations" / "Category_ids" / "a" / "000001.png", np.zeros((5, 9), np.uint8))
    with pytest.raises(DataError, match=r"\(5, 9\) \(height, width\), but its frame has \(8, 9\)"):
        load_vip(root)[0].read_classes(1)
    (root / "Images" / "a" / "000002.jpg").unlink()
    with pytest.raises(DataError, match="frame 000002 of video 'a' has no picture"):
        load_vip(root)
    (root / "lists").mkdir()
    (root / "lists" / "val_videos.txt").write_text("../a\n")
    with pytest.raises(DataError, match="is no name of a video"):
        load_vip(root)
