"""Backbones whose features are the ground truth, or noise: what a measure must tell apart.

They know the embedded data: an image is recognized by its thumbnail, whatever size a task gives it.
"""

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data.davis import load_davis
from data.depth import open_depth
from data.images import labeled_splits, list_images, read_rgb
from data.jhmdb import load_jhmdb
from data.masks import read_foreground
from data.sample import sample_data
from data.sample.depth import depth_root
from data.sample.points import sample_joints, sample_late_objects, sample_pairs, sample_parts, sample_tracks
from data.tracks import load_tracks
from data.vip import load_vip
from data.vos import load_vos
from dino_dense import Backbone

THUMBNAIL = 12  # pixels
ANSWERS = 16  # channels that say what is there
INSTANCES = 16  # channels that say which image it is
SPREAD = 0.02  # of the side of an image: how far a point shows
CODE = 0.5  # length of the part that says which image it is; the answer's is 1


class StubBody(nn.Module):
    """The module of a backbone, as fine-tuning takes it: timm's two calls, and a parameter that does nothing.

    Args:
        code: the parameter's value, so that bodies of different readers are different weights.
    """

    def __init__(self, reader: "NoiseReader", code: float) -> None:
        super().__init__()
        self.reader, self.num_features = reader, reader.embed_dim
        self.anchor = nn.Parameter(torch.full((1,), code))

    def forward_features(self, images: Tensor) -> Tensor:
        cls = self.reader.read(images, frozenset({"cls"}), [self.reader.depth - 1])["cls"]
        return cls + 0 * self.anchor

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        assert pre_logits
        return features


class NoiseReader:
    """Every image gets features of its own, drawn afresh: they say nothing about what is in it."""

    version, patch_size, embed_dim, depth, num_heads = 1, 8, ANSWERS + INSTANCES, 4, 1
    provides = frozenset({"patches", "cls", "keys", "attention"})
    uniform_width, nonnegative_maps = True, False

    def read(self, x: Tensor, want: frozenset[str], layers: Sequence[int], norm: bool = True) -> dict[str, Tensor]:
        """All layers are alike."""
        features = self.features(x.cpu())
        return {kind: torch.cat([features[kind]] * len(layers), dim=1).to(x.device) for kind in want}

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Noise [B, C], [B, C, h, w] and [B, 1, h, w]."""
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        generator = torch.Generator().manual_seed(int(images.double().sum() * 1e3) % 2**31)
        patches = torch.randn(len(images), self.embed_dim, *grid, generator=generator)
        return {
            "patches": patches,
            "cls": torch.randn(len(images), self.embed_dim, generator=generator),
            "keys": patches,
            "attention": _share_out(torch.rand(len(images), 1, *grid, generator=generator)),
        }


class OracleReader(NoiseReader):
    """Class tokens are the image's class, patch tokens the object in the patch; attention goes to objects.

    Args:
        known: thumbnails [N, ...] and, for each, its class or its mask of ids; the embedded set without it.
    """

    def __init__(self, known: "Known | None" = None) -> None:
        self.known = known

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """One-hot ground truth [B, C] and [B, C, h, w], and [B, 1, h, w]."""
        grid = (images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size)
        thumbnails, answers = self.known or known_samples()
        nearest = torch.cdist(thumbnail(images), thumbnails).argmin(dim=1)
        patches = torch.stack([_answer(answers[index], index, grid) for index in nearest.tolist()])
        objects = patches[:, 1:ANSWERS].sum(1, keepdim=True)
        attention = _share_out(objects + 1e-3)
        return {"patches": patches, "cls": patches.mean((-2, -1)), "keys": patches, "attention": attention}


@dataclass(frozen=True)
class KnownPoints:
    """Where points are in an image, (x, y) in shares of its sides [K, 2]; NaN where one is not seen."""

    shares: np.ndarray


Answer = int | np.ndarray | KnownPoints
"""The class of an image, its mask of ids (uint8), its depth in meters (float32), or its points."""
Known = tuple[Tensor, Sequence[Answer]]


@cache
def known_samples() -> Known:
    """What there is to know of the embedded set."""
    data = sample_data()
    thumbnails, answers = [], []
    for split in labeled_splits(data.images):
        thumbnails += [_thumbnail_of_file(path) for path in split.paths]
        answers += split.labels
    for path in list_images(data.saliency / "images"):
        thumbnails.append(_thumbnail_of_file(path))
        answers.append(read_foreground(data.saliency / "masks" / f"{path.stem}.png"))
    for sequence in load_davis(data.davis):
        thumbnails += [thumbnail(to_tensor(sequence.read_frame(index))) for index in range(len(sequence))]
        answers += [sequence.read_mask(index) for index in range(len(sequence))]
    for path in sorted((sample_pairs() / "ImageAnnotation").rglob("*.json")):
        note = json.loads(path.read_text())
        points = [point or (np.nan, np.nan) for point in note["kps"].values()]
        thumbnails.append(_thumbnail_of_file(sample_pairs() / "JPEGImages" / path.parent.name / note["filename"]))
        answers.append(KnownPoints(np.array(points) / [note["image_width"], note["image_height"]]))
    for video in load_tracks(sample_tracks()):
        for index in range(len(video)):
            thumbnails.append(thumbnail(to_tensor(video.read(index, 256))))
            hidden = video.occluded[:, index, None]
            answers.append(KnownPoints(np.where(hidden, np.nan, video.points[:, index])))
    for pose in load_jhmdb(sample_joints()):
        for index, path in enumerate(pose.frames):
            thumbnails.append(_thumbnail_of_file(path))
            answers.append(KnownPoints(pose.joints[index] / pose.size[::-1]))
    for parsed in load_vip(sample_parts()):
        thumbnails += [_thumbnail_of_file(path) for path in parsed.frames]
        answers += [parsed.read_classes(index) for index in range(len(parsed.frames))]
    for late in load_vos(sample_late_objects(), truth=sample_late_objects() / "truth")[1]:
        thumbnails += [_thumbnail_of_file(path) for path in late.frames]
        answers += [late.read_truth(index) for index in range(len(late))]
    for pair in [*open_depth(depth_root(), "train"), *open_depth(depth_root(), "val")]:
        thumbnails.append(_thumbnail_of_file(pair.image))
        answers.append(pair.read_depth())
    return torch.cat(thumbnails), answers


def stub_backbone(name: str, reader: NoiseReader) -> Backbone:
    """A backbone without a network: its features are the reader's. Pixels are not normalized."""
    body = StubBody(reader, code=float(zlib.crc32(name.encode())))
    black, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return Backbone(body, name=name, sha256=name, mean=black, std=one, reader=reader)


