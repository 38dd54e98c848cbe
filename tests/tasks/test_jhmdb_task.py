"""Poses: the reference's labels and score through its list and .mat files, the command, refusals."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.io import savemat

from data import DataError
from data.jhmdb import load_jhmdb, source_of
from data.sample.points import sample_joints
from dino_dense.propagation.joints import draw_joints, with_background
from tasks import RunOptions, get, run_one
from tasks.jhmdb import JhmdbConfig, open_videos
from tasks.scores.pose import met_joints, pck, pose_distances
from tests.device import chosen_name
from tests.reference_files import reference


def write_list(root: Path, videos: list[tuple[tuple[int, int], np.ndarray]]) -> Path:
    """A list of videos of (height, width) and pos_img [2, K, T]."""
    lines = []
    for number, (size, positions) in enumerate(videos):
        folder = root / "frames" / f"video{number}"
        folder.mkdir(parents=True)
        for frame in range(positions.shape[2]):
            Image.new("RGB", size[::-1]).save(folder / f"{frame + 1:05d}.png")
        savemat(root / f"video{number}.mat", {"pos_img": positions})
        lines.append(f"frames/video{number} video{number}.mat\n")
    (root / "list.txt").write_text("".join(lines))
    return root / "list.txt"


def test_the_list_gives_the_reference_labels_and_score(tmp_path: Path):
    arrays = reference("jhmdb")
    side, count = int(arrays["feat_res"]), int(arrays["num_videos"])
    sizes = [tuple(int(v) for v in arrays[f"video{k}.size_hw"]) for k in range(count)]
    written = [(sizes[k], arrays[f"video{k}.pos_img"]) for k in range(count)]
    distances = []
    for number, video in enumerate(load_jhmdb(write_list(tmp_path, written))):  # type: ignore[arg-type]
        height, width = video.size
        first = video.joints[0] / [width, height] * [side, side]
        labels = with_background(draw_joints(first, (side, side)))
        np.testing.assert_allclose(labels.permute(1, 2, 0).numpy(), arrays[f"video{number}.label_frame0"], atol=1e-6)
        cells = arrays[f"video{number}.coords"].transpose(2, 1, 0).astype(np.float64)
        distances.append(pose_distances(cells, video.joints, video.size, (side, side)))
    np.testing.assert_allclose(pck(distances, arrays["alphas"]), arrays["pck"], rtol=0, atol=1e-6)
    met, counted = met_joints(distances[0], (0.1,))
    assert met.shape == (1, 15)
    assert (met[0] <= counted).all()


def test_the_command_writes_tables_and_pictures(tmp_path: Path):
    options = RunOptions(ckpt="random:vit_micro_patch8_64", out=str(tmp_path), device=chosen_name())
    report = run_one(get("jhmdb"), options, JhmdbConfig(image_size=160, max_videos=2))
    values = {score.metric: score.value for score in report.scores}
    assert values["strict PCK@0.1"] <= values["PCK@0.1"] <= values["PCK@0.2"]
    table = pd.read_csv(tmp_path / "per_joint.csv")
    assert table["joint"].tolist() == [*map(str, range(15)), "mean"]
    assert table["PCK@0.1"].iloc[-1] == pytest.approx(values["PCK@0.1"])
    assert report.data["name"] == "embedded joints (not JHMDB) (part: 2 of 3)"
    assert all((tmp_path / picture.file).is_file() for picture in report.pictures)


def test_embedded_joints_move():
    videos = load_jhmdb(sample_joints())
    assert [video.joints.shape for video in videos] == [(10, 15, 2)] * 3
    steps = [np.linalg.norm(np.diff(video.joints, axis=0), axis=-1) for video in videos]
    assert all(1 < step.mean() < 30 for step in steps)


def joints(frames: int = 3) -> np.ndarray:
    return 1 + 10 * np.random.default_rng(0).random((2, 15, frames))


def test_refusals(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        load_jhmdb(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no list of videos"):
        load_jhmdb(tmp_path)
    listed = write_list(tmp_path, [((20, 30), joints())])
    savemat(tmp_path / "video0.mat", {"pos_img": joints(5)})
    with pytest.raises(DataError, match=r"joints of 5 frames, but .*video0 has 3"):
        load_jhmdb(listed)
    savemat(tmp_path / "video0.mat", {"pos_img": np.full((2, 15, 3), np.nan)})
    with pytest.raises(DataError, match="no finite numbers"):
        load_jhmdb(listed)
    savemat(tmp_path / "video0.mat", {"other": joints()})
    with pytest.raises(DataError, match="pos_img is NoneType"):
        load_jhmdb(listed)
    (tmp_path / "video0.mat").write_bytes(b"no matlab file at all" * 20)
    with pytest.raises(DataError, match="not a MATLAB file"):
        load_jhmdb(listed)
    listed.write_text("frames/video0\n")
    with pytest.raises(DataError, match=r"line 1: expected a folder of frames and a \.mat file"):
        load_jhmdb(listed)
    listed.write_text("\n")
    with pytest.raises(DataError, match="the list is empty"):
        load_jhmdb(listed)
    with pytest.raises(ValueError, match="temperature is 0"):
        JhmdbConfig(temperature=0)


def test_clips_of_one_video_are_one_cluster_and_other_joints_are_other_data(tmp_path: Path):
    assert source_of("golf/Me_at_golf_golf_f_cm_np1_ri_med_12") == "golf/Me_at_golf_golf"
    assert source_of("golf/clip_12") == "golf/clip_12"
    positions = np.random.default_rng(0).uniform(1, 30, (2, 3, 4))
    listed = write_list(tmp_path, [((32, 32), positions)])
    before = open_videos(JhmdbConfig(data=str(listed))).facts.sha256
    savemat(tmp_path / "video0.mat", {"pos_img": positions + 1})
    assert open_videos(JhmdbConfig(data=str(listed))).facts.sha256 != before
