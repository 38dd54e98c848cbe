"""`tasks.track`: your own clip in, masks or tracks out; and `tasks.davis --video`, which goes on to it."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from data import DataError
from data.clips import open_clip
from data.masks import read_ids, write_mask
from dino_dense import Backbone, Report
from dino_dense.matching.tracks import cycle_distance, query_features, track_points
from tasks import RunOptions, run_one
from tasks import main as run_task
from tasks.davis import own_clip
from tasks.track import TRACK, TrackConfig, main
from tasks.videos.clip_masks import carry_masks, find_masks, write_masks
from tasks.videos.clip_points import HIDDEN_SHARE, carry_points, read_points
from tests.clip_files import facts, moving_disc, moving_mask, turn, write_clip
from tests.color_backbone import PROTOCOL, ColorReader, color_backbone

RANDOM = "random:vit_micro_patch8_64"
SIZE = (48, 64)


@pytest.fixture
def clip_file(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", rate=Fraction(30000, 1001))


@pytest.fixture
def mask_file(tmp_path: Path) -> Path:
    write_mask(tmp_path / "first.png", moving_mask(0, SIZE))
    return tmp_path / "first.png"


def run(tmp_path: Path, *options: str, out: str = "out") -> Path:
    words = ["--ckpt", RANDOM, "--short-side", "null", "--device", "cpu", "--out", str(tmp_path / out), *options]
    assert main(words) == 0
    return tmp_path / out


def test_masks_overlay_and_runs_of_a_video(tmp_path: Path, clip_file: Path, mask_file: Path, capsys):
    out = run(tmp_path, "--video", str(clip_file), "--mask", str(mask_file), "--coco")
    names = sorted(path.name for path in (out / "masks" / "clip").iterdir())
    assert names == [f"{index:05d}.png" for index in range(8)]
    masks = [read_ids(out / "masks" / "clip" / name) for name in names]
    assert (masks[0] == moving_mask(0, SIZE)).all()
    assert facts(out / "clip_masks.mp4") == (8, SIZE, Fraction(30000, 1001), "h264")
    with Image.open(out / "clip_masks.jpg") as strip:
        assert strip.height == 180
    held = json.loads((out / "clip_masks.json").read_text())
    assert [image["file_name"] for image in held["images"]] == names
    assert held["categories"] == [{"id": 1, "name": "object 1"}]
    rebuilt = np.zeros((8, *SIZE), np.uint8)
    for record in held["annotations"]:
        mask = coco_mask.decode(record["segmentation"])
        x, y, width, height = record["bbox"]
        assert record["area"] == mask.sum() == mask[y : y + height, x : x + width].sum()
        rebuilt[record["image_id"] - 1][mask > 0] = record["category_id"]
    assert (rebuilt == np.stack(masks)).all()
    assert "own video clip.mp4 (8 frames)" in capsys.readouterr().out


def test_the_same_command_again_keeps_the_masks(tmp_path: Path, clip_file: Path, mask_file: Path):
    options = ("--video", str(clip_file), "--mask", str(mask_file))
    mask = run(tmp_path, *options) / "masks" / "clip" / "00004.png"
    before = mask.stat().st_mtime_ns
    run(tmp_path, *options)
    assert mask.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="another run"):
        run(tmp_path, *options, "--every", "2")


def test_a_frame_folder_every_second_frame(tmp_path: Path, mask_file: Path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(7):
        Image.fromarray(moving_disc(index, SIZE)).save(frames / f"img{index}.png")
    options = ("--video", str(frames), "--mask", str(mask_file), "--every", "2")
    out = run(tmp_path, *options, "--max-frames", "3")
    assert sorted(path.name for path in (out / "masks" / "frames").iterdir()) == ["img0.png", "img2.png", "img4.png"]
    assert facts(out / "frames_masks.mp4")[:3] == (3, SIZE, 12)


def test_beside_the_video_nothing_of_it_is_touched(
    tmp_path: Path, clip_file: Path, mask_file: Path, monkeypatch: pytest.MonkeyPatch
):
    before = clip_file.read_bytes(), mask_file.read_bytes()
    run(tmp_path, "--video", str(clip_file), "--mask", str(mask_file), out=".")
    assert (clip_file.read_bytes(), mask_file.read_bytes()) == before
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(3):
        Image.fromarray(moving_disc(index, SIZE)).save(frames / f"{index}.png")
    monkeypatch.chdir(frames)
    out = run(tmp_path, "--video", ".", "--mask", str(mask_file), out="named")
    assert len(list((out / "masks" / "frames").iterdir())) == 3
    assert facts(out / "frames_masks.mp4")[0] == 3


def test_a_mask_among_the_frames_is_refused(tmp_path: Path, mask_file: Path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(3):
        Image.fromarray(moving_disc(index, SIZE)).save(frames / f"{index}.jpg")
    inside = write_mask(frames / "mask.png", moving_mask(0, SIZE)) or frames / "mask.png"
    with pytest.raises(DataError, match=r"mask\.png: the mask is in the folder of the frames"):
        run(tmp_path, "--video", str(frames), "--mask", str(inside))
    inside.rename(frames / "0.png")
    with pytest.raises(DataError, match=r"0\.jpg and .*0\.png: two frames of one name"):
        run(tmp_path, "--video", str(frames), "--mask", str(mask_file))


def test_masks_replace_those_of_a_call_before_and_nothing_else(tmp_path: Path, clip_file: Path):
    def write(length: int, folder: Path) -> None:
        clip = open_clip(clip_file, max_frames=length)
        carried = carry_masks(color_backbone(), clip, {"00000": moving_mask(0, SIZE)}, PROTOCOL)
        write_masks(carried, clip, folder, tmp_path / "out")

    folder = tmp_path / "out" / "masks"
    write(4, folder)
    write(2, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["00000.png", "00001.png"]
    assert facts(tmp_path / "out" / "clip_masks.mp4")[0] == 2
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt: masks are to go to .* and would replace it"):
        write(2, folder)
    assert (folder / "notes.txt").read_text() == "mine"


def test_the_short_side_is_what_the_network_sees(tmp_path: Path, clip_file: Path, mask_file: Path):
    reader = ColorReader()
    config = TrackConfig(video=str(clip_file), mask=str(mask_file), short_side=96, batch_size=3)
    report = run_one(TRACK, RunOptions(out=str(tmp_path / "out")), config, backbone=color_backbone(reader))
    assert reader.seen == 3 * [(96, 128)]
    assert (report.task, report.scores) == ("track", ())
    assert Report.from_json((tmp_path / "out" / "report.json").read_text()) == report


def test_davis_goes_on_to_it(tmp_path: Path, clip_file: Path, mask_file: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--ckpt", RANDOM, "--device", "cpu", "--video", str(clip_file), "--mask", str(mask_file)]
    assert run_task("davis", [*words, "--resolution", "48p", "--out", str(tmp_path / "davis")]) == 0
    captured = capsys.readouterr()
    assert "python -m tasks.track does this now" in captured.err
    assert main([*words, "--short-side", "48", "--out", str(tmp_path / "track")]) == 0
    for mask in sorted((tmp_path / "track" / "masks" / "clip").iterdir()):
        assert (tmp_path / "davis" / "masks" / "clip" / mask.name).read_bytes() == mask.read_bytes()
    assert own_clip(["--data", "DAVIS", "--resolution", "480p"]) is None
    assert own_clip(["--video=a.mp4", "--resolution=480p"]) == ("track", ["--video=a.mp4", "--short-side=480"])


def carried(clip_file: Path, masks: dict[str, np.ndarray], backbone: Backbone | None = None) -> list[np.ndarray]:
    clip = open_clip(clip_file)
    return [ids for _, ids in carry_masks(backbone or color_backbone(), clip, masks, PROTOCOL)]


def test_the_object_is_followed(clip_file: Path):
    found = carried(clip_file, {"00000": moving_mask(0, SIZE)})
    for index, ids in enumerate(found):
        truth = moving_mask(index, SIZE)
        assert (ids & truth).sum() / (ids | truth).sum() > 0.6


def test_a_phones_video_is_masked_as_it_is_shown(tmp_path: Path):
    source = turn(write_clip(tmp_path / "a.mp4"))
    masks = {"00000": np.rot90(moving_mask(0, SIZE), k=-1)}
    found = carried(source, masks)
    truth = np.rot90(moving_mask(7, SIZE), k=-1)
    assert (found[7] & truth).sum() / (found[7] | truth).sum() > 0.6


def test_ids_stay_and_a_later_mask_adds_an_object(clip_file: Path):
    first, later = 5 * moving_mask(0, SIZE), np.zeros(SIZE, np.uint8)
    later[40:48, 8:40] = 2
    found = carried(clip_file, {"00000": first, "00003": later})
    assert [set(np.unique(ids)) for ids in found[:4]] == [{0, 5}] * 3 + [{0, 2, 5}]
    assert all({2, 5} <= set(np.unique(ids)) for ids in found[4:])
    assert (found[3][later > 0] == 2).all()
    before = carried(clip_file, {"00000": first})
    assert (found[3][:32] == before[3][:32]).all()  # more than a patch away
    assert all((one == other).all() for one, other in zip(found[:3], before[:3], strict=True))


def test_masks_are_found_by_frame(tmp_path: Path, clip_file: Path, mask_file: Path):
    clip = open_clip(clip_file, every=2)
    assert find_masks(mask_file, clip) == {"00000": mask_file}
    folder = tmp_path / "masks"
    for name in ("0", "004"):
        write_mask(folder / f"{name}.png", moving_mask(0, SIZE))
    assert find_masks(folder, clip) == {"00000": folder / "0.png", "00004": folder / "004.png"}
    write_mask(folder / "3.png", moving_mask(0, SIZE))
    with pytest.raises(DataError, match=r"3\.png: a mask of no frame that is read.*00000 to 00006, every 2"):
        find_masks(folder, clip)
    for name in ("0", "3"):
        (folder / f"{name}.png").unlink()
    with pytest.raises(DataError, match="no mask of the first frame"):
        find_masks(folder, clip)


def test_masks_of_any_frame_go_both_ways(tmp_path: Path, clip_file: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "masks"
    write_mask(folder / "4.png", moving_mask(4, SIZE))
    options = ("--video", str(clip_file), "--mask", str(folder))
    with pytest.raises(DataError, match="--direction both"):
        run(tmp_path, *options)
    out = run(tmp_path, *options, "--direction", "both", "--every", "2")
    names = sorted(path.name for path in (out / "masks" / "clip").iterdir())
    assert names == ["00000.png", "00002.png", "00004.png", "00006.png"]
    assert (read_ids(out / "masks" / "clip" / "00004.png") == moving_mask(4, SIZE)).all()
    assert all(read_ids(out / "masks" / "clip" / name).any() for name in names)
    (folder / "4.png").unlink()
    with pytest.raises(DataError, match="found none"):
        run(tmp_path, *options, "--direction", "both", out="none")
    with pytest.raises(ValueError, match="direction: of masks"):
        TrackConfig(points="1,2", direction="both")


def test_without_video_or_mask_it_asks(tmp_path: Path, clip_file: Path):
    for words in ([], ["--video", str(clip_file)], ["--mask", "a.png"]):
        with pytest.raises(ValueError, match="Give --video and --mask"):
            run(tmp_path, *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["every", "max_frames", "max_memory", "batch_size"])
def test_counts_begin_at_one(name: str):
    with pytest.raises(ValueError, match=f"{name} is 0: expected 1 or more"):
        TrackConfig(**{name: 0})


def test_a_broken_frame_leaves_nothing_half_done(tmp_path: Path, mask_file: Path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for index in range(4):
        Image.fromarray(moving_disc(index, SIZE)).save(frames / f"{index}.png")
    (frames / "2.png").write_bytes((frames / "2.png").read_bytes()[:100])
    with pytest.raises(DataError, match=r"2\.png: cannot be read whole"):
        run(tmp_path, "--video", str(frames), "--mask", str(mask_file), "--coco")
    left = sorted(path.name for path in (tmp_path / "out").rglob("*"))
    assert left == ["masks", "run.json"]


def test_masks_as_people_make_them_and_what_was_decided(tmp_path: Path, clip_file: Path, capsys):
    Image.fromarray(250 * moving_mask(0, SIZE)).save(tmp_path / "first.jpg", quality=90)
    out = run(tmp_path, "--video", str(clip_file), "--mask", str(tmp_path / "first.jpg"), "--max-frames", "2")
    first = read_ids(out / "masks" / "clip" / "00000.png")
    assert (first == moving_mask(0, SIZE)).mean() > 0.99
    assert "1 object: 1 with" in capsys.readouterr().out


def test_a_coco_file_of_several_frames(tmp_path: Path, clip_file: Path):
    images = [{"id": index, "file_name": f"{index}.jpg", "height": SIZE[0], "width": SIZE[1]} for index in (0, 3)]
    shapes = [[[4, 16, 20, 16, 20, 32, 4, 32]], [[10, 16, 26, 16, 26, 32, 10, 32]]]
    annotations = [
        {"image_id": image["id"], "category_id": 1, "segmentation": shape}
        for image, shape in zip(images, shapes, strict=True)
    ]
    path = tmp_path / "masks.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))
    clip = open_clip(clip_file)
    assert find_masks(path, clip) == {"00000": path, "00003": path}
    out = run(tmp_path, "--video", str(clip_file), "--mask", str(path))
    assert (read_ids(out / "masks" / "clip" / "00000.png") == moving_mask(0, SIZE)).all()
    assert (read_ids(out / "masks" / "clip" / "00003.png")[moving_mask(3, SIZE) > 0] == 1).all()


# --- Points ---


def test_points_follow_the_square(tmp_path: Path, clip_file: Path, capsys: pytest.CaptureFixture[str]):
    out = run(tmp_path, "--video", str(clip_file), "--points", "12,24;40.5,44", "--max-frames", "5")
    table = pd.read_csv(out / "clip_tracks.csv")
    assert list(table.columns) == ["point", "frame", "name", "seconds", "x", "y", "cosine", "hidden"]
    assert table.groupby("point").size().tolist() == [5, 5]
    assert table[table["frame"] == 0][["x", "y"]].values.tolist() == [[12, 24], [40.5, 44]]
    assert facts(out / "clip_tracks.mp4") == (5, SIZE, Fraction(30000, 1001), "h264")
    with Image.open(out / "clip_tracks.jpg") as strip:
        assert strip.height == 180
    assert "Tracks of 2 points" in capsys.readouterr().out
    assert not (out / "masks").exists()
    before = (out / "clip_tracks.csv").stat().st_mtime_ns
    run(tmp_path, "--video", str(clip_file), "--points", "12,24;40.5,44", "--max-frames", "5")
    assert (out / "clip_tracks.csv").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="another run"):
        run(tmp_path, "--video", str(clip_file), "--points", "12,24", "--max-frames", "5")


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_points_are_where_the_whole_clip_at_once_has_them(clip_file: Path, batch_size: int):
    """Frames are streamed; TAP-Vid's functions take all features at once. Points are of three frames, in no order."""
    clip, backbone = open_clip(clip_file), color_backbone()
    points = np.array([[0, 12.0, 24.0], [5, 50.0, 40.0], [2, 3.0, 4.0], [5, 30.0, 24.0]])
    places = np.column_stack([np.arange(1, 5), points])
    tracked = list(carry_points(backbone, clip, places, None, batch_size=batch_size))
    frames = [torch.from_numpy(frame.rgb.copy()).permute(2, 0, 1).float() / 255 for frame in clip]
    maps = backbone.extract(torch.stack(frames)).patches
    queries = torch.from_numpy(points[:, [0, 2, 1]]).float()
    tracks, cosine = track_points(maps, query_features(maps, queries, SIZE), SIZE)
    away = cycle_distance(maps, queries, tracks, SIZE) > HIDDEN_SHARE * min(SIZE)
    for index, frame in enumerate(tracked):
        given = points[:, 0] == index
        assert (frame.points[given] == points[given, 1:]).all()
        assert not frame.hidden[given].any()
        np.testing.assert_allclose(frame.points[~given], tracks[~given, index])
        np.testing.assert_allclose(frame.cosine, cosine[index], atol=1e-6)
        np.testing.assert_array_equal(frame.hidden[~given], away[~given, index])
    inside = [moving_mask(index, SIZE)[tuple(tracked[index].points[0].astype(int)[::-1])] for index in range(8)]
    assert sum(inside) >= 6


