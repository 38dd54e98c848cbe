"""Color jitter, gray, blur, solarization: PIL's pixels and torchvision's distributions, in loader and on device."""

import math
import random
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from scipy.stats import chisquare, ks_2samp, kstest
from torchvision.transforms import ColorJitter
from torchvision.transforms.v2 import functional as tv

from dino_dense.arrays import Pixels
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.crops import prepare
from dino_dense.pretrain.photometric import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    ROW,
    SATURATION,
    Look,
    apply_look,
    apply_looks,
    blur_kernel,
    draw_look,
)

CONFIG = PretrainConfig()
DRAWS = 3000
PIL_OPERATIONS = {
    BRIGHTNESS: tv.adjust_brightness,
    CONTRAST: tv.adjust_contrast,
    SATURATION: tv.adjust_saturation,
    HUE: tv.adjust_hue,
}


@pytest.fixture(scope="module")
def crop() -> Pixels:
    """Colors, edges, gradients and noise, uint8 [96, 96, 3]."""
    rng = np.random.default_rng(0)
    pixels = cv2.resize(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (96, 96), interpolation=cv2.INTER_CUBIC)
    for _ in range(12):
        x, y = rng.integers(0, 96, 2).tolist()
        cv2.circle(pixels, (x, y), int(rng.integers(3, 20)), rng.integers(0, 256, 3).tolist(), -1)
    return np.clip(pixels + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)


def with_pil(pixels: Pixels, look: Look) -> Pixels:
    """main_dino's transforms with fixed parameters."""
    image = Image.fromarray(pixels)
    for operation in look.order:
        if look.factors[operation] != Look().factors[operation]:
            image = PIL_OPERATIONS[operation](image, look.factors[operation])
    if look.gray:
        image = tv.rgb_to_grayscale(image, num_output_channels=3)
    if look.blur:
        image = image.filter(ImageFilter.GaussianBlur(look.blur))
    if look.solarize:
        image = ImageOps.solarize(image)
    return np.asarray(image)


def on_device(pixels: Pixels, *looks: Look) -> np.ndarray:
    """float32 [N, S, S, 3] of one view with each of the looks, applied as one batch."""
    views = torch.from_numpy(pixels).permute(2, 0, 1).expand(len(looks), 3, *pixels.shape[:2])
    return apply_looks(views, torch.tensor([look.row() for look in looks])).permute(0, 2, 3, 1).numpy()


SINGLE = {
    "brightness": [Look(brightness=f) for f in (0.6, 0.9, 1.4)],
    "contrast": [Look(contrast=f) for f in (0.6, 0.9, 1.4)],
    "saturation": [Look(saturation=f) for f in (0.8, 0.95, 1.2)],
    "hue": [Look(hue=h) for h in (-0.1, -0.03, 0.05, 0.1)],
    "gray": [Look(gray=True)],
    "blur": [Look(blur=r) for r in (0.1, 0.5, 1.0, 1.5, 2.0)],
    "solarize": [Look(solarize=True)],
    "everything": [
        Look((HUE, CONTRAST, SATURATION, BRIGHTNESS), 1.2, 0.7, 1.15, -0.07, False, 1.3, True),
        Look((CONTRAST, BRIGHTNESS, HUE, SATURATION), 0.7, 1.3, 0.85, 0.08, True, 0.4, False),
    ],
}
# Largest mean and maximal difference, in levels of 255. Hue: both sides round H to 8 bits, in their own way. Blur: PIL
# extends the border anew for each of its passes.
LOADER_TO_PIL = {
    "brightness": (0.01, 1),
    "contrast": (0.01, 1),
    "saturation": (0.3, 1),
    "hue": (1.0, 9),
    "gray": (0.01, 1),
    "blur": (0.8, 10),
    "solarize": (0, 0),
    "everything": (1.0, 10),
}
DEVICE_TO_PIL = {
    "brightness": (0.3, 1),
    "contrast": (0.3, 1),
    "saturation": (0.3, 1),
    "hue": (0.7, 7),
    "gray": (0.3, 1),
    "blur": (0.8, 10),
    "solarize": (0, 0),
    "everything": (1.0, 10),
}
DEVICE_TO_LOADER = {
    "brightness": (0.3, 0.6),
    "contrast": (0.3, 0.6),
    "saturation": (0.3, 1),
    "hue": (0.6, 9),
    "gray": (0.3, 0.6),
    "blur": (0.3, 0.6),
    "solarize": (0, 0),
    "everything": (0.7, 9),
}


def assert_near(a: np.ndarray, b: np.ndarray, limits: tuple[float, float]) -> None:
    difference = np.abs(a.astype(float) - b)
    assert difference.mean() <= limits[0]
    assert difference.max() <= limits[1]


@pytest.mark.parametrize("name", SINGLE)
def test_the_same_parameters_give_pils_pixels_in_the_loader_and_on_the_device(name: str, crop: Pixels):
    before = crop.copy()
    for look in SINGLE[name]:
        pil, loader, device = with_pil(crop, look), apply_look(crop, look), on_device(crop, look)[0]
        assert not np.array_equal(pil, crop), "the look changes nothing"
        assert_near(loader, pil, LOADER_TO_PIL[name])
        assert_near(device, pil, DEVICE_TO_PIL[name])
        assert_near(device, loader, DEVICE_TO_LOADER[name])
    np.testing.assert_array_equal(crop, before)


