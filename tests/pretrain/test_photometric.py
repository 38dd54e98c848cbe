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
    PARAMETERS,
    SATURATION,
    Photometric,
    apply_photometric,
    apply_photometric_batch,
    blur_kernel,
    draw_photometric,
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


def with_pil(pixels: Pixels, photometric: Photometric) -> Pixels:
    """main_dino's transforms with fixed parameters."""
    image = Image.fromarray(pixels)
    for operation in photometric.order:
        if photometric.factors[operation] != Photometric().factors[operation]:
            image = PIL_OPERATIONS[operation](image, photometric.factors[operation])
    if photometric.gray:
        image = tv.rgb_to_grayscale(image, num_output_channels=3)
    if photometric.blur:
        image = image.filter(ImageFilter.GaussianBlur(photometric.blur))
    if photometric.solarize:
        image = ImageOps.solarize(image)
    return np.asarray(image)


def on_device(pixels: Pixels, *drawn: Photometric) -> np.ndarray:
    """float32 [N, S, S, 3] of one view with each of the drawn parameters, applied as one batch."""
    views = torch.from_numpy(pixels).permute(2, 0, 1).expand(len(drawn), 3, *pixels.shape[:2])
    return (
        apply_photometric_batch(views, torch.tensor([photometric.row() for photometric in drawn]))
        .permute(0, 2, 3, 1)
        .numpy()
    )


