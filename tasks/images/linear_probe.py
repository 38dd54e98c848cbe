"""Linear heads on image features, fitted by SGD with a grid of learning rates or by logistic regression for each C."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from data.images import read_rgb
from dino_dense import Backbone, distributed
from dino_dense.checkpoint import write_tensors
from dino_dense.loaders import WorkerItems, read_items
from dino_dense.probes.classes import (
    Batch,
    Evaluation,
    HeadGrid,
    epoch_order,
    hold_out,
    logistic_regressions,
    random_tenth,
    shuffled_batches,
    train_heads,
)
from dino_dense.training.seeds import derive_seed
from tasks.harness.session import Session
from tasks.images.features import check_finite, extract_pieces, finite_rows, square_features
from tasks.images.labeled import LabeledSet
from tasks.images.linear_config import LinearConfig

HELD_OUT = 0.1  # share of each class's training images for the selection with `select: heldout`
REFERENCE_BATCH = 256  # batch size that learning rates refer to


Fit = tuple[pd.DataFrame, Callable[[int], Tensor], "Curve | None"]
"""A table of candidates, the scores [N, K] of the test images by a candidate's row, and a learning curve."""


class Curve(NamedTuple):
    """The learning curve of the chosen head."""

    rate: float
    """Learning rate after scaling."""
    rows: pd.DataFrame
    """Columns train_loss and top-1 over the epochs."""


