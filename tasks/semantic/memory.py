"""A memory of labeled patches, and the classes that it gives to the patches of other images.

Shapes: B images, h x w patches of p x p pixels, D features, C classes, M rows of the memory.
Sources: open-hummingbird-eval `hbird/hbird_eval.py` (arXiv 2306.01667); CAPI `eval_segmentation.py` (arXiv 2502.08769).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dino_dense.clustering import Scaling, fit_scaling
from dino_dense.neighbors import incontext
from dino_dense.neighbors.incontext import VOID
from dino_dense.training.seeds import uniform
from tasks.semantic.protocol import IncontextProtocol
from tasks.semantic.squares import LabeledBatch, Squares, labeled_batches, shared_keys

if TYPE_CHECKING:
    from dino_dense import Backbone
    from tasks.harness.session import Session
    from tasks.semantic.splits import LabeledSplits

VOTES_AT_ONCE = 2048  # queries whose neighbors' pixels are compared at once
SMALLEST_DRAW = 2.0**-24  # so that a product with infinity is infinite
AUGMENTED, SAMPLED = 1, 2  # streams of random numbers


@dataclass
class Memory:
    """Patches with their labels."""

    features: Tensor
    """[M, D], float32; of length 1 for soft labels."""
    labels: Tensor
    """For soft labels: pixels of each class, int16 [M, C]; for votes: the id of each pixel, uint8 [M, p*p]."""
    patch: int
    """p"""
    scaling: Scaling | None = None
    """Mean and deviation of the features, if they are standardized."""

    def size(self) -> str:
        """Its size in words."""
        features, labels = (tensor.numel() * tensor.element_size() / 2**20 for tensor in (self.features, self.labels))
        rows, width = self.features.shape
        return f"{rows:,} patches of {width} values ({features:.1f} MiB, labels {labels:.1f} MiB)"

    def classes(self) -> set[int]:
        """Ids of the classes that it has."""
        if self.labels.dtype == torch.int16:
            return set(self.labels.amax(0).nonzero().flatten().tolist())
        return set(self.labels.unique().tolist()) - {VOID}

    def to(self, device: torch.device) -> Memory:
        """The same on another device."""
        return Memory(self.features.to(device), self.labels.to(device), self.patch, self.scaling)


@dataclass(frozen=True)
class Builder:
    """Reads the memory of a set of images."""

    backbone: Backbone
    splits: LabeledSplits
    config: IncontextProtocol
    session: Session
    size: int
    """S, pixels."""
    batch_size: int
    workers: int | None
    remembering: Backbone | None = None
    """The same backbone, for images that are seen again unchanged: a run for each draw looks at them."""

    def looking(self, *, augment: bool) -> Backbone:
        """The backbone for images that are changed at random, or not."""
        return self.backbone if augment or self.remembering is None else self.remembering

    def read(self, images: Sequence[int], seed: int, scaling: Scaling | None = None) -> Memory:
        """The memory of these training images, standardized with `scaling` where the protocol does; else with its own.

        Raises:
            ValueError: `memory_size` leaves no patch of an image, or no patch is left at all.
        """
        turns = [image for _ in range(self.config.epochs) for image in images]
        count = self._patches_of_each(len(images), len(turns))
        keys = shared_keys(self.session, turns, AUGMENTED, seed)
        squares = Squares(self.splits.train, self.size, self.config.interpolation, augment=self.config.augment)
        rows: list[tuple[int, tuple[Tensor, Tensor]]] = []
        with self.session.bar(len(keys), "memory", leave=False) as bar:
            for batch in labeled_batches(
                self.looking(augment=self.config.augment),
                squares,
                keys,
                batch_size=self.batch_size,
                workers=self.workers,
            ):
                rows += self._rows(batch, count, seed)
                bar.update(len(batch.positions))
        parts = self.session.collect(rows)
        rows.clear()
        labels = joined([part[1] for part in parts])
        features = [part[0] for part in parts]
        parts.clear()
        memory = Memory(joined(features), labels, self.backbone.patch_size)
        if not len(memory.features):
            raise ValueError(
                f"the memory is empty: no patch of {len(images)} training images has a class (255 is void)."
            )
        if not self.config.standardize:
            return memory
        scaling = scaling or fit_scaling(memory.features)
        return Memory(scaling.apply(memory.features), memory.labels, memory.patch, scaling)

    def _patches_of_each(self, images: int, turns: int) -> int:
        """Number of patches of an image that enter the memory in each epoch."""
        whole = (self.size // self.backbone.patch_size) ** 2
        if not self.config.memory_size:
            return whole
        count = min(self.config.memory_size // turns, whole)
        if count < 1:
            raise ValueError(
                f"the memory is empty: memory_size {self.config.memory_size} is less than a patch of each of {images} "
                f"images in {self.config.epochs} epochs. Raise --memory-size to {turns} or more, or take fewer images "
                "(--fraction)."
            )
        return count

    def _rows(self, batch: LabeledBatch, count: int, seed: int) -> list[tuple[int, tuple[Tensor, Tensor]]]:
        """(position, (features, labels)) of the patches of each image that are kept."""
        features, patch = rearrange(batch.patches, "b d h w -> b (h w) d"), self.backbone.patch_size
        if self.config.readout == "vote":
            labels, common, valid = self._pixel_labels(batch.ids, patch)
        else:
            features = F.normalize(features, dim=-1)
            labels, common, valid = self._class_counts(batch.ids, patch)
        features = features.cpu()
        if count < labels.shape[1]:
            draws = self._draws(batch, labels.shape[1], seed).clamp_min(SMALLEST_DRAW)
            sampled = incontext.sample_patches(common.masked_fill(~valid, torch.inf), draws, count)
            kept = [order[valid[index, order]] for index, order in enumerate(sampled)]
        else:
            kept = [rows.nonzero().flatten() for rows in valid]
        return [
            (position, (features[index, rows], labels[index, rows]))
            for index, (position, rows) in enumerate(zip(batch.positions, kept, strict=True))
        ]

    def _pixel_labels(self, ids: Tensor, patch: int) -> tuple[Tensor, Tensor, Tensor]:
        """From ids [B, S, S]: ids of each patch's pixels [B, h*w, p*p], equal chances [B, h*w], and which patches
        stay."""
        if self.config.void == "background":
            ids = ids.masked_fill(ids == VOID, 0)
        labels = incontext.patch_labels(ids, patch).to(torch.uint8).view(len(ids), -1, patch * patch)
        scored = torch.from_numpy(self.splits.truth(ids.numpy()))
        modal = incontext.modal_label(scored, patch)
        valid = modal != VOID if self.config.void == "dropped" else torch.ones_like(modal, dtype=torch.bool)
        return labels, torch.ones(modal.shape), valid

    def _class_counts(self, ids: Tensor, patch: int) -> tuple[Tensor, Tensor, Tensor]:
        """From ids [B, S, S]: pixels of each class [B, h*w, C], frequency of a patch's classes [B, h*w], which stay."""
        shares = incontext.patch_histograms(ids, patch, len(self.splits.class_names))
        counts = (shares * patch**2).round().to(torch.int16).flatten(1, 2)
        if self.config.void == "dropped":
            void = incontext.patch_labels(ids, patch).eq(VOID).sum(-1).view(len(ids), -1)
            counts[..., 0] -= void.to(torch.int16)
        return counts, incontext.patch_scores(shares), counts.amax(-1) > 0

    def _draws(self, batch: LabeledBatch, patches: int, seed: int) -> Tensor:
        """Uniform numbers [B, h*w], those of an image drawn from its position."""
        return torch.stack(
            [uniform((patches,), self.session.seed, SAMPLED, seed, position) for position in batch.positions]
        )


