"""The embedded data set: readable as real data, exact, repeatable, never half written, and not solved by color."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import decord
import numpy as np
import pytest
from PIL import Image

import data.sample as sample
from data.masks import PALETTE
from data.sample import SampleConfig, SampleData, sample_data, sample_root
from data.sample.render import KINDS, Sprite, draw_sprite, pose

SMALL = SampleConfig(
    train_per_class=12, val_per_class=4, val_sequences=3, train_sequences=1, frames=4, saliency_pairs=3
)
TINY = SampleConfig(train_per_class=1, val_per_class=1, val_sequences=1, train_sequences=1, frames=2, saliency_pairs=1)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SampleData:
    return sample_data(tmp_path_factory.mktemp("cache"), 0, SMALL)


def _contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.suffix in (".jpg", ".png")}


def test_davis_tree_is_whole_and_its_masks_are_exact(small: SampleData) -> None:
    names = (small.davis / "ImageSets/2017/val.txt").read_text().split()
    assert len(names) == SMALL.val_sequences
    for name in names:
        frames = sorted((small.davis / "JPEGImages/480p" / name).iterdir())
        masks = sorted((small.davis / "Annotations/480p" / name).iterdir())
        assert [f.stem for f in frames] == [m.stem for m in masks] == [f"{i:05d}" for i in range(SMALL.frames)]
        first = np.array(Image.open(masks[0]))
        objects = len(next(scene for scene in sample.VAL_SCENES if scene.name == name).objects)
        assert set(np.unique(first)) == set(range(objects + 1)), "ids are contiguous and all in frame 0"
        assert np.bincount(first.ravel()).min() >= 0.02 * first.size
        for frame, mask in zip(frames, masks, strict=True):
            image = Image.open(mask)
            assert image.mode == "P"
            assert image.getpalette() == PALETTE.ravel().tolist()
            assert cv2.imread(str(frame)).shape[:2] == np.array(image).shape
            assert np.array(image).max() <= objects


def test_sequences_move_and_change_their_light() -> None:
    """Between neighboring frames an object moves by less than the 12 patches that propagation searches."""
    frames, labels = zip(*sample.sequence(sample.VAL_SCENES[0], 22, [0, 3, 0]), strict=True)
    centers = np.array([np.argwhere(ids == 1).mean(axis=0) for ids in labels])
    steps = np.linalg.norm(np.diff(centers, axis=0), axis=1)
    assert 2 < np.median(steps) < 12
    assert steps.max() < 40
    assert frames[-1].mean() < 0.85 * frames[0].mean()


def test_masks_hold_just_the_object() -> None:
    """A white sprite on a black ground: the mask is what it colors, less the antialiased rim."""
    canvas = np.zeros((80, 80, 3), np.float32)
    sprite = Sprite(np.ones((75, 75, 3), np.float32), "flower", 25.0, (0.05, 0.03), 2.0, 0.3, 1.0)
    mask = draw_sprite(canvas, sprite, pose(40.3, 39.6, 0.4), 0.2)
    colored = canvas[..., 0] > 0
    assert mask.any()
    assert colored[mask].all()
    assert cv2.dilate(mask.astype(np.uint8), np.ones((3, 3)))[colored].all()


def test_images_and_saliency_are_whole(small: SampleData) -> None:
    for split, count in (("train", SMALL.train_per_class), ("val", SMALL.val_per_class)):
        folders = sorted((small.images / split).iterdir())
        assert [f.name for f in folders] == sorted(KINDS)
        assert all(len(list(f.iterdir())) == count for f in folders)
    for path in (small.saliency / "images").iterdir():
        mask = np.array(Image.open(small.saliency / "masks" / f"{path.stem}.png"))
        assert mask.shape == cv2.imread(str(path)).shape[:2]
        assert set(np.unique(mask)) == {0, 255}


def test_video_is_the_first_sequence(small: SampleData) -> None:
    frames = decord.VideoReader(str(small.video))
    name = (small.davis / "ImageSets/2017/val.txt").read_text().split()[0]
    paths = sorted((small.davis / "JPEGImages/480p" / name).iterdir())
    assert len(frames) == len(paths)
    still = cv2.imread(str(paths[1]))[..., ::-1].astype(float)
    assert np.abs(frames[1].asnumpy() - still).mean() < 12, "gray levels; both are lossy codings of one picture"


def _color_histogram(path: Path) -> np.ndarray:
    lab = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2LAB)
    counts = cv2.calcHist([lab], [0, 1, 2], None, [6, 6, 6], [0, 256, 64, 192, 64, 192]).ravel()
    return np.sqrt(counts / counts.sum())


def test_color_does_not_separate_the_classes(small: SampleData) -> None:
    """Nearest neighbor (Bhattacharyya) on color histograms stays far from the 100 % of a perfect descriptor."""
    train = sorted((small.images / "train").rglob("*.jpg"))
    val = sorted((small.images / "val").rglob("*.jpg"))
    affinity = np.stack([_color_histogram(p) for p in val]) @ np.stack([_color_histogram(p) for p in train]).T
    nearest = [train[index].parent.name for index in affinity.argmax(axis=1)]
    assert np.mean([name == path.parent.name for name, path in zip(nearest, val, strict=True)]) < 0.35


def test_same_seed_same_files_and_other_seed_other_files(tmp_path: Path) -> None:
    first = _contents(sample_root(tmp_path / "a", 3, TINY))
    assert first == _contents(sample_root(tmp_path / "b", 3, TINY))
    other = _contents(sample_root(tmp_path / "a", 4, TINY))
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first if "images" in name)


def test_a_picture_does_not_depend_on_how_many_are_rendered(small: SampleData, tmp_path: Path) -> None:
    tiny = _contents(SampleData(sample_root(tmp_path, 0, TINY)).images)
    assert tiny.items() <= _contents(small.images).items()


def test_second_call_does_not_render(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = sample_root(tmp_path, 0, TINY)

    def fail(*_: object) -> None:
        raise AssertionError("rendered again")

    monkeypatch.setattr(sample, "render_all", fail)
    assert sample_root(tmp_path, 0, TINY) == root


def test_lost_files_are_rendered_again(tmp_path: Path) -> None:
    root = sample_root(tmp_path, 0, TINY)
    whole = _contents(root)
    shutil.rmtree(root / "saliency")
    assert sample_root(tmp_path, 0, TINY) == root
    assert _contents(root) == whole
    assert [p.name for p in tmp_path.iterdir()] == [root.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_render_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def cut_off(*_: object) -> None:
        raise error("cut off")

    monkeypatch.setattr(sample, "render_davis", cut_off)
    with pytest.raises(error):
        sample_root(tmp_path, 0, TINY)
    assert list(tmp_path.iterdir()) == []


def test_racing_callers_end_with_one_whole_root(tmp_path: Path) -> None:
    """Threads stand for processes: each renders into a folder of its own, and one render is kept."""
    with ThreadPoolExecutor(3) as pool:
        roots = set(pool.map(lambda _: sample_root(tmp_path, 0, TINY), range(3)))
    assert list(tmp_path.iterdir()) == list(roots)
    assert json.loads((roots.pop() / "sample.json").read_text())["seed"] == 0


def test_cache_variable_and_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINO_DENSE_CACHE", str(tmp_path / "here"))
    assert sample_root(None, 0, TINY).parent == (tmp_path / "here").resolve()
    command = [sys.executable, "-m", "data.sample", "--help"]
    assert "--seed" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("field", [{"val_sequences": 99}, {"frames": 0}])
def test_impossible_amounts_are_refused(field: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        SampleConfig(**field)


@pytest.mark.slow
def test_the_whole_set_fits_its_budget(tmp_path: Path) -> None:
    """40 MB is the promise of the README."""
    root = sample_root(tmp_path)
    assert json.loads((root / "sample.json").read_text())["inventory"]["bytes"] < 40e6
