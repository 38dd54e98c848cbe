"""TAP-Vid's pickles: both forms and encoded frames are read, code is not run, what does not fit is refused."""

import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import DataError
from data.sample.points import sample_tracks
from data.tracks import load_tracks


def record(frames: int = 4, tracks: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "video": rng.integers(0, 255, (frames, 12, 20, 3), np.uint8),
        "points": rng.random((tracks, frames, 2)).astype(np.float32),
        "occluded": np.zeros((tracks, frames), bool),
    }


def write(folder: Path, content: object, protocol: int = 4) -> Path:
    path = folder / "tracks.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_dict_and_a_list_of_videos(protocol: int, tmp_path: Path):
    one = record()
    (video,) = load_tracks(write(tmp_path, {"goat": one}, protocol))
    assert (video.name, len(video)) == ("goat", 4)
    np.testing.assert_allclose(video.points, one["points"])
    assert video.read(2, 8).shape == (8, 8, 3)
    np.testing.assert_array_equal(np.asarray(video.frames), one["video"])
    videos = load_tracks(write(tmp_path, [one, record(5)], protocol))
    assert [(video.name, len(video)) for video in videos] == [("00000", 4), ("00001", 5)]


def test_encoded_frames_and_a_folder(tmp_path: Path):
    one = record()
    encoded = []
    for frame in one["video"]:
        stream = io.BytesIO()
        Image.fromarray(frame).save(stream, "PNG")
        encoded.append(stream.getvalue())
    write(tmp_path, {"goat": {**one, "video": encoded}})
    (video,) = load_tracks(tmp_path)
    expected = np.asarray(Image.fromarray(one["video"][1]).resize((9, 9), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(video.read(1, 9), expected)
    (tmp_path / "other.pkl").write_bytes(b"")
    with pytest.raises(DataError, match=r"expected one \.pkl file, found other\.pkl, tracks\.pkl"):
        load_tracks(tmp_path)


class Program:
    """A pickle that runs a command where it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_that_holds_code_is_refused_and_not_run(tmp_path: Path):
    left = tmp_path / "was run"
    path = write(tmp_path, {"goat": Program(f"touch '{left}'")})
    with pytest.raises(DataError, match=r"refused, it asks for posix\.system|refused, it asks for nt\.system"):
        load_tracks(path)
    assert not left.exists()


def changed(**values: object) -> dict[str, dict]:
    return {"goat": {**record(), **values}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            changed(points=record(5)["points"], occluded=record(5)["occluded"]),
            "tracks of 5 frames, but the video has 4",
        ),
        (changed(occluded=np.zeros((3, 5), bool)), r"points .* and occluded \(3, 5\)"),
        (changed(points=np.zeros((3, 4, 3), np.float32)), "expected float"),
        (changed(points=np.full((3, 4, 2), 1.5, np.float32)), "visible points go from 1.5 to 1.5"),
        (changed(points=np.full((3, 4, 2), np.nan, np.float32)), "visible points go from nan"),
        (changed(occluded=np.ones((3, 4), bool)), "none of 3 tracks is visible"),
        (changed(video=np.zeros((4, 12, 20), np.uint8)), r"expected uint8 \[T, H, W, 3\]"),
        (changed(video="film"), "expected frames"),
        (changed(points=[1, 2]), "expected an array under 'points'"),
        ({"goat": {"video": 1}}, "expected video, points, occluded, found video"),
        ({}, "expected a dict of videos"),
        (3, "expected a dict of videos or a list of them, found int"),
    ],
)
def test_what_does_not_fit_is_refused(content: object, message: str, tmp_path: Path):
    with pytest.raises(DataError, match=message):
        load_tracks(write(tmp_path, content))


def test_a_hidden_point_may_be_anywhere(tmp_path: Path):
    one = record()
    one["points"][0, 1], one["occluded"][0, 1] = (7.0, np.nan), True
    (video,) = load_tracks(write(tmp_path, {"goat": one}))
    assert video.points[0, 1, 0] == 7


@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"no pickle"])
def test_a_damaged_file_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path):
    path = write(tmp_path, changed())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match="refused"):
        load_tracks(path)
    with pytest.raises(FileNotFoundError):
        load_tracks(tmp_path / "nowhere.pkl")


def test_embedded_tracks_are_hidden_where_something_is_in_front():
    videos = load_tracks(sample_tracks())
    assert len(videos) == 3
    for video in videos:
        assert len(video.points) <= 31, "as many as the tests' true features tell apart"
        assert not video.occluded.all(axis=1).any()
    assert any(video.occluded.any() for video in videos)
    moved = [np.abs(np.diff(video.points, axis=1)).max() * 256 for video in videos]
    assert all(1 < step < 40 for step in moved)