def merged(first: Memory, second: Memory) -> Memory:
    """Both, standardized alike."""
    features = torch.cat([first.features, second.features])
    return Memory(features, torch.cat([first.labels, second.labels]), first.patch, first.scaling)


def joined(parts: list[Tensor]) -> Tensor:
    """`torch.cat`, which lets go of each part once it is copied: no second copy of all."""
    rows = sum(map(len, parts))
    whole = parts[0].new_empty(rows, *parts[0].shape[1:])
    end = rows
    while parts:
        part = parts.pop()
        whole[end - len(part) : end] = part
        end -= len(part)
    return whole


def predict_squares(
    memory: Memory, patches: Tensor, config: IncontextProtocol, neighbors: int, distance: str
) -> Tensor:
    """Class ids uint8 [B, S, S] of patch tokens [B, D, h, w].

    Raises:
        ValueError: the memory has fewer rows than `neighbors`.
    """
    grid, patch = (patches.shape[2], patches.shape[3]), memory.patch
    queries = rearrange(patches, "b d h w -> (b h w) d")
    if memory.scaling is not None:
        queries = memory.scaling.apply(queries.cpu()).to(patches.device)
    queries = queries.to(memory.features.device)
    if len(memory.features) < neighbors:
        raise ValueError(
            f"{neighbors} neighbors of a memory of {len(memory.features)} patches: lower --neighbors, or give it more."
        )
    if config.readout == "vote":
        vote = partial(incontext.vote_per_pixel, neighbors=neighbors, cosine=distance == "cosine")
        votes = torch.cat([vote(part, memory.features, memory.labels) for part in queries.split(VOTES_AT_ONCE)])
        return incontext.pixel_map(votes, grid, patch).to(torch.uint8).cpu()
    soft = incontext.soft_labels(
        queries, memory.features, memory.labels, neighbors=neighbors, temperature=config.temperature
    )
    maps = rearrange(soft / patch**2, "(b n) c -> b n c", b=len(patches))
    return incontext.class_map(maps, grid, (grid[0] * patch, grid[1] * patch)).cpu()