def test_each_frame_goes_by_the_nearest_frame_where_a_point_is_given(clip_file: Path):
    """Of two equally near frames, by the earlier; the other points are as without the correction."""
    clip, backbone = open_clip(clip_file), color_backbone()
    first, other, later = [1, 0, 12.0, 24.0], [2, 4, 50.0, 40.0], [1, 6, 50.0, 8.0]
    corrected = list(carry_points(backbone, clip, np.array([first, other, later]), None))
    alone, after = (list(carry_points(backbone, clip, np.array([place, other]), None)) for place in (first, later))
    for index, frame in enumerate(corrected):
        expected = (alone if index <= 3 else after)[index]
        np.testing.assert_array_equal(frame.points, expected.points)
        np.testing.assert_array_equal(frame.hidden, expected.hidden)
        np.testing.assert_allclose(frame.cosine, expected.cosine, atol=1e-6)


def test_a_correction_names_its_point(clip_file: Path):
    clip = open_clip(clip_file)
    places = read_points("12,24;3,4@2;1=50,8@6;5,6", clip)
    assert places.tolist() == [[1, 0, 12, 24], [2, 2, 3, 4], [1, 6, 50, 8], [3, 0, 5, 6]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--points", "1=64,3"], "'1=64,3' corrects point 1, and points 1 to 0 stand before"),
        (["--points", "1,2;0=4,3@1"], "corrects point 0, and points 1 to 1 stand before"),
        (["--points", "1,2;1=4,3"], "point 1 is given twice on frame 0"),
        (["--points", "1,2;x=4,3"], "found 'x=4,3'"),
        (["--points", "64,3"], r"point \(64, 3\) is outside the frames of 64x48 pixels"),
        (["--points", "3,3;-1,3"], r"point \(-1, 3\) is outside"),
        (
            ["--points", "a,b"],
            r"expected x,y;x,y \(two numbers a point; x,y@12 for frame 12; 2=x,y@12 to correct .*\), found 'a,b'",
        ),
        (["--points", "1,2,3"], "found '1,2,3'"),
        (["--points", "1,2;"], "found ''"),
        (["--points", "nan,2"], "'nan,2' is no place"),
        (["--points", "1,2@x"], "found '1,2@x'"),
        (["--points", "1,2;1,2@8"], "a point of frame 8; the frames are 0 to 7"),
        (["--points", "1,2@-1"], "a point of frame -1"),
    ],
)
def test_bad_points_are_refused(tmp_path: Path, clip_file: Path, options: list[str], message: str):
    with pytest.raises((ValueError, DataError), match=message):
        run(tmp_path, "--video", str(clip_file), *options)
    assert not (tmp_path / "out").exists()


def test_options_of_masks_are_refused_for_points():
    with pytest.raises(ValueError, match="mask and points are both given"):
        TrackConfig(mask="a.png", points="1,2")
    with pytest.raises(ValueError, match="top_k, coco: of masks, and without effect on points"):
        TrackConfig(points="1,2", top_k=3, coco=True)