SINGLE = {
    "brightness": [Photometric(brightness=f) for f in (0.6, 0.9, 1.4)],
    "contrast": [Photometric(contrast=f) for f in (0.6, 0.9, 1.4)],
    "saturation": [Photometric(saturation=f) for f in (0.8, 0.95, 1.2)],
    "hue": [Photometric(hue=h) for h in (-0.1, -0.03, 0.05, 0.1)],
    "gray": [Photometric(gray=True)],
    "blur": [Photometric(blur=r) for r in (0.1, 0.5, 1.0, 1.5, 2.0)],
    "solarize": [Photometric(solarize=True)],
    "everything": [
        Photometric((HUE, CONTRAST, SATURATION, BRIGHTNESS), 1.2, 0.7, 1.15, -0.07, False, 1.3, True),
        Photometric((CONTRAST, BRIGHTNESS, HUE, SATURATION), 0.7, 1.3, 0.85, 0.08, True, 0.4, False),
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
    for photometric in SINGLE[name]:
        pil, loader, device = (
            with_pil(crop, photometric),
            apply_photometric(crop, photometric),
            on_device(crop, photometric)[0],
        )
        assert not np.array_equal(pil, crop), "the parameters change nothing"
        assert_near(loader, pil, LOADER_TO_PIL[name])
        assert_near(device, pil, DEVICE_TO_PIL[name])
        assert_near(device, loader, DEVICE_TO_LOADER[name])
    np.testing.assert_array_equal(crop, before)


@pytest.mark.parametrize("radius", [0.1, 0.7, 1.5, 2.0, 3.3])
def test_blur_differs_from_pils_by_rounding_away_from_the_border(radius: float, crop: Pixels):
    inside = (slice(12, -12), slice(12, -12))
    photometric = Photometric(blur=radius)
    assert_near(apply_photometric(crop, photometric)[inside], with_pil(crop, photometric)[inside], (0.8, 3))


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


def test_default_parameters_change_nothing(crop: Pixels):
    np.testing.assert_array_equal(apply_photometric(crop, Photometric()), crop)
    np.testing.assert_array_equal(on_device(crop, Photometric())[0], crop)


def random_parameters(n: int, config: PretrainConfig = CONFIG) -> list[Photometric]:
    rng = random.Random(0)
    return [draw_photometric(config, 0.5, 0.2, rng) for _ in range(n)]


def test_a_view_does_not_depend_on_the_others_of_its_batch(crop: Pixels):
    drawn = random_parameters(12)
    together = on_device(crop, *drawn)
    for photometric, view in zip(drawn, together, strict=True):
        np.testing.assert_allclose(view, on_device(crop, photometric)[0], atol=1e-3)


def test_channels_last_and_float_views_are_taken_and_left_as_they_were(crop: Pixels):
    drawn = torch.tensor([photometric.row() for photometric in random_parameters(4)])
    planes = torch.from_numpy(crop).permute(2, 0, 1).expand(4, 3, 96, 96).contiguous()
    expected = apply_photometric_batch(planes, drawn)
    for views in (planes.to(memory_format=torch.channels_last), planes.float()):
        before = views.clone()
        torch.testing.assert_close(apply_photometric_batch(views, drawn), expected, atol=1e-3, rtol=0)
        assert torch.equal(views, before)


def test_prepared_views_have_imagenet_statistics_after_photometric_changes(crop: Pixels):
    drawn = random_parameters(3)
    views = torch.from_numpy(crop).permute(2, 0, 1).expand(3, 3, 96, 96)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (torch.from_numpy(on_device(crop, *drawn)) / 255 - mean) / std
    prepared = prepare(views, torch.tensor([photometric.row() for photometric in drawn]))
    torch.testing.assert_close(prepared.permute(0, 2, 3, 1), expected)
    bare = (torch.from_numpy(crop) / 255 - mean) / std
    torch.testing.assert_close(prepare(views, torch.empty(0, PARAMETERS))[0].permute(1, 2, 0), bare)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_what_the_cpu_gives(crop: Pixels):
    drawn = torch.tensor([photometric.row() for photometric in random_parameters(64)])
    views = torch.from_numpy(crop).permute(2, 0, 1).expand(64, 3, 96, 96)
    torch.testing.assert_close(
        apply_photometric_batch(views.cuda(), drawn).cpu(), apply_photometric_batch(views, drawn), atol=0.05, rtol=0
    )


# --- Distributions: samples of fixed seeds ---


def test_jitter_is_distributed_as_torchvisions():
    drawn = random_parameters(DRAWS, replace(CONFIG, jitter_prob=1.0))
    torch.manual_seed(0)
    strengths = [(0.6, 1.4), (0.6, 1.4), (0.8, 1.2), (-0.1, 0.1)]
    theirs = [ColorJitter.get_params(*strengths) for _ in range(DRAWS)]
    for operation, (low, high) in enumerate(strengths):
        ours = [photometric.factors[operation] for photometric in drawn]
        assert ks_2samp(ours, [draw[1 + operation] for draw in theirs]).pvalue > 0.01
        assert kstest(ours, "uniform", (low, high - low)).pvalue > 0.01
    orders, counts = np.unique([photometric.order for photometric in drawn], axis=0, return_counts=True)
    assert len(orders) == 24
    assert chisquare(counts).pvalue > 0.01
    factors = np.array([photometric.factors for photometric in drawn])
    assert np.abs(np.corrcoef(factors.T) - np.eye(4)).max() < 0.05


def test_operations_are_as_frequent_as_configured_and_independent():
    drawn = random_parameters(DRAWS)
    happened = np.array(
        [
            (photometric.factors != Photometric().factors, photometric.gray, photometric.blur > 0, photometric.solarize)
            for photometric in drawn
        ],
        float,
    )
    probabilities = np.array([0.8, 0.2, 0.5, 0.2])
    sigma = np.sqrt(probabilities * (1 - probabilities) / DRAWS)
    assert (np.abs(happened.mean(axis=0) - probabilities) < 3 * sigma).all()
    assert np.abs(np.corrcoef(happened.T) - np.eye(4)).max() < 0.05
    radii = [photometric.blur for photometric in drawn if photometric.blur > 0]
    assert kstest(radii, "uniform", (0.1, 1.9)).pvalue > 0.01


def test_strong_jitter_never_draws_a_negative_factor():
    drawn = random_parameters(500, replace(CONFIG, jitter_prob=1.0, jitter=(2.0, 0.0, 0.0, 0.0)))
    assert min(photometric.brightness for photometric in drawn) >= 0
    assert max(photometric.brightness for photometric in drawn) > 2
    assert {photometric.factors[1:] for photometric in drawn} == {(1.0, 1.0, 0.0)}
