"""Crops depend on nothing but picture and seed; batches on nothing but seed and step."""

import multiprocessing
import os
import random
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import ks_2samp
from torch.overrides import TorchFunctionMode
from torchvision.transforms import InterpolationMode, RandomResizedCrop, v2

from data.images import DecodedPicture, open_picture
from data.pretraining import open_pretraining_data
from dino_dense.arrays import Pixels
from dino_dense.distributed import World
from dino_dense.pretrain.batches import CropDataset, build_loader, pretraining_plan
from dino_dense.pretrain.crops import (
    CropBox,
    LargerCrops,
    MultiCrop,
    View,
    allowed_reduction,
    draw_box,
    normalize,
    reduced_box,
    resize,
)
from dino_dense.pretrain.photometric import Photometric, apply_photometric, apply_photometric_batch
from dino_dense.training.plan import Position
from dino_dense.training.seeds import derive_seed
from tests.pretrain.tiny_run import TINY


@pytest.fixture
def picture() -> DecodedPicture:
    return DecodedPicture(np.random.default_rng(1).integers(0, 256, (40, 48, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def photo() -> Pixels:
    """Edges, gradients and texture, uint8 [375, 500, 3]."""
    rng = np.random.default_rng(2)
    pixels = cv2.resize(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8), (500, 375), interpolation=cv2.INTER_CUBIC)
    for _ in range(30):
        x, y, r = rng.integers(0, 500), rng.integers(0, 375), rng.integers(5, 60)
        cv2.circle(pixels, (int(x), int(y)), int(r), [int(c) for c in rng.integers(0, 256, 3)], -1)
    noise = rng.normal(0, 6, pixels.shape)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8)


def rendered(crop: MultiCrop, picture: DecodedPicture, views: Sequence[View]) -> list[Pixels]:
    into = [np.zeros((kind.size, kind.size, 3), np.uint8) for kind in crop.kinds]
    crop.render(picture, views, into)
    return into


def crops_of(picture: DecodedPicture, seed: int, **changes: object) -> list[Pixels]:
    crop = MultiCrop(replace(TINY, **changes))
    return rendered(crop, picture, crop.draw(picture.size, seed))


# --- Drawing ---


def test_crops_depend_on_the_seed_alone(picture: DecodedPicture):
    torch.manual_seed(1)
    random.seed(1)
    states = torch.get_rng_state(), random.getstate()
    first = crops_of(picture, 5)
    assert torch.equal(torch.get_rng_state(), states[0]), "the global generator was moved"
    assert random.getstate() == states[1], "the global generator was moved"
    np.random.seed(3)
    again, other = crops_of(picture, 5), crops_of(picture, 6)
    assert [view.shape for view in first] == [(32, 32, 3)] * 2 + [(16, 16, 3)] * 2
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert not np.array_equal(first[0], first[1])


@pytest.mark.parametrize("scale", [(0.4, 1.0), (0.05, 0.4)])
@pytest.mark.parametrize("size", [(375, 500), (120, 640)])
def test_boxes_are_distributed_as_torchvisions(size: tuple[int, int], scale: tuple[float, float]):
    """Both samples are fixed; at 120 x 640 many draws fail and some fall back to the middle."""
    rng, n = random.Random(0), 3000
    ours = np.array([draw_box(size, scale, rng) for _ in range(n)])
    torch.manual_seed(0)
    empty = torch.empty(3, *size, dtype=torch.uint8)
    theirs = np.array([RandomResizedCrop.get_params(empty, list(scale), [3 / 4, 4 / 3]) for _ in range(n)])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= size).all()
    for of in (lambda b: b[:, 2] * b[:, 3], lambda b: b[:, 3] / b[:, 2], lambda b: b[:, 0], lambda b: b[:, 1]):
        assert ks_2samp(of(ours), of(theirs)).pvalue > 0.01