@dataclass(frozen=True)
class LinearProbe:
    """Fits heads on the same features in two ways."""

    backbone: Backbone
    config: LinearConfig
    session: Session
    images: LabeledSet
    pieces: tuple[str, ...]

    @cached_property
    def test(self) -> Evaluation:
        """Features of the test images."""
        return Evaluation(self._cached(self.images.test.paths, "test features"), torch.tensor(self.images.test.labels))

    def by_lbfgs(self) -> Fit:
        """Logistic regression for each C; where C is chosen on training images, the chosen one again on all of them."""
        kept, selection = self._selection()
        config, test = self.config, self.test
        train = Evaluation(
            self._cached(self.images.train.paths, "train features"), torch.tensor(self.images.train.labels)
        )
        fit = partial(
            logistic_regressions,
            standardize=config.standardize,
            tolerance=config.tolerance,
            double=config.double,
            world=self.session.world,
        )
        part = Evaluation(train.features[kept], train.labels[kept])
        scores, table = fit(part, config.strengths, [test.features, selection.features])
        table["selection"] = [_top1(pair[1], selection.labels) for pair in scores]
        table["top-1"] = [_top1(pair[0], test.labels) for pair in scores]

        def refitted(row: int) -> Tensor:
            ((result,),), again = fit(train, [config.strengths[row]], [test.features])
            table.loc[row, "converged"] = bool(again.loc[0, "converged"])
            return result

        return table, refitted if config.selection != "val" else lambda row: scores[row][0], None

    def by_sgd(self) -> Fit:
        """A head for each learning rate, and the learning curve of the best."""
        config = self.config
        kept, selection = self._selection()
        rates = [lr * config.batch_size / REFERENCE_BATCH for lr in config.lrs]
        shape = (self.test.features.shape[1], len(self.images.train.class_names))
        heads = HeadGrid(rates, *shape, config.momentum, self.session.seed).to(self.backbone.device)
        batches = self._cached_batches(kept) if config.is_cached else self._augmented_batches(kept)
        state = self.session.folder("head") / "last.safetensors"
        self.session.wait()  # all processes must find the folder before they check for a state
        curves = train_heads(heads, batches, config.epochs, selection, state, world=self.session.world)
        table = pd.DataFrame({"lr": config.lrs, "lr_scaled": rates})
        table["selection"] = heads.accuracies(selection).tolist()
        table["top-1"] = heads.accuracies(self.test).tolist()
        best = int(table["selection"].to_numpy().argmax())
        self.session.once(self._save_head, heads, best)
        chosen = curves[(curves["lr"] - rates[best]).abs() <= 1e-6 * rates[best]]
        curve = Curve(rates[best], chosen.set_index("epoch")[["train_loss", "top-1"]])
        return table, lambda row: heads.predict(self.test.features, row), curve

    def _selection(self) -> tuple[Tensor, Evaluation]:
        """Indices of the images to train on, and the images for the selection."""
        labels = torch.tensor(self.images.train.labels)
        where = self.config.selection
        if where == "val":
            return torch.arange(len(labels)), self.test
        by_class = where == "heldout"
        kept, held = hold_out(labels, HELD_OUT, self.session.seed) if by_class else random_tenth(len(labels))
        if not len(held):
            raise ValueError(
                f"{self.images.root}: {'no class has' if by_class else 'there are not'} {round(1 / HELD_OUT)} training "
                "images, so none can be held out; use --select val."
            )
        if self.config.is_cached:
            features = self._cached(self.images.train.paths, "train features")[held]
        else:
            features = self._cached([self.images.train.paths[index] for index in held.tolist()], "held-out features")
        return kept, Evaluation(features, labels[held])

    def _cached(self, paths: Sequence[Path], label: str) -> Tensor:
        """Joined pieces [N, D] of center squares."""
        features = square_features(
            self.backbone,
            paths,
            self.config,
            self.session,
            pieces=self.pieces,
            batch_size=self.config.extraction_batch,
            label=label,
        )
        return torch.cat([features[piece] for piece in self.pieces], dim=1)

    def _cached_batches(self, kept: Tensor) -> Callable[[int], Iterator[Batch]]:
        features = self._cached(self.images.train.paths, "train features")[kept]
        labels = torch.tensor(self.images.train.labels)[kept]
        return shuffled_batches(features, labels, self.config.batch_size, self.backbone.device, self.session.seed)

    def _augmented_batches(self, kept: Tensor) -> Callable[[int], Iterator[Batch]]:
        """Batches of new crops. The processes share the extraction, then train the same heads redundantly."""
        labels, paths = torch.tensor(self.images.train.labels), self.images.train.paths
        world, size = self.session.world, self.config.batch_size

        def batches(epoch: int) -> Iterator[Batch]:
            chosen = [part.tolist() for part in kept[epoch_order(len(kept), self.session.seed, epoch)].split(size)]
            own_batches = [distributed.even_share(part, world) for part in chosen]
            crops = _Crops(paths, self.config.crop, self.session.seed, epoch)
            worker_items = WorkerItems(self.config.workers, lambda index: str(paths[index]))
            loader = read_items(crops, worker_items, batch_sampler=own_batches, pin_memory=not self.backbone.on_cpu)
            finite = []
            for part, pixels in zip(chosen, loader, strict=True):
                own_features = self._extract(pixels)
                finite.append(finite_rows({"all": own_features}))
                features = distributed.all_gather(own_features)[: len(part)]
                yield features, labels[part].to(features.device, non_blocking=True)
            own = [image for batch in own_batches for image in batch]
            check_finite(self.backbone, torch.cat(finite), lambda index: paths[own[index]])

        return batches

    def _extract(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, D]."""
        parts = []
        for chunk in images.split(self.config.extraction_batch):
            features = extract_pieces(self.backbone, chunk, self.pieces)
            parts.append(torch.cat([features[piece] for piece in self.pieces], dim=1))
        return torch.cat(parts)

    def _save_head(self, heads: HeadGrid, best: int) -> None:
        """Write the chosen head for other programs: weight [K, D] and bias [K]; class names in the metadata."""
        tensors = {"weight": heads.weight[best].T, "bias": heads.bias[best, 0]}
        metadata = {"classes": self.images.train.class_names, "pieces": list(self.pieces)}
        write_tensors(self.session.folder("head") / "best.safetensors", tensors, metadata)


class _Crops(Dataset):
    """Random resized crops and flips, uint8 [3, S, S]: a function of seed, epoch and image."""

    def __init__(self, paths: Sequence[Path], crop: int, seed: int, epoch: int) -> None:
        self.paths, self.key = paths, (seed, epoch)
        # Bilinear, torchvision's default, as in eval_linear.py.
        self.transform = v2.Compose([v2.RandomResizedCrop(crop), v2.RandomHorizontalFlip(), v2.PILToTensor()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image = read_rgb(self.paths[index])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(*self.key, index))
            return self.transform(image)


def _top1(scores: Tensor, labels: Tensor) -> float:
    return 100 * (scores.argmax(1) == labels).double().mean().item()
