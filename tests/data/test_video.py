"""Frames of videos made here: the right ones, in the right colors, in any process."""

import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from torch.utils.data import DataLoader

from data import DataError
from data.images import DecodedPicture
from data.pretraining import open_pretraining_data
from data.video import VideoFrames, sampled_frames

LENGTH = 12


def write_video(path: Path, length: int = LENGTH) -> Path:
    """A video whose frame i is red with a green of 20 * i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for i in range(length):
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[..., 2], frame[..., 1] = 200, 20 * i  # OpenCV writes BGR
        writer.write(frame)
    writer.release()
    return path


def shown(frames: VideoFrames, index: int) -> int:
    """Which frame of the video a picture is."""
    red, green, blue = frames[index].decode().reshape(-1, 3).mean(axis=0)
    assert red > 150
    assert blue < 60
    return round(green / 20)


@pytest.mark.parametrize(
    ("n", "stride", "count", "expected"),
    [
        (5, 1, None, [0, 1, 2, 3, 4]),
        (5, 2, None, [0, 2, 4]),
        (5, 9, None, [0]),
        (9, 1, 3, [0, 4, 8]),
        (2, 1, 5, [0, 1]),
        (7, 1, 1, [0]),
    ],
)
def test_sampled_frames(n: int, stride: int, count: int | None, expected: list[int]):
    assert sampled_frames(n, stride, count) == expected


def test_frames_are_those_asked_for_in_any_order(tmp_path: Path):
    frames = VideoFrames([write_video(tmp_path / "a.mp4")], frame_stride=3)
    assert frames.frames == [(0, 0), (0, 3), (0, 6), (0, 9)]
    assert [shown(frames, i) for i in (3, 0, 2, 1)] == [9, 0, 6, 3]
    assert frames[0].size == (48, 64)


def test_many_videos_stay_open_in_small_number(tmp_path: Path):
    paths = [write_video(tmp_path / f"{i}.mp4", length=4) for i in range(6)]
    frames = VideoFrames(paths, frames_per_video=2)
    assert len(frames) == 12
    assert [shown(frames, i) for i in range(12)] == [0, 3] * 6
    assert len(frames._readers) <= 4


def test_loader_processes_and_pickles_open_the_files_themselves(tmp_path: Path):
    frames = VideoFrames([write_video(tmp_path / "a.mp4")])
    assert shown(frames, 5) == 5  # a reader is open here
    assert shown(pickle.loads(pickle.dumps(frames)), 5) == 5
    loader = DataLoader(frames, batch_size=None, num_workers=2, collate_fn=DecodedPicture.decode)
    greens = [round(picture[..., 1].mean() / 20) for picture in loader]
    assert greens == list(range(LENGTH))


def test_images_and_videos_of_a_folder_are_one_set(tmp_path: Path):
    write_video(tmp_path / "clips" / "b.MP4", length=3)
    for name in ("10.png", "9.png"):
        cv2.imwrite(str(tmp_path / name), np.full((8, 8, 3), int(name[:-4]), np.uint8))
    pictures = open_pretraining_data(tmp_path)
    assert len(pictures) == 5
    assert [pictures[i].decode()[0, 0, 0] for i in (0, 1)] == [9, 10]
    assert pictures[2].size == (48, 64)
    with pytest.raises(IndexError):
        pictures[5]


def test_a_single_video_and_its_fingerprint(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4")
    all_frames, some = open_pretraining_data(path), open_pretraining_data(path, frame_stride=2)
    assert (len(all_frames), len(some)) == (LENGTH, LENGTH // 2)
    assert all_frames.fingerprint != some.fingerprint
    assert some.fingerprint == open_pretraining_data(path, frame_stride=2).fingerprint
    assert all_frames.fingerprint == open_pretraining_data(tmp_path).fingerprint


def test_broken_and_missing_videos_are_named(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4")
    with pytest.raises(FileNotFoundError, match=r"none\.mp4: no such video"):
        VideoFrames([tmp_path / "none.mp4"])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"a\.mp4: not a video that can be decoded"):
        open_pretraining_data(tmp_path)


def test_a_folder_with_nothing_to_train_on(tmp_path: Path):
    with pytest.raises(DataError, match=r"no images or videos in it\. Expected files ending in .*\.mp4"):
        open_pretraining_data(tmp_path)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(DataError, match="expected a folder, found a file"):
        open_pretraining_data(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError):
        open_pretraining_data(tmp_path / "nowhere")
