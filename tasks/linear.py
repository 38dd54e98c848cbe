"""Linear classification of frozen features: SGD on a grid of learning rates at once, or logistic regression."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from data.images import read_rgb
from dino_dense import Backbone, Picture, distributed
from dino_dense.checkpoint import write_tensors
from dino_dense.config import command_line
from dino_dense.pretrain.crops import derive_seed
from dino_dense.probes.classes import (
    Batch,
    Evaluation,
    HeadGrid,
    epoch_order,
    hold_out,
    logistic_regressions,
    shuffled_batches,
    train_heads,
)
from tasks.harness import figures
from tasks.harness.context import Context
from tasks.harness.runner import main
from tasks.harness.task import Outcome, Task, mean_scores
from tasks.images.features import Preprocessing, cls_pieces, extract_pieces, image_features
from tasks.images.labelled import LabelledSet, open_labelled
from tasks.scores.classification import METRICS, hits

WIDE = 768  # channels from which the paper takes the last block alone and its mean patch (ViT-B)
HELD_OUT = 0.1  # share of each class's training images that `select: heldout` chooses on
REFERENCE_BATCH = 256  # that a learning rate is given for


@dataclass(frozen=True)
class LinearConfig:
    """Which images, which features, and how the heads are trained"""

    data: str | None = None
    """Folder with train/CLASS/* and val/CLASS/* (or test/); without it, the embedded set."""
    solver: Literal["sgd", "lbfgs"] = "sgd"
    """sgd (eval_linear.py), or lbfgs: logistic regression by scikit-learn, on cached features, each channel of which is
    standardised (ours: C then means the same for every backbone)."""
    features: Literal["augmented", "cached"] = "augmented"
    """augmented: random resized crop and flip, a forward pass an image and epoch (eval_linear.py); cached: the middle
    square, a forward pass an image (ours, for laptops)."""
    blocks: int | None = None
    """Class tokens of the last n blocks. None: 4 below 768 channels, else 1 (eval_linear.py: ViT-S 4, ViT-B 1)."""
    mean_patch: bool | None = None
    """Also the last block's mean patch token. None: from 768 channels on (eval_linear.py: ViT-B)."""
    epochs: int = 100
    """Passes over the training images (eval_linear.py)."""
    batch_size: int = 1024
    """Images a step, over all processes (eval_linear.py)."""
    lrs: tuple[float, ...] = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
    """Learning rates for a batch of 256, all trained at once (grid of dinov2's linear.py; the paper sweeps too)."""
    momentum: float = 0.9
    """Of SGD (eval_linear.py); no weight decay."""
    strengths: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
    """Values of C for lbfgs, the inverse of the L2 penalty (range of dinov2's log_regression.py, which tries 45)."""
    select: Literal["val", "heldout"] = "val"
    """Where the best candidate is chosen: on the test images, as published, or on a tenth of the training ones."""
    resize: int = 256
    """Short side before the centre crop, bicubic, pixels (eval_linear.py)."""
    crop: int = 224
    """Side of the crops, pixels (eval_linear.py); a multiple of the patch size."""
    fast_decode: bool = False
    """Decode large JPEGs at a half, a quarter or an eighth of their size where that suffices: faster, and pixels differ
    a little from the published protocol's."""
    extraction_batch: int = 64
    """Images extracted at once; does not change the result."""
    workers: int = 0
    """Processes that read images beside the main one."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "extraction_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: expected 1 or more")
        for name in ("lrs", "strengths"):
            if not getattr(self, name) or min(getattr(self, name)) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: expected one or more positive numbers")
        if self.blocks is not None and self.blocks < 1:
            raise ValueError(f"blocks is {self.blocks}: expected 1 or more")
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}; expected at most that.")

    @property
    def is_cached(self) -> bool:
        """Whether training features are extracted once."""
        return self.features == "cached" or self.solver == "lbfgs"


def pieces_of(config: LinearConfig, backbone: Backbone) -> tuple[str, ...]:
    """Which pieces of features are joined, in this order.

    Raises:
        ValueError: the backbone has fewer blocks.
    """
    wide, conv = backbone.embed_dim >= WIDE, backbone.num_heads == 0
    blocks = config.blocks or (1 if wide or conv else min(4, backbone.depth))
    if blocks > backbone.depth:
        raise ValueError(f"blocks is {blocks}, but {backbone.name} has {backbone.depth}; lower it.")
    # The pooled feature of a conv net is its mean patch already.
    mean = config.mean_patch if config.mean_patch is not None else wide and not conv
    return (*cls_pieces(blocks), *(("mean",) if mean else ()))


def run(backbone: Backbone | None, config: LinearConfig, context: Context) -> Outcome:
    """Train every candidate, choose the best, and report it."""
    assert backbone is not None
    images = open_labelled(config.data)
    pieces = pieces_of(config, backbone)
    facts = images.facts(_benchmark(config, images))
    context.bind(facts)
    probe = _Probe(backbone, config, context, images, pieces)
    fit = probe.by_lbfgs if config.solver == "lbfgs" else probe.by_sgd
    candidates, scores_of, pictures = fit()
    best = int(candidates["selection"].to_numpy().argmax())  # the first of equals
    scores = scores_of(best)
    samples = hits(scores.topk(min(5, scores.shape[1])).indices, probe.test.labels, images.test_names)
    chosen = candidates.iloc[best]
    kind = "lr" if config.solver == "sgd" else "C"
    where = "the test images, as published" if config.select == "val" else "a tenth of the training images"
    note = f"{' + '.join(pieces)}; {kind} {chosen[kind]:g}, chosen on {where}, of {len(candidates)} in candidates.csv."
    if best in (0, len(candidates) - 1) and len(candidates) > 1:
        note += " That is the end of the grid: a wider one may find better."
    if kind == "lr":
        note += " Accuracy after the last epoch; eval_linear.py reports its best epoch's."
    if kind == "C" and not chosen["converged"]:
        note += " L-BFGS stopped before it converged."
    tables = {"candidates": candidates}
    return Outcome(mean_scores(samples), facts, tables, note, samples, pictures)


Fit = tuple[pd.DataFrame, Callable[[int], Tensor], tuple[Picture, ...]]
"""A table of candidates, the scores [N, K] of the test images by a candidate's row, and pictures."""


@dataclass(frozen=True)
class _Probe:
    """The two ways to fit heads, over the same features."""

    backbone: Backbone
    config: LinearConfig
    context: Context
    images: LabelledSet
    pieces: tuple[str, ...]

    @cached_property
    def test(self) -> Evaluation:
        """Features of the test images."""
        return Evaluation(self._cached(self.images.test.paths, "test features"), torch.tensor(self.images.test.labels))

    def by_lbfgs(self) -> Fit:
        """Logistic regression for each C."""
        kept, selection = self._selection()
        labels = torch.tensor(self.images.train.labels)
        train = Evaluation(self._cached(self.images.train.paths, "train features")[kept], labels[kept])
        test = self.test
        scores, table = logistic_regressions(
            train, self.config.strengths, [test.features, selection.features], show=self.context.world.is_main
        )
        table["selection"] = [_top1(pair[1], selection.labels) for pair in scores]
        table["top-1"] = [_top1(pair[0], test.labels) for pair in scores]
        return table, lambda row: scores[row][0], ()

    def by_sgd(self) -> Fit:
        """A head a learning rate, and the learning curve of the best."""
        config = self.config
        kept, selection = self._selection()
        rates = [lr * config.batch_size / REFERENCE_BATCH for lr in config.lrs]
        shape = (self.test.features.shape[1], len(self.images.train.class_names))
        heads = HeadGrid(rates, *shape, config.momentum, self.context.seed).to(self.backbone.device)
        batches = self._cached_batches(kept) if config.is_cached else self._augmented_batches(kept)
        is_main = self.context.world.is_main
        state = self.context.folder("head") / "last.safetensors"
        distributed.barrier()  # all go on from the same state: the folder is made before any looks
        curves = train_heads(heads, batches, config.epochs, selection, state, is_main=is_main)
        table = pd.DataFrame({"lr": config.lrs, "lr_scaled": rates})
        table["selection"] = heads.accuracies(selection).tolist()
        table["top-1"] = heads.accuracies(self.test).tolist()
        pictures: tuple[Picture, ...] = ()
        if is_main:
            best = int(table["selection"].to_numpy().argmax())
            self._save_head(heads, best)
            pictures = (self._draw(curves, rates[best]),)
        return table, lambda row: heads.predict(self.test.features, row), pictures

    def _selection(self) -> tuple[Tensor, Evaluation]:
        """Indices of the images to train on, and the images to choose on."""
        labels = torch.tensor(self.images.train.labels)
        if self.config.select == "val":
            return torch.arange(len(labels)), self.test
        kept, held = hold_out(labels, HELD_OUT, self.context.seed)
        if not len(held):
            raise ValueError(
                f"{self.images.root}: no class has {round(1 / HELD_OUT)} training images, so none can be held out; "
                "use --select val."
            )
        if self.config.is_cached:
            features = self._cached(self.images.train.paths, "train features")[held]
        else:
            features = self._cached([self.images.train.paths[index] for index in held.tolist()], "held-out features")
        return kept, Evaluation(features, labels[held])

    def _cached(self, paths: Sequence[Path], label: str) -> Tensor:
        """Joined pieces [N, D] of the middle squares."""
        config, context = self.config, self.context
        found = image_features(
            self.backbone,
            paths,
            Preprocessing(config.resize, config.crop, fast_decode=config.fast_decode),
            world=context.world,
            pieces=self.pieces,
            also=context.pieces,
            batch_size=config.extraction_batch,
            workers=config.workers,
            label=label,
        )
        return torch.cat([found[piece] for piece in self.pieces], dim=1)

    def _cached_batches(self, kept: Tensor) -> Callable[[int], Iterator[Batch]]:
        features = self._cached(self.images.train.paths, "train features")[kept]
        labels = torch.tensor(self.images.train.labels)[kept]
        return shuffled_batches(features, labels, self.config.batch_size, self.backbone.device, self.context.seed)

    def _augmented_batches(self, kept: Tensor) -> Callable[[int], Iterator[Batch]]:
        """Batches of fresh crops. The processes share out the extraction, then train the same heads alike."""
        labels, paths = torch.tensor(self.images.train.labels), self.images.train.paths
        world, size = self.context.world, self.config.batch_size

        def batches(epoch: int) -> Iterator[Batch]:
            chosen = [part.tolist() for part in kept[epoch_order(len(kept), self.context.seed, epoch)].split(size)]
            mine = [distributed.even_share(part, world) for part in chosen]
            crops = _Crops(paths, self.config.crop, self.context.seed, epoch)
            loader = DataLoader(crops, batch_sampler=mine, num_workers=self.config.workers)
            for part, pixels in zip(chosen, loader, strict=True):
                features = distributed.all_gather(self._extract(pixels))[: len(part)]
                yield features, labels[part].to(features.device)

        return batches

    def _extract(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D]."""
        parts = []
        for chunk in images.split(self.config.extraction_batch):
            found = extract_pieces(self.backbone, chunk.to(self.backbone.device), self.pieces)
            parts.append(torch.cat([found[piece] for piece in self.pieces], dim=1))
        return torch.cat(parts)

    def _save_head(self, heads: HeadGrid, best: int) -> None:
        """The chosen head, for other programs: weight [K, D] and bias [K]; class names in the metadata."""
        tensors = {"weight": heads.weight[best].T, "bias": heads.bias[best, 0]}
        facts = {"classes": self.images.train.class_names, "pieces": list(self.pieces)}
        write_tensors(self.context.folder("head") / "best.safetensors", tensors, facts)

    def _draw(self, curves: pd.DataFrame, best: float) -> Picture:
        chosen = curves[(curves["lr"] - best).abs() <= 1e-6 * best]
        path = self.context.folder() / "curve.png"
        figures.curves(path, chosen.set_index("epoch")[["train_loss", "top-1"]], "epoch")
        return Picture(path.name, f"Linear head, learning rate {best:g} after scaling: training loss, accuracy")


class _Crops(Dataset):
    """Random resized crops and flips, a function of seed, epoch and image."""

    def __init__(self, paths: Sequence[Path], crop: int, seed: int, epoch: int) -> None:
        self.paths, self.key = paths, (seed, epoch)
        # torchvision's default is bilinear, and eval_linear.py says nothing else here.
        steps = [v2.RandomResizedCrop(crop), v2.RandomHorizontalFlip(), v2.PILToTensor()]
        self.transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = read_rgb(self.paths[index])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(*self.key, index))
            return self.transform(image)


def _top1(scores: Tensor, labels: Tensor) -> float:
    return 100 * (scores.argmax(1) == labels).double().mean().item()


def _benchmark(config: LinearConfig, images: LabelledSet) -> str | None:
    """The published protocol leaves the learning rate to a sweep; the rest must be unchanged."""
    changed = {
        name: value
        for name, value in vars(LinearConfig()).items()
        if name not in {"data", "lrs", "strengths", *FREE} and getattr(config, name) != value
    }
    return f"{images.published_name} val, linear" if images.published_name and not changed else None


FREE = frozenset({"extraction_batch", "workers"})

TASK = Task(
    name="linear",
    summary="Linear classification of frozen features (top-1).",
    source="DINO, arXiv 2104.14294, sec. 4.1; eval_linear.py; grid and logistic regression as in dinov2.",
    config=LinearConfig,
    metrics=METRICS,
    run=run,
    smoke=LinearConfig(features="cached", resize=64, crop=64, epochs=20, batch_size=256),
    free=FREE,
    pieces=lambda config, backbone: frozenset(pieces_of(config, backbone)),
)

if __name__ == "__main__":
    command_line.run(lambda: main("linear"))