@pytest.mark.parametrize("radius", [0.1, 0.7, 1.5, 2.0, 3.3])
def test_blur_differs_from_pils_by_rounding_away_from_the_border(radius: float, crop: Pixels):
    inside = (slice(12, -12), slice(12, -12))
    look = Look(blur=radius)
    assert_near(apply_look(crop, look)[inside], with_pil(crop, look)[inside], (0.8, 3))


@pytest.mark.parametrize("radius", [0.1, 0.7, 1.5, 2.0, 5.0])
def test_the_blurs_kernel_has_the_variance_of_its_radius(radius: float):
    kernel = blur_kernel(radius).astype(float)
    offsets = np.arange(len(kernel)) - len(kernel) // 2
    assert kernel.sum() == pytest.approx(1, abs=1e-6)
    assert (kernel * offsets**2).sum() == pytest.approx(radius**2, rel=1e-4)
    np.testing.assert_allclose(kernel, kernel[::-1], atol=1e-8)
    if radius >= 1:
        gauss = np.exp(-(offsets**2) / (2 * radius**2)) / math.sqrt(2 * math.pi) / radius
        assert np.abs(kernel - gauss).max() < 0.02


def test_the_default_look_changes_nothing(crop: Pixels):
    np.testing.assert_array_equal(apply_look(crop, Look()), crop)
    np.testing.assert_array_equal(on_device(crop, Look())[0], crop)


def random_looks(n: int, config: PretrainConfig = CONFIG) -> list[Look]:
    rng = random.Random(0)
    return [draw_look(config, 0.5, 0.2, rng) for _ in range(n)]


def test_a_view_does_not_depend_on_the_others_of_its_batch(crop: Pixels):
    looks = random_looks(12)
    together = on_device(crop, *looks)
    for look, view in zip(looks, together, strict=True):
        np.testing.assert_allclose(view, on_device(crop, look)[0], atol=1e-3)


def test_channels_last_and_float_views_are_taken_and_left_as_they_were(crop: Pixels):
    looks = torch.tensor([look.row() for look in random_looks(4)])
    planes = torch.from_numpy(crop).permute(2, 0, 1).expand(4, 3, 96, 96).contiguous()
    expected = apply_looks(planes, looks)
    for views in (planes.to(memory_format=torch.channels_last), planes.float()):
        before = views.clone()
        torch.testing.assert_close(apply_looks(views, looks), expected, atol=1e-3, rtol=0)
        assert torch.equal(views, before)


def test_prepared_views_have_imagenet_statistics_after_their_looks(crop: Pixels):
    looks = random_looks(3)
    views = torch.from_numpy(crop).permute(2, 0, 1).expand(3, 3, 96, 96)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (torch.from_numpy(on_device(crop, *looks)) / 255 - mean) / std
    prepared = prepare(views, torch.tensor([look.row() for look in looks]))
    torch.testing.assert_close(prepared.permute(0, 2, 3, 1), expected)
    bare = (torch.from_numpy(crop) / 255 - mean) / std
    torch.testing.assert_close(prepare(views, torch.empty(0, ROW))[0].permute(1, 2, 0), bare)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_what_the_cpu_gives(crop: Pixels):
    looks = torch.tensor([look.row() for look in random_looks(64)])
    views = torch.from_numpy(crop).permute(2, 0, 1).expand(64, 3, 96, 96)
    torch.testing.assert_close(apply_looks(views.cuda(), looks).cpu(), apply_looks(views, looks), atol=0.05, rtol=0)


# --- Distributions: samples of fixed seeds ---


def test_jitter_is_distributed_as_torchvisions():
    looks = random_looks(DRAWS, replace(CONFIG, jitter_prob=1.0))
    torch.manual_seed(0)
    strengths = [(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)]
    theirs = [ColorJitter.get_params(*strengths) for _ in range(DRAWS)]
    for operation, (low, high) in enumerate(strengths):
        ours = [look.factors[operation] for look in looks]
        assert ks_2samp(ours, [draw[1 + operation] for draw in theirs]).pvalue > 0.01
        assert kstest(ours, "uniform", (low, high - low)).pvalue > 0.01
    orders, counts = np.unique([look.order for look in looks], axis=0, return_counts=True)
    assert len(orders) == 24
    assert chisquare(counts).pvalue > 0.01
    factors = np.array([look.factors for look in looks])
    assert np.abs(np.corrcoef(factors.T) - np.eye(4)).max() < 0.05


def test_operations_are_as_frequent_as_configured_and_independent():
    looks = random_looks(DRAWS)
    happened = np.array(
        [(look.factors != Look().factors, look.gray, look.blur > 0, look.solarize) for look in looks], float
    )
    probabilities = np.array([0.8, 0.2, 0.5, 0.2])
    sigma = np.sqrt(probabilities * (1 - probabilities) / DRAWS)
    assert (np.abs(happened.mean(axis=0) - probabilities) < 3 * sigma).all()
    assert np.abs(np.corrcoef(happened.T) - np.eye(4)).max() < 0.05
    radii = [look.blur for look in looks if look.blur > 0]
    assert kstest(radii, "uniform", (0.1, 1.9)).pvalue > 0.01


def test_strong_jitter_never_draws_a_negative_factor():
    looks = random_looks(500, replace(CONFIG, jitter_prob=1.0, jitter=(2.0, 0.0, 0.0, 0.0)))
    assert min(look.brightness for look in looks) >= 0
    assert max(look.brightness for look in looks) > 2
    assert {look.factors[1:] for look in looks} == {(1.0, 1.0, 0.0)}
