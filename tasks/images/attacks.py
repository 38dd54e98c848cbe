"""Attacks on a picture, as in copied pictures: PIL image -> PIL image in RGB.

An attack is written as a word: `crop50` cuts half of the surface away, `jpeg8` compresses with quality 8, `blur2`
blurs by 2 % of the short side, `print` simulates a print photographed at an angle. Kinds and levels of the first two
are from INRIA Copydays. Its `strong` attacks were made by hand; `print` is the closest computed attack.
"""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import cv2
import numpy as np
from PIL import Image, ImageFilter

from data.images import read_rgb

# Limits of the number after each kind: percent of the surface, quality, percent of the short side.
LIMITS = {"crop": (1, 99), "jpeg": (1, 95), "blur": (1, 50)}
# A photographed print: shift of a corner (share of a side), remaining contrast, noise, JPEG quality.
PRINT_TILT, PRINT_CONTRAST, PRINT_NOISE, PRINT_QUALITY = 0.08, 0.7, 8.0, 50
PAPER = (255, 255, 255)


def check_attacks(attacks: Iterable[str]) -> None:
    """Raise ValueError for an unknown or repeated attack."""
    attacks = list(attacks)
    for attack in attacks:
        kind, level = _parse(attack)
        low, high = LIMITS.get(kind, (0, 0))
        if not low <= level <= high:
            raise ValueError(f"attack {attack!r}: the number after {kind} is expected to be {low} to {high}.")
    if not attacks or len(set(attacks)) < len(attacks):
        raise ValueError(f"attacks {tuple(attacks)}: expected one or more, each once.")


@dataclass(frozen=True)
class AttackedImages(Sequence[Image.Image]):
    """All images under all attacks, attack by attack. Random numbers depend on seed, attack and image only."""

    paths: Sequence[Path]
    numbers: Sequence[int]
    """A number for each image, for its random numbers."""
    attacks: Sequence[str]
    seed: int

    def __len__(self) -> int:
        return len(self.paths) * len(self.attacks)

    def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]
        attack, image = self.attacks[index // len(self.paths)], index % len(self.paths)
        rng = np.random.default_rng((self.seed, crc32(attack.encode()), self.numbers[image]))
        return apply_attack(read_rgb(self.paths[image]), attack, rng)


def apply_attack(image: Image.Image, attack: str, rng: np.random.Generator) -> Image.Image:
    """Apply an attack.

    Raises:
        ValueError: an unknown attack.
    """
    kind, level = _parse(attack)
    return _KINDS[kind](image, level, rng)


def _parse(attack: str) -> tuple[str, int]:
    match = re.fullmatch(r"(crop|jpeg|blur)(\d+)|print", attack)
    if not match:
        raise ValueError(f"unknown attack {attack!r}: expected cropN, jpegN, blurN (such as crop50) or print.")
    return match[1] or "print", int(match[2] or 0)


def _crop(image: Image.Image, percent: int, rng: np.random.Generator) -> Image.Image:
    """Cut `percent` of the surface away: a random window with the same aspect ratio."""
    keep = (1 - percent / 100) ** 0.5
    width, height = (max(1, round(side * keep)) for side in image.size)
    left, top = int(rng.integers(image.width - width + 1)), int(rng.integers(image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def _jpeg(image: Image.Image, quality: int, rng: np.random.Generator) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=quality)
    return Image.open(stream).convert("RGB")


def _blur(image: Image.Image, percent: int, rng: np.random.Generator) -> Image.Image:
    """Gaussian blur with a standard deviation in percent of the short side."""
    return image.filter(ImageFilter.GaussianBlur(percent / 100 * min(image.size)))


def _print(image: Image.Image, level: int, rng: np.random.Generator) -> Image.Image:
    """Perspective on white paper, less contrast, noise, compression."""
    width, height = image.size
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    inward = np.sign(corners.mean(0) - corners) * rng.uniform(0, PRINT_TILT, corners.shape) * (width, height)
    tilt = cv2.getPerspectiveTransform(corners, (corners + inward).astype(np.float32))
    seen = cv2.warpPerspective(np.asarray(image), tilt, image.size, flags=cv2.INTER_LINEAR, borderValue=PAPER)
    paler = 255 - PRINT_CONTRAST * (255 - seen.astype(np.float64))
    noisy = paler + rng.normal(0, PRINT_NOISE, paler.shape)
    return _jpeg(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), PRINT_QUALITY, rng)


_KINDS: dict[str, Callable[[Image.Image, int, np.random.Generator], Image.Image]] = {
    "crop": _crop,
    "jpeg": _jpeg,
    "blur": _blur,
    "print": _print,
}