def noise_backbone() -> Backbone:
    return stub_backbone("noise", NoiseReader())


def oracle_backbone(known: Known | None = None) -> Backbone:
    return stub_backbone("oracle", OracleReader(known))


def _answer(label: Answer, index: int, grid: tuple[int, int]) -> Tensor:
    """[C, h, w]: what is in each patch; for an image of a class also which image it is."""
    if isinstance(label, KnownPoints):
        return _bumps(label.shares, grid)
    if isinstance(label, int):
        code = torch.randn(INSTANCES, generator=torch.Generator().manual_seed(index))
        channels = torch.cat([F.one_hot(torch.tensor(label), ANSWERS).float(), CODE * F.normalize(code, dim=0)])
        return channels[:, None, None].expand(-1, *grid)
    if label.dtype == np.float32:
        return F.pad(_hats(cv2.resize(label, grid[::-1], interpolation=cv2.INTER_AREA)), (0, 0, 0, 0, 0, INSTANCES))
    ids = torch.from_numpy(cv2.resize(label, grid[::-1], interpolation=cv2.INTER_NEAREST_EXACT)).long()
    return F.pad(F.one_hot(ids, ANSWERS).permute(2, 0, 1).float(), (0, 0, 0, 0, 0, INSTANCES))


def _bumps(shares: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """[C, h, w]: a channel a point, high where it is; the last channel is alike everywhere."""
    rows, columns = ((torch.arange(length) + 0.5) / length for length in grid)
    maps = torch.zeros(ANSWERS + INSTANCES, *grid)
    maps[-1] = 0.02
    for channel, (x, y) in zip(maps, torch.from_numpy(shares).nan_to_num(-9.0), strict=False):
        distance = (columns[None] - x) ** 2 + (rows[:, None] - y) ** 2
        channel += torch.exp(-distance / (2 * SPREAD**2)).float()
    return maps


def _hats(depth: np.ndarray) -> Tensor:
    """Meters [h, w] as shares [ANSWERS, h, w] of the two nearest of fixed depths: linear in the logarithm."""
    place = (np.log(np.clip(depth, 0.5, 12.0)) - np.log(0.5)) / (np.log(12.0) - np.log(0.5)) * (ANSWERS - 1)
    distance = np.abs(place[None] - np.arange(ANSWERS)[:, None, None])
    return torch.from_numpy(np.maximum(0, 1 - distance).astype(np.float32))


def _share_out(weights: Tensor) -> Tensor:
    """[B, 1, h, w] that sums to 1 for each image."""
    return weights / weights.sum((-2, -1), keepdim=True)


def to_tensor(rgb: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)[None].float() / 255


def _thumbnail_of_file(path: Path) -> Tensor:
    return thumbnail(to_tensor(np.asarray(read_rgb(path))))


def thumbnail(images: Tensor) -> Tensor:
    """Means of areas, by two products: `F.interpolate(mode="area")` takes ten times as long."""
    rows, columns = (_areas(side) for side in images.shape[-2:])
    return (rows @ images @ columns.mT).flatten(1)


@cache
def _areas(side: int) -> Tensor:
    """[THUMBNAIL, side]: the weight of each pixel in the mean of each area, as adaptive pooling takes them."""
    weights = torch.zeros(THUMBNAIL, side)
    for area, row in enumerate(weights):
        first, last = area * side // THUMBNAIL, -(-(area + 1) * side // THUMBNAIL)
        row[first:last] = 1 / (last - first)
    return weights
