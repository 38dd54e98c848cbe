"""The same numbers as the reference implementations of pose and part propagation, through public functions."""

import numpy as np
import pytest
import torch
from PIL import Image

from dino_dense.propagation.joints import draw_joints, read_joints, with_background
from tasks.scores.pose import boxes, pck, pose_distances
from tasks.scores.segmentation import class_accuracy, class_iou, confusion, pixel_accuracy, weighted_iou
from tests.reference_files import reference

VOID = 255


def points(array: np.ndarray) -> np.ndarray:
    """[2, K, T] as [T, K, 2]."""
    return array.transpose(2, 1, 0).astype(np.float64)


def test_jhmdb_joints_are_drawn_and_read():
    arrays = reference("jhmdb")
    maps = draw_joints(arrays["draw.points"], arrays["draw.maps"].shape[1:], float(arrays["draw.sigma"]))
    np.testing.assert_allclose(maps.numpy(), arrays["draw.maps"], rtol=0, atol=1e-6)
    for video in range(int(arrays["num_videos"])):
        first, later = arrays[f"video{video}.label_frame0"][None], arrays[f"video{video}.soft_maps"]
        labels = torch.from_numpy(np.concatenate([first, later])).permute(0, 3, 1, 2)
        ours = torch.stack([read_joints(frame) for frame in labels])
        np.testing.assert_allclose(ours.numpy(), points(arrays[f"video{video}.coords"]), rtol=0, atol=1e-4)
        drawn = with_background(labels[0, 1:])
        np.testing.assert_allclose(drawn.numpy(), labels[0].numpy(), rtol=0, atol=1e-6)


def test_jhmdb_pck():
    arrays = reference("jhmdb")
    grid = (int(arrays["feat_res"]),) * 2
    videos = []
    for video in range(int(arrays["num_videos"])):
        cells, truth = points(arrays[f"video{video}.coords"]), points(arrays[f"video{video}.pos_img"]) - 1
        seen = (cells >= 0).all(axis=-1)
        np.testing.assert_array_equal(seen.T, arrays[f"video{video}.visible"] > 0)
        np.testing.assert_allclose(boxes(truth, seen), arrays[f"video{video}.boxes"], rtol=0, atol=1e-6)
        height, width = (int(side) for side in arrays[f"video{video}.size_hw"])
        videos.append(pose_distances(cells, truth, (height, width), grid))
    counted = sum((~video.lost).sum(axis=0) for video in videos)
    np.testing.assert_array_equal(counted, arrays["distances_per_joint"])
    np.testing.assert_allclose(pck(videos, arrays["alphas"]), arrays["pck"], rtol=0, atol=1e-6)
    assert (pck(videos, arrays["alphas"], strict=True) <= pck(videos, arrays["alphas"]) + 1e-9).all()


def test_vip():
    arrays = reference("vip")
    classes = int(arrays["num_classes"])
    total = np.zeros((classes, classes), np.int64)
    for video in range(int(arrays["num_videos"])):
        for truth, predicted in zip(arrays[f"video{video}.gt"], arrays[f"video{video}.pred"], strict=True):
            resized = np.array(Image.fromarray(predicted).resize(truth.shape[::-1], Image.Resampling.NEAREST))
            total += confusion(resized, np.where(truth >= classes, VOID, truth), classes)
    np.testing.assert_array_equal(total, arrays["confusion"])
    for ours, name in (
        (class_iou(total), "iou"),
        (class_accuracy(total), "class_accuracy"),
        (pixel_accuracy(total), "pixel_accuracy"),
        (np.nanmean(class_accuracy(total)), "mean_accuracy"),
        (np.nanmean(class_iou(total)), "miou"),
        (weighted_iou(total), "fwiou"),
    ):
        np.testing.assert_allclose(np.asarray(ours) / 100, arrays[name], rtol=0, atol=1e-9, err_msg=name)


# --- what the arrays do not hold ---


@pytest.mark.parametrize("place", [(-9.0, 3.0), (3.0, 40.0), (1e6, 1e6)])
def test_a_joint_outside_the_grid_has_no_map(place: tuple[float, float]):
    maps = draw_joints(np.array([place, (4.0, 5.0)]), (12, 16))
    assert not maps[0].any()
    assert maps[1].max() == 1
    assert (with_background(maps).sum(0) > 0).all()


def test_a_joint_comes_back_where_it_was_drawn_and_a_lost_one_is_said():
    maps = torch.zeros(2, 9, 11)
    maps[0, 4, 7], maps[0, 4, 8] = 0.6, 0.2
    joints = read_joints(torch.cat([torch.zeros(1, 9, 11), maps]))
    torch.testing.assert_close(joints[0], torch.tensor([7.25, 4.0]))
    assert joints[1].tolist() == [-1, -1]


def test_lost_joints_raise_the_published_score_and_not_the_strict_one():
    truth = np.array([[[8.0, 8.0], [24.0, 8.0], [16.0, 24.0]]] * 3)
    cells = truth / 8
    cells[2, 0] += 3  # a miss
    video = pose_distances(cells, truth, (32, 32), (4, 4))
    with_miss = pck([video], (0.1,))[0, -1]
    cells[2, 0] = -1
    video = pose_distances(cells, truth, (32, 32), (4, 4))
    assert with_miss < pck([video], (0.1,))[0, -1] == 100
    assert pck([video], (0.1,), strict=True)[0, -1] == pytest.approx(with_miss)
    with pytest.raises(ValueError, match="expected equal shapes"):
        pose_distances(cells[:2], truth, (32, 32), (4, 4))
