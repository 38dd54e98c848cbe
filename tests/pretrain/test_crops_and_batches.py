"""Crops depend on nothing but picture and seed; batches on nothing but seed and step."""

import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from data.video import open_pretraining_data
from dino_dense.distributed import World
from dino_dense.pretrain.batches import Plan, build_loader
from dino_dense.pretrain.crops import MultiCrop, PilBlur, derive_seed, normalise
from tests.pretrain.tiny_run import TINY


@pytest.fixture
def picture() -> Image.Image:
    blocks = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    return Image.fromarray(blocks)


PLAIN = replace(
    TINY,
    global_crops_scale=(1.0, 1.0),
    local_crops_scale=(1.0, 1.0),
    flip_prob=0.0,
    jitter_prob=0.0,
    gray_prob=0.0,
    blur_probs=(0.0, 0.0, 0.0),
    solarize_prob=0.0,
)
"""Nothing random but the aspect ratio, which a whole square picture falls back from now and then."""


def test_views_have_the_configured_sizes(picture: Image.Image):
    views = MultiCrop(TINY)(picture, seed=0)
    assert [tuple(view.shape) for view in views] == [(3, 32, 32)] * 2 + [(3, 16, 16)] * 2
    assert all(view.dtype == torch.uint8 for view in views)


def test_crops_depend_on_the_seed_alone(picture: Image.Image):
    crop = MultiCrop(TINY)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = crop(picture, seed=5)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was moved"
    torch.manual_seed(2)
    np.random.seed(3)
    again, other = crop(picture, seed=5), crop(picture, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1])


def test_only_the_second_global_view_is_solarized(picture: Image.Image):
    plain = MultiCrop(PLAIN)(picture, seed=0)
    solar = MultiCrop(replace(PLAIN, solarize_prob=1.0))(picture, seed=0)
    assert torch.equal(solar[0], plain[0])
    as_picture = Image.fromarray(plain[1].permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(solar[1].permute(1, 2, 0).numpy(), np.asarray(ImageOps.solarize(as_picture, 128)))


@pytest.mark.parametrize("blurred", range(3))
def test_blur_probabilities_belong_to_first_second_and_local_views(picture: Image.Image, blurred: int):
    probs = tuple(float(i == blurred) for i in range(3))
    views = MultiCrop(replace(PLAIN, blur_probs=probs, blur_radius=(2.0, 2.0)))(picture, seed=0)
    sharpness = [view.float().diff(dim=2).abs().mean().item() for view in views]
    kinds = [0, 1, 2, 2]
    softest_sharp = min(s for s, kind in zip(sharpness, kinds, strict=True) if kind != blurred)
    assert all((s < 0.6 * softest_sharp) == (kind == blurred) for s, kind in zip(sharpness, kinds, strict=True))


def test_blur_draws_its_radius_from_the_range(picture: Image.Image):
    blur = PilBlur((0.1, 2.0))
    torch.manual_seed(0)
    contrasts = [np.asarray(blur(picture), float).std() for _ in range(20)]
    assert np.ptp(contrasts) > 5


def test_normalise_uses_imagenet_statistics():
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = [(0 - 0.485) / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    torch.testing.assert_close(normalise(pixels).flatten(), torch.tensor(expected))


def test_seeds_depend_on_every_part_of_the_key():
    keys = [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 0), (0, 0), (0, 10), (0, 1, 0, 0)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert all(0 <= derive_seed(*key) < 2**63 for key in keys)


# --- Batches ---


def positions(n: int, start: int = 0, world: World | None = None, **changes):
    return list(Plan(n, replace(TINY, **changes), world or World()).micro_batches(start))


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


def test_batches_do_not_depend_on_the_number_of_workers(pictures: Path):
    images = open_pretraining_data(pictures)
    config = replace(TINY, max_steps=4)
    runs = [
        list(build_loader(images, Plan(len(images), config, World()), 1, config, workers, pin_memory=False))
        for workers in (0, 2)
    ]
    assert len(runs[0]) == 3
    for a, b in zip(*runs, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_outlive_the_signals_that_end_a_run(number: signal.Signals, pictures: Path):
    images = open_pretraining_data(pictures)
    plan = Plan(len(images), TINY, World())
    batches = iter(build_loader(images, plan, 0, TINY, workers=1, pin_memory=False))
    next(batches)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, number)
    assert sum(1 for _ in batches) == plan.last_step - 1
