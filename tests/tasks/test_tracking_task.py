"""Point tracking: the reference's numbers through its pickle, rules of hidden points, films, linear cost."""

import pickle
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from data import DataError
from dino_dense.matching.track_protocol import TrackingProtocol
from dino_dense.matching.tracks import cycle_distance, query_features, track_points
from tasks import RunOptions, Session, get, measured, run_one
from tasks.tracking import TrackingConfig, open_videos
from tests.device import chosen_name
from tests.oracles import NoiseReader, noise_backbone, oracle_backbone, stub_backbone
from tests.reference_files import reference

SHADE = 12


class StoredReader(NoiseReader):
    """Features of a file, for frames that are told by their shade."""

    def __init__(self, maps: np.ndarray, patch: int) -> None:
        self.maps, self.patch_size, self.embed_dim = torch.from_numpy(maps), patch, maps.shape[1]

    def features(self, images: Tensor) -> dict[str, Tensor]:
        return {"patches": self.maps[(255 * images[:, 0, 0, 0] / SHADE).round().long()]}


def test_the_pickle_gives_the_reference_numbers(tmp_path: Path):
    arrays = reference("tracking")
    cases = sorted({key.split(".")[0] for key in arrays.files if key.startswith("zero_shot")})
    square = [case for case in cases if len(set(arrays[f"{case}.image_hw"].tolist())) == 1]
    assert square
    for case in square:
        features = arrays[f"{case}.features"]
        frames = (
            np.full((len(features), 40, 50, 3), 0, np.uint8)
            + SHADE * np.arange(len(features), dtype=np.uint8)[:, None, None, None]
        )
        record = {"video": frames, "points": arrays[f"{case}.points"], "occluded": arrays[f"{case}.occluded"] > 0}
        (tmp_path / f"{case}.pkl").write_bytes(pickle.dumps({"goat": record}))
        config = TrackingConfig(
            data=str(tmp_path / f"{case}.pkl"),
            mode=str(arrays[f"{case}.mode"]),
            grid=features.shape[-1],  # type: ignore[arg-type]
        )
        backbone = stub_backbone(case, StoredReader(features, int(arrays[f"{case}.patch"])))
        session = Session(out=tmp_path / case, device=torch.device("cpu"))
        outcome = measured(get("tracking"), backbone, open_videos(config), config, session)
        (row,) = outcome.tables["per_video"].to_dict("records")
        names = {"delta": "average_pts_within_thresh", "AJ": "average_jaccard", "OA": "occlusion_accuracy"}
        names |= {
            f"{kind}_{limit}": f"{kind}_{limit}" for kind in ("pts_within", "jaccard") for limit in (1, 2, 4, 8, 16)
        }
        for ours, theirs in names.items():
            assert row[ours] / 100 == pytest.approx(float(arrays[f"{case}.{theirs}"][0]), abs=1e-6), (case, ours)


# --- Rules of hidden points ---


def test_a_track_that_lost_its_point_does_not_come_back():
    """Three frames of one-hot patches; the point's patch is missing in the last, where another is found."""
    features = torch.zeros(3, 6, 4, 4) + 0.01
    features[0, 0, 1, 1] = features[1, 0, 2, 2] = 1  # the point
    features[:, 1, 3, 0] = 1  # something else, that stays
    features[2, 0, 3, 0] = 0.9  # ... and is more like the point than the rest when that is hidden
    points, size = torch.tensor([[0.0, 12.0, 12.0]]), (32, 32)
    tracks, _ = track_points(features, query_features(features, points, size), size)
    assert tracks[0].tolist() == [[12, 12], [20, 20], [4, 28]]
    distance = cycle_distance(features, points, tracks, size)[0]
    assert distance[:2].tolist() == [0, 0]
    assert distance[2] > 15


def test_cycle_distance_is_the_naive_one():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(5, 7, 6, 8, generator=generator)
    points = torch.tensor([[0, 3.0, 4.0], [2, 20.0, 30.0], [0, 11.0, 7.0], [4, 23.0, 1.0]])
    size = (24, 32)
    tracks, _ = track_points(features, query_features(features, points, size), size)
    distance = cycle_distance(features, points, tracks, size)
    for query, (frame, y, x) in enumerate(points.tolist()):
        for time in range(5):
            column, row = (int(v // 4) for v in tracks[query, time].tolist())
            similarity = torch.cosine_similarity(
                features[time, :, row, column][:, None, None], features[int(frame)], dim=0
            )
            back = divmod(int(similarity.argmax()), 8)
            expected = np.hypot(4 * back[1] + 2 - x, 4 * back[0] + 2 - y)
            assert distance[query, time].item() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_true_features_track_and_their_rule_sees_what_is_hidden(mode: str, tmp_path: Path):
    config = TrackingConfig(mode=mode, grid=64)  # type: ignore[arg-type]
    task, data = get("tracking"), open_videos(TrackingConfig(mode=mode, grid=64))  # type: ignore[arg-type]
    values = {}
    for name, backbone in (("oracle", oracle_backbone()), ("noise", noise_backbone())):
        outcome = measured(task, backbone, data, config, Session(out=tmp_path / name, device=torch.device("cpu")))
        values[name] = {score.metric: score.value for score in outcome.scores}
    assert values["oracle"]["delta"] > 65, "cells of four pixels miss by one or two"
    assert values["noise"]["delta"] < 15
    if mode == "first":
        assert values["oracle"]["OA (rule)"] >= values["oracle"]["OA"], "the rule finds hidden points"
        assert values["oracle"]["AJ (rule)"] >= values["oracle"]["AJ"]


# --- The command ---


def test_the_command_writes_tables_and_films(tmp_path: Path):
    options = RunOptions(ckpt="random:vit_micro_patch8_64", out=str(tmp_path), device=chosen_name())
    report = run_one(get("tracking"), options, TrackingConfig(grid=16, max_videos=2, occlusion="cosine"))
    assert "its cosine is below 0.6" in report.note
    assert report.data["name"] == "embedded tracks (not TAP-Vid) (part: 2 of 3)"
    assert len(pd.read_csv(tmp_path / "per_video.csv")) == 2
    assert {"video", "track", "frame", "AJ (rule)"} <= set(pd.read_csv(tmp_path / "per_track.csv"))
    films = sorted((tmp_path / "overlays").glob("*.mp4"))
    assert len(films) == 2
    with av.open(str(films[0])) as container:
        assert sum(1 for _ in container.decode(video=0)) == 16
    assert all((tmp_path / picture.file).is_file() for picture in report.pictures)


def test_refusals(tmp_path: Path):
    record = {
        "video": np.zeros((3, 8, 8, 3), np.uint8),
        "points": np.full((1, 3, 2), 0.5, np.float32),
        "occluded": np.array([[True, True, False]]),
    }
    (tmp_path / "tracks.pkl").write_bytes(pickle.dumps([record]))
    with pytest.raises(DataError, match="no point is visible in a frame that is scored"):
        open_videos(TrackingConfig(data=str(tmp_path)))
    with pytest.raises(ValueError, match="max_videos is 0"):
        TrackingConfig(max_videos=0)
    with pytest.raises(ValueError, match="cycle_radius is 0"):
        TrackingProtocol(cycle_radius=0)
    with pytest.raises(ValueError, match="min_cosine is 2"):
        TrackingProtocol(min_cosine=2)
