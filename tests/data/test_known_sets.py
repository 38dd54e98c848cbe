"""A published data set is known by counts, by names and by the sizes of its images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.davis import VAL_2017, VideoSequence, is_official_val
from data.jhmdb import PoseVideo
from data.keypoints import KeypointPair
from data.known_sets import (
    CLASSIFICATION_SETS,
    DISCOVERY_SETS,
    JHMDB_ACTIONS,
    SPAIR_CATEGORIES,
    classification_set,
    discovery_set,
    keypoint_set,
    part_name,
    part_set,
    parts_set,
    pixel_set,
    pose_set,
    sizes_vary,
    tracking_set,
)
from data.notices import captured
from data.tracks import TrackedVideo
from data.vip import ParsedVideo

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NUMBERS = [str(number) for number in range(10)]


def picture(path: Path, width: int, height: int) -> Path:
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(path)
    return path


def known(tmp_path: Path, names: list[str], sides: list[int], counts: tuple[int, int] | None = None) -> str | None:
    """Of a folder with as many images as a published set, which are copies of a few files."""
    files = [picture(tmp_path / f"{index}.png", side, 32) for index, side in enumerate(sides)]
    train, test = counts or next(rest for classes, *rest in CLASSIFICATION_SETS if classes == len(names))
    return classification_set(tmp_path, names, (files * train)[:train], (files * test)[:test])


def test_cifar_by_its_names_and_its_side(tmp_path: Path):
    with captured() as lines:
        assert known(tmp_path, CIFAR10, [32]) == "CIFAR-10"
        assert known(tmp_path, CIFAR10, [32], (50_000, 9_999)) is None
    assert not lines, "nothing is said of a set that is known, or has other counts"


@pytest.mark.parametrize(
    ("names", "sides", "differs"),
    [
        ([*NUMBERS[:9], "cat"], [32], "other class names"),
        (["my " + name for name in CIFAR10], [32], "other class names"),
        (NUMBERS, [32], "other class names"),  # digits on 32 x 32 pixels
        (CIFAR10, [96], "images of other sizes"),
        (CIFAR10, [32, 33, 33], "images of other sizes"),
    ],
)
def test_counts_alone_are_no_published_set(tmp_path: Path, names: list[str], sides: list[int], differs: str):
    with captured() as lines:
        assert known(tmp_path, names, sides) is None
    assert any(differs in line and "CIFAR-10" in line for line in lines)


def test_a_thousand_other_things_and_imagenet_of_one_size_are_not_imagenet(tmp_path: Path):
    things = [f"thing {index}" for index in range(1000)]
    assert known(tmp_path, things, [40, 50, 50]) is None
    imagenet = next(entry for entry in CLASSIFICATION_SETS.values() if entry.name == "ImageNet-1k")
    synsets = (Path(pytest.importorskip("timm").__file__).parent / "data/_info/imagenet_synsets.txt").read_text()
    assert imagenet.has_classes(synsets.split())
    assert not imagenet.has_classes(["n00000000", *synsets.split()[1:]])
    assert known(tmp_path, synsets.split(), [40, 50, 50]) == "ImageNet-1k"
    assert known(tmp_path, synsets.split(), [64]) is None, "ImageNet 64, or ImageNet-C"


@pytest.mark.parametrize(("names", "same"), [(range(102), True), (range(1, 103), True), (range(2, 104), False)])
def test_classes_of_numbers_are_all_numbers_of_their_range(names: range, same: bool):
    flowers = next(entry for entry in CLASSIFICATION_SETS.values() if entry.name == "Flowers-102")
    assert flowers.has_classes([f"{number:03d}" for number in names]) == same


def test_boxes_are_a_published_set_by_the_names_of_their_images():
    images = DISCOVERY_SETS["VOC07 trainval"].images
    assert discovery_set("voc", False, [Path(f"{number:06d}.jpg") for number in range(images)]) == "VOC07 trainval"
    assert discovery_set("voc", False, [Path(f"mine_{number}.jpg") for number in range(images)]) is None
    assert discovery_set("coco", False, [Path(f"{number:06d}.jpg") for number in range(images)]) is None


def keypoint_pairs(categories: list[str], sizes: list[tuple[int, int]], count: int = 12_234) -> list[KeypointPair]:
    pairs = [
        KeypointPair("p", category, Path("a"), Path("b"), (), (), (), size, size, 1.0)
        for category in categories
        for size in sizes
    ]
    return (pairs * count)[:count]


def test_pairs_are_spair_by_categories_and_sizes():
    named, sizes = sorted(SPAIR_CATEGORIES), [(300, 400), (375, 500)]
    assert keypoint_set(keypoint_pairs(named, sizes)) == "SPair-71k test"
    assert keypoint_set(keypoint_pairs([f"thing {k}" for k in range(18)], sizes)) is None
    assert keypoint_set(keypoint_pairs(named, [(256, 256)])) is None, "resized"
    assert keypoint_set(keypoint_pairs(named, sizes, 12_233)) is None


def tracked(names: list[str], shape: tuple[int, ...]) -> list[TrackedVideo]:
    frames = np.broadcast_to(np.uint8(0), shape)
    return [TrackedVideo(name, frames, np.zeros((1, 1, 2)), np.zeros((1, 1), bool)) for name in names]


def test_tracks_are_tap_vid_by_the_names_or_sizes_of_the_videos():
    davis, other = tracked(sorted(VAL_2017), (4, 8, 8, 3)), tracked([f"mine {k}" for k in range(30)], (4, 8, 8, 3))
    assert tracking_set(Path("tapvid_davis.pkl"), davis) == "TAP-Vid DAVIS"
    assert tracking_set(Path("tapvid_davis.pkl"), other) is None
    assert tracking_set(Path("mine.pkl"), davis) is None
    stacking = Path("tapvid_rgb_stacking.pkl")
    assert tracking_set(stacking, tracked(["v"] * 50, (250, 256, 256, 3))) == "TAP-Vid RGB-Stacking"
    assert tracking_set(stacking, tracked(["v"] * 50, (125, 256, 256, 3))) is None, "every second frame"


def test_poses_and_parts_by_actions_and_names():
    def poses(actions: list[str], size: tuple[int, int] = (240, 320)) -> list[PoseVideo]:
        videos = [PoseVideo(f"{action}/a", (), size, np.zeros((1, 1, 2))) for action in actions]
        return (videos * 268)[:268]

    assert pose_set(poses(sorted(JHMDB_ACTIONS))) == "JHMDB split 1 test"
    assert pose_set(poses(["dance"])) is None
    assert pose_set(poses(sorted(JHMDB_ACTIONS), (120, 160))) is None
    assert parts_set([ParsedVideo(f"videos{k}", (), ()) for k in range(50)]) == "VIP val"
    assert parts_set([ParsedVideo(f"clip{k}", (), ()) for k in range(50)]) is None


def test_classes_of_pixels_by_names_and_sizes(tmp_path: Path):
    first, second = picture(tmp_path / "a.png", 50, 40), picture(tmp_path / "b.png", 40, 50)

    def linked(names: list[str], files: list[Path]) -> list[Path]:
        folder = tmp_path / f"{names[0]} {len(files)}"
        folder.mkdir()
        for index, name in enumerate(names):
            (folder / f"{name}.png").symlink_to(files[index % len(files)])
        return [folder / f"{name}.png" for name in names]

    voc = [f"2007_{k:06d}" for k in range(1449)]
    some = [first, second, first, second, first, second, first]
    images = linked(voc, some)
    assert pixel_set(images, [first] * 10_582) == "VOC12 segmentation val, trainaug"
    assert pixel_set(images, [first] * 1464) == "VOC12 segmentation val, train"
    assert pixel_set(images) == "VOC12 segmentation val"
    assert pixel_set(linked(voc, [first])) is None, "images of one size were resized"
    assert pixel_set(linked([f"mine_{k}" for k in range(1449)], some)) is None
    assert pixel_set(linked([f"ADE_val_{k:08d}" for k in range(2000)], some)) == "ADE20K val"
    assert sizes_vary([first, second])
    assert not sizes_vary([first, first])


def test_published_lists_are_known_by_their_number_and_length():
    voc = "VOC12 segmentation val, trainaug"
    assert part_set(voc, [80] * 5) == f"{voc}, 1/128"
    assert part_set("ADE20K val", [2550] * 5) == "ADE20K val, 1/8"
    for dataset, sizes in ((voc, [80] * 4), (voc, [80] * 4 + [160]), (voc, [150] * 5), (None, [80] * 5), (voc, [])):
        assert part_set(dataset, sizes) is None
    assert part_name(voc, 64) == f"{voc}, 1/64"
    assert part_name(voc, 2) == voc
    assert part_name(None, 8) is None


def test_davis_of_half_the_frames_or_the_pixels_is_not_davis(tmp_path: Path):
    def sequences(height: int, step: int) -> list[VideoSequence]:
        frames = []
        for number in range(0, 6, step):
            path = tmp_path / f"{height} {step}" / f"{number:05d}.jpg"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (20, height)).save(path)
            frames.append(path)
        return [VideoSequence(name, tuple(frames), (None,) * len(frames)) for name in VAL_2017]

    assert is_official_val(sequences(480, 1), 2017)
    assert not is_official_val(sequences(480, 2), 2017)
    assert not is_official_val(sequences(240, 1), 2017)