@pytest.mark.parametrize("size", [(10, 400), (400, 10)])
def test_a_long_picture_gives_its_middle_as_in_torchvision(size: tuple[int, int]):
    torch.manual_seed(0)
    theirs = RandomResizedCrop.get_params(torch.empty(3, *size), [0.9, 1.0], [3 / 4, 4 / 3])
    assert draw_box(size, (0.9, 1.0), random.Random(0)) == tuple(theirs)


def test_photometric_parameters_belong_to_their_views():
    config = replace(TINY, blur_probs=(1.0, 0.0, 0.0), solarize_prob=1.0, flip_prob=1.0)
    for seed in range(20):
        views = MultiCrop(config).draw((40, 48), seed)
        assert [view.photometric.solarize for view in views] == [False, True, False, False]
        assert [view.photometric.blur > 0 for view in views] == [True, False, False, False]
        assert all(view.flip for view in views)
        areas = [view.box.height * view.box.width / (40 * 48) for view in views]
        assert min(areas[:2]) > 0.35
        assert max(areas[2:]) < 0.45


# --- Pixels ---


@pytest.mark.parametrize("box", [CropBox(20, 30, 300, 350), CropBox(0, 250, 120, 110), CropBox(7, 9, 60, 45)])
@pytest.mark.parametrize("size", [224, 96])
def test_resizing_is_torchvisions_and_within_two_levels_of_pillows(photo: Pixels, box: CropBox, size: int):
    ours = resize(photo, box, np.zeros((size, size, 3), np.uint8))
    part = photo[box.top : box.top + box.height, box.left : box.left + box.width]
    planes = torch.from_numpy(part).permute(2, 0, 1)
    theirs = v2.functional.resize(planes, [size, size], InterpolationMode.BICUBIC, antialias=True)
    np.testing.assert_array_equal(ours, theirs.permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(
        ours, F.interpolate(planes[None], (size, size), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
    )
    pillow = np.asarray(Image.fromarray(part).resize((size, size), Image.Resampling.BICUBIC))
    difference = np.abs(ours.astype(int) - pillow)
    assert difference.max() <= 2
    assert difference.mean() < 0.1


def test_a_flip_mirrors_and_nothing_else(photo: Pixels):
    crop, box = MultiCrop(TINY), CropBox(20, 30, 300, 350)
    plain, flipped = (
        rendered(crop, DecodedPicture(photo), [View(box, flip, Photometric())] * 4) for flip in (False, True)
    )
    assert all(np.array_equal(a[:, ::-1], b) for a, b in zip(plain, flipped, strict=True))
    assert not np.array_equal(plain[0], flipped[0])


@pytest.mark.parametrize("augment_on", ["loader", "device"])
def test_larger_crops_are_the_same_boxes_with_more_detail(augment_on: str, photo: Pixels):
    config = replace(TINY, augment_on=augment_on, flip_prob=1.0, global_crop_size=96)
    plain, crop = MultiCrop(config), MultiCrop(config, LargerCrops(192, photometric=False, begin=0))
    picture = DecodedPicture(photo)
    views = crop.draw(picture.size, 4)
    assert views == plain.draw(picture.size, 4)
    into = [np.zeros((kind.size, kind.size, 3), np.uint8) for kind in crop.kinds]
    larger = [np.zeros((192, 192, 3), np.uint8) for _ in range(2)]
    crop.render(picture, views, into, larger)
    assert all(np.array_equal(a, b) for a, b in zip(rendered(plain, picture, views), into, strict=True))
    bare = rendered(MultiCrop(replace(config, augment_on="device")), picture, views)
    for view, small, large in zip(views[:2], bare[:2], larger, strict=True):
        assert np.array_equal(large[:, ::-1], resize(photo, view.box, np.zeros_like(large)))
        down = cv2.resize(large, (96, 96), interpolation=cv2.INTER_AREA).astype(int)
        up = cv2.resize(small, (192, 192), interpolation=cv2.INTER_CUBIC).astype(int)
        assert np.abs(down - small).mean() < np.abs(up - large).mean() / 2


@pytest.mark.parametrize("augment_on", ["loader", "device"])
def test_larger_crops_can_be_shrunk_to_the_global_crops(augment_on: str, photo: Pixels):
    """dinov3's order: cut and flip at the larger size, shrink, change."""
    config, picture = replace(TINY, augment_on=augment_on, flip_prob=1.0, global_crop_size=96), DecodedPicture(photo)
    runs = []
    for shrinks in (False, True):
        crop = MultiCrop(config, LargerCrops(192, photometric=False, begin=0, shrinks=shrinks))
        views = crop.draw(picture.size, 4)
        into = [np.zeros((kind.size, kind.size, 3), np.uint8) for kind in crop.kinds]
        larger = [np.zeros((192, 192, 3), np.uint8) for _ in range(2)]
        crop.render(picture, views, into, larger)
        runs.append([*larger, *into])
    cut, shrunk = runs
    for number in (0, 1):
        assert np.array_equal(cut[number], shrunk[number])
        small = resize(shrunk[number], CropBox(0, 0, 192, 192), np.zeros((96, 96, 3), np.uint8))
        changed = apply_photometric(small, views[number].photometric) if augment_on == "loader" else small
        assert np.array_equal(shrunk[2 + number], changed)
        assert not np.array_equal(shrunk[2 + number], cut[2 + number])
        assert np.abs(shrunk[2 + number].astype(int) - cut[2 + number]).mean() < 4
    assert all(np.array_equal(a, b) for a, b in zip(cut[4:], shrunk[4:], strict=True)), "local crops are as ever"
    assert len(cut) > 4


def test_larger_crops_have_the_photometric_changes_where_asked(photo: Pixels):
    """In the loader, and on the device by parameters whose blur grows with the crop."""
    picture, twice = DecodedPicture(photo), LargerCrops(64, photometric=True, begin=0)
    always = replace(TINY, jitter_prob=1.0, blur_probs=(1.0, 1.0, 1.0))
    crop, bare = (MultiCrop(replace(always, augment_on=where), twice) for where in ("loader", "device"))
    views = crop.draw(picture.size, 4)
    finished, without = ([np.zeros((64, 64, 3), np.uint8) for _ in range(2)] for _ in range(2))
    for one, larger in ((crop, finished), (bare, without)):
        into = [np.zeros((kind.size, kind.size, 3), np.uint8) for kind in one.kinds]
        one.render(picture, views, into, larger)
    for view, changed, pixels in zip(views, finished, without, strict=False):
        large = crop.larger_view(view)
        assert large == view._replace(photometric=view.photometric._replace(blur=2 * view.photometric.blur))
        assert np.array_equal(changed, apply_photometric(pixels, large.photometric))
        assert not np.array_equal(changed, pixels)


def test_the_loader_leaves_photometric_changes_to_the_device(photo: Pixels):
    """The same seed on either side gives the same boxes, flips and parameters, and pixels equal up to rounding."""
    in_loader, on_device = (MultiCrop(replace(TINY, augment_on=where)) for where in ("loader", "device"))
    views = in_loader.draw((375, 500), 3)
    assert views == on_device.draw((375, 500), 3)
    finished = rendered(in_loader, DecodedPicture(photo), views)
    bare = rendered(on_device, DecodedPicture(photo), views)
    table = torch.tensor([view.photometric.row() for view in views])
    assert not any(np.array_equal(a, b) for a, b in zip(finished, bare, strict=True))
    for a, b, row in zip(finished, bare, table, strict=True):
        changed = (
            apply_photometric_batch(torch.from_numpy(b).permute(2, 0, 1)[None], row[None])[0].permute(1, 2, 0).numpy()
        )
        assert np.abs(changed - a).mean() < 1.5


def test_reduced_decoding_is_for_boxes_with_twice_the_pixels():
    boxes = [CropBox(0, 0, 900, 1000), CropBox(5, 5, 400, 384)]
    assert allowed_reduction((1, 2, 4, 8), boxes, [224, 96]) == 2
    assert allowed_reduction((1, 2, 4, 8), boxes[:1], [224]) == 2
    assert allowed_reduction((1, 2, 4, 8), boxes[1:], [96]) == 2
    assert allowed_reduction((1, 2, 4, 8), [CropBox(0, 0, 383, 900)], [96]) == 1
    assert allowed_reduction((1, 2, 4, 8), [CropBox(0, 0, 2000, 1536)], [96]) == 8
    assert allowed_reduction((1,), [CropBox(0, 0, 2000, 2000)], [96]) == 1


def test_a_reduced_box_stays_inside_and_near():
    pixels = np.zeros((38, 51, 3), np.uint8)  # 299 x 401, by 8
    assert reduced_box(CropBox(0, 0, 299, 401), 8, pixels) == CropBox(0, 0, 37, 50)
    assert reduced_box(CropBox(99, 99, 200, 302), 8, pixels) == CropBox(12, 12, 25, 38)
    for top in range(200):
        box = reduced_box(CropBox(top, top, 299 - top, 401 - top), 8, pixels)
        assert box.top + box.height <= 38
        assert box.left + box.width <= 51
        assert abs(box.top * 8 - top) <= 4


def test_large_jpegs_are_decoded_at_reduced_size_with_nearly_the_same_crops(photo: Pixels, tmp_path: Path):
    large = cv2.resize(photo, (2000, 1500), interpolation=cv2.INTER_CUBIC)
    Image.fromarray(large).save(tmp_path / "large.jpg", quality=95)
    picture = open_picture(tmp_path / "large.jpg")
    asked: list[int] = []

    class Watched:
        size, reductions = picture.size, picture.reductions

        def decode(self, reduction: int = 1) -> Pixels:
            asked.append(reduction)
            return picture.decode(reduction)

    crop = MultiCrop(replace(TINY, global_crop_size=224, local_crop_size=96, augment_on="device"))
    views = crop.draw(picture.size, 0)
    reduced = rendered(crop, Watched(), views)
    whole = rendered(crop, DecodedPicture(picture.decode()), views)
    assert len(asked) == 1
    assert asked[0] in (2, 4)
    assert max(np.abs(a.astype(int) - b).mean() for a, b in zip(reduced, whole, strict=True)) < 3


def test_normalize_uses_imagenet_statistics():
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    torch.testing.assert_close(normalize(pixels).flatten(), torch.tensor(expected))


def test_seeds_depend_on_every_part_of_the_key():
    keys = [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0), (0, 0), (0, 10), (0, 1, 0, 0)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert all(0 <= derive_seed(*key) < 2**63 for key in keys)


# --- Batches ---


def positions(n: int, start: int = 0, world: World | None = None, **changes):
    return list(pretraining_plan(n, replace(TINY, **changes), world or World()).micro_batches(start))


def test_an_epoch_shows_every_image_at_most_once_and_epochs_differ():
    epochs = [set(), set()]
    order = [[], []]
    for batch in positions(26, epochs=2):
        for position in batch:
            assert position.image not in epochs[position.epoch]
            epochs[position.epoch].add(position.image)
            order[position.epoch].append(position.image)
    assert [len(epoch) for epoch in epochs] == [24, 24]
    assert order[0] != order[1]


def test_order_depends_on_the_seed():
    assert positions(26) == positions(26)
    assert positions(26) != positions(26, seed=1)


def test_processes_and_micro_batches_split_a_step_by_position():
    whole = positions(26)
    shares = [positions(26, world=World(rank, rank, 2), accumulate=2) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        parts = [p for share in shares for micro in share[2 * step : 2 * step + 2] for p in micro]
        assert parts == batch


def test_a_plan_goes_on_in_the_middle_of_an_epoch():
    assert positions(26, start=7) == positions(26)[7:]


@pytest.mark.parametrize(
    ("n", "changes", "message"),
    [
        (7, {}, r"7 image\(s\) do not fill one batch of 8: lower --batch-size, or add images"),
        (26, {"accumulate": 3}, r"batch_size is 8, which 1 process\(es\) x 3 .* use a multiple of 3"),
    ],
)
def test_a_batch_that_cannot_be_filled_or_shared_is_an_error(n: int, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        positions(n, **changes)


@pytest.mark.parametrize("augment_on", ["loader", "device"])
def test_batches_do_not_depend_on_the_number_of_workers(augment_on: str, pictures: Path):
    images = open_pretraining_data(pictures)
    gram = {"gram_teacher": "run", "gram_begin": 2, "gram_crop_size": 48, "gram_photometric": True}
    config = replace(TINY, max_steps=4, augment_on=augment_on, objectives=("dino", "gram"), **gram)
    runs = [
        list(build_loader(images, pretraining_plan(len(images), config, World()), 1, config, workers, pin_memory=False))
        for workers in (0, 2)
    ]
    assert len(runs[0]) == 3
    for a, b in zip(*runs, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:-1], b[:-1], strict=True))
        assert a.bad == b.bad == []
        assert [tuple(views.shape) for views in a[:2]] == [(16, 3, 32, 32), (16, 3, 16, 16)]
        assert [len(photometric) for photometric in a[2:4]] == ([0, 0] if augment_on == "loader" else [16, 16])
    assert [tuple(batch.larger_views.shape) for batch in runs[0]] == [(0, 3, 0, 0), (16, 3, 48, 48), (16, 3, 48, 48)]
    assert [len(batch.larger_photometric) for batch in runs[0]] == [0, *[16 * (augment_on == "device")] * 2]


def test_a_server_that_does_not_answer_stops_the_run_and_no_other_picture_replaces_the_picture(pictures: Path):
    files = open_pretraining_data(pictures)

    class Broken:
        fingerprint, name = "", staticmethod(files.name)

        def __init__(self, error: OSError) -> None:
            self.error = error

        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> DecodedPicture:
            raise self.error if index == 3 else AssertionError("another picture")

    for error, kind in ((ConnectionError("no answer"), ConnectionError), (OSError("damaged"), AssertionError)):
        with pytest.raises(kind):
            CropDataset(Broken(error), replace(TINY, on_bad_sample="skip"))[[Position(0, 0, 3, 0)]]


def test_a_micro_batch_is_view_major_and_each_image_is_its_own_function(pictures: Path):
    images = open_pretraining_data(pictures)
    config = replace(TINY, augment_on="device")
    plan = pretraining_plan(len(images), config, World())
    batch = next(iter(build_loader(images, plan, 0, config, workers=0, pin_memory=False)))
    crop = MultiCrop(config)
    for place, position in enumerate(next(plan.micro_batches(0))):
        picture = images[position.image]
        views = crop.draw(picture.size, derive_seed(1, config.seed, position.epoch, position.image))
        for number, (view, pixels) in enumerate(zip(views, rendered(crop, picture, views), strict=True)):
            of_kind, photometric = (
                (batch.global_views, batch.global_photometric)
                if number < 2
                else (batch.local_views, batch.local_photometric)
            )
            row = (number if number < 2 else number - 2) * config.batch_size + place
            assert np.array_equal(of_kind[row].permute(1, 2, 0).numpy(), pixels)
            assert photometric[row].tolist() == torch.tensor(view.photometric.row()).tolist()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_outlive_the_signals_that_end_a_run(number: signal.Signals, pictures: Path):
    images = open_pretraining_data(pictures)
    plan = pretraining_plan(len(images), TINY, World())
    batches = iter(build_loader(images, plan, 0, TINY, workers=1, pin_memory=False))
    next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, number)
    assert sum(1 for _ in batches) == plan.last_step - 1


class CopiedFromTheHost(TorchFunctionMode):
    """Counts tensors made of Python numbers: on CUDA, each makes the host wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.tensor
        return func(*args, **(kwargs or {}))


def test_only_the_first_batch_waits_for_the_device():
    views = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    first = normalize(views)
    with CopiedFromTheHost() as copied:
        assert torch.equal(normalize(views), first)
    assert copied.count == 0
