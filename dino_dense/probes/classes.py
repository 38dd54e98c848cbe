"""Linear heads on frozen features: a grid of learning rates trained together, or logistic regression.

Shapes: N images, B in a batch, D feature channels, G candidates (learning rates, or values of C), K classes.
"""

import math
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from dino_dense.checkpoint import read_tensors, write_tensors
from dino_dense.distributed import World
from dino_dense.progress import progress, tracked
from dino_dense.training.optimizer_state import load_optimizer_tensors, optimizer_tensors
from dino_dense.training.schedules import half_cosine

ALONE = World()

INIT_STD = 0.01  # eval_linear.py
SAVE_SECONDS = 60.0  # a long run loses at most this
EVALUATION_ROWS = 4096  # images of a chunk in scoring; does not change the result
SPARE = 4  # features may take 1 / SPARE of a GPU's free memory
MAX_ITERATIONS = 1000  # of L-BFGS (dinov2, log_regression.py)

Batch = tuple[Tensor, Tensor]
"""Features [B, D] and class ids [B], on one device."""


class Evaluation(NamedTuple):
    """Images to compare candidates on."""

    features: Tensor
    """[N, D]"""
    labels: Tensor
    """[N]"""


class HeadGrid(nn.Module):
    """G linear heads [D -> K], one for each learning rate, trained together on the same batches.

    SGD with momentum m and rate f(t)·r, for a constant r, updates a weight by v = m·v + r·g, w = w - f(t)·v. So G heads
    with rates f(t)·r_1 ... f(t)·r_G need one optimizer with rate f(t), if each head's loss (and so its gradient) is
    scaled by its r.
    """

    lrs: Tensor

    def __init__(self, lrs: Sequence[float], channels: int, classes: int, momentum: float, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        start = INIT_STD * torch.randn(channels, classes, generator=generator)
        self.register_buffer("lrs", torch.tensor(lrs), persistent=False)
        self.weight = nn.Parameter(start.repeat(len(lrs), 1, 1))  # [G, D, K]
        self.bias = nn.Parameter(torch.zeros(len(lrs), 1, classes))
        self.optimizer = torch.optim.SGD([self.weight, self.bias], lr=1.0, momentum=momentum)

    def logits(self, features: Tensor) -> Tensor:
        """[B, D] -> [G, B, K]."""
        return torch.baddbmm(self.bias, features.expand(len(self.lrs), -1, -1), self.weight)

    def step(self, features: Tensor, labels: Tensor, factor: float) -> Tensor:
        """Update every head with `factor` times its rate. Returns the mean losses [G] before the step."""
        logits = self.logits(features)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(self.lrs)), reduction="none")
        losses = losses.view(len(self.lrs), -1).mean(1)
        self.optimizer.param_groups[0]["lr"] = factor
        self.optimizer.zero_grad()
        (losses * self.lrs).sum().backward()
        self.optimizer.step()
        return losses.detach()

    @torch.no_grad()
    def predict(self, features: Tensor, head: int) -> Tensor:
        """Logits [N, K] of one head, on the CPU, of features [N, D]."""
        weight, bias = self.weight[head], self.bias[head]
        parts = [(part.to(weight.device) @ weight + bias).cpu() for part in features.split(EVALUATION_ROWS)]
        return torch.cat(parts)

    @torch.no_grad()
    def accuracies(self, images: Evaluation) -> Tensor:
        """Top-1 [G] in percent, computed in chunks."""
        device, right = self.weight.device, torch.zeros(len(self.lrs))
        chunks = zip(images.features.split(EVALUATION_ROWS), images.labels.split(EVALUATION_ROWS), strict=True)
        for features, labels in chunks:
            right += (self.logits(features.to(device)).argmax(-1).cpu() == labels).sum(1)
        return 100 * right / len(images.labels)

    def save(self, path: Path, epoch: int, log: Sequence[dict]) -> None:
        """Write the state for an exact resume."""
        tensors = {**self.state_dict(), **optimizer_tensors(self.optimizer, self)}
        write_tensors(path, tensors, {"epoch": epoch, "log": list(log)})

    def load(self, path: Path) -> tuple[int, list[dict]]:
        """Load a saved state. Returns its epoch and log."""
        tensors, metadata = read_tensors(path)
        self.load_state_dict({name: tensors.pop(name) for name in self.state_dict()})
        before = re.compile(r"momentum\.(\w+)")  # its name in states of version 0.2
        momenta = {before.sub(r"\1.momentum_buffer", name): value for name, value in tensors.items()}
        load_optimizer_tensors(self.optimizer, self, momenta)
        return metadata["epoch"], metadata["log"]


def cosine_factor(epoch: int, epochs: int) -> float:
    """Factor on the learning rate of an epoch, from 1 to 0 (eval_linear.py updates its cosine once per epoch)."""
    return half_cosine(math.pi * epoch / epochs)


def train_heads(
    heads: HeadGrid,
    batches: Callable[[int], Iterator[Batch]],
    epochs: int,
    evaluation: Evaluation,
    state: Path,
    *,
    world: World = ALONE,
) -> pd.DataFrame:
    """Train on `batches(epoch)` for each epoch, resuming from the file `state` if it exists.

    Args:
        state: file to resume from, written regularly.
        world: the main process writes the file and shows progress.

    Returns:
        A row for each epoch and learning rate: epoch, lr, train_loss (nats), top-1 (percent).
    """
    done, log = heads.load(state) if state.is_file() else (0, [])
    saved = time.monotonic()
    with progress(epochs, initial=done, unit="epoch", desc="linear heads", disable=not world.is_main) as bar:
        for epoch in range(done, epochs):
            losses = [heads.step(*batch, cosine_factor(epoch, epochs)) for batch in batches(epoch)]
            mean = torch.stack(losses).mean(0).tolist()
            reached = heads.accuracies(evaluation).tolist()
            rates = heads.lrs.tolist()
            rows = zip(rates, mean, reached, strict=True)
            log += [{"epoch": epoch + 1, "lr": lr, "train_loss": loss, "top-1": top} for lr, loss, top in rows]
            bar.set_postfix_str(f"best top-1 {max(reached):.1f}")
            bar.update()
            if world.is_main and time.monotonic() - saved > SAVE_SECONDS:
                heads.save(state, epoch + 1, log)
                saved = time.monotonic()
    return pd.DataFrame(log)


def shuffled_batches(
    features: Tensor, labels: Tensor, size: int, device: torch.device, seed: int
) -> Callable[[int], Iterator[Batch]]:
    """Batches of features in memory, in an order that depends on seed and epoch only."""
    features = resident(features, device)
    labels = labels.to(features.device)

    def batches(epoch: int) -> Iterator[Batch]:
        for chosen in epoch_order(len(labels), seed, epoch).to(features.device).split(size):
            yield features[chosen].to(device), labels[chosen].to(device)

    return batches


def resident(features: Tensor, device: torch.device) -> Tensor:
    """The features on a CUDA device with memory to spare, where batches need no copies; else where they are."""
    if device.type != "cuda" or features.nbytes > torch.cuda.mem_get_info(device)[0] // SPARE:
        return features
    return features.to(device)


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """The permutation of 0..n-1 of an epoch."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(n))


def logistic_regressions(
    train: Evaluation,
    strengths: Sequence[float],
    targets: Sequence[Tensor],
    *,
    standardize: bool = True,
    tolerance: float = 1e-4,
    double: bool = False,
    world: World = ALONE,
) -> tuple[list[list[Tensor]], pd.DataFrame]:
    """Multinomial logistic regression by L-BFGS (scikit-learn), with an intercept that is not penalized.

    Args:
        train: labels 0..K-1; a class that does not occur scores minus infinity.
        strengths: values of C, the inverse of the L2 penalty.
        targets: sets of features [M, D] to score.
        standardize: give each channel mean 0 and deviation 1 first.
        tolerance: stop where no gradient is larger.
        double: compute in float64.

    Returns:
        For each C a list of class scores [M, K], one for each target; and a table: C, iterations, converged.
    """
    scores, rows = [], []
    dtype = np.float64 if double else np.float32
    features, labels = train.features.numpy().astype(dtype, copy=False), train.labels.numpy()
    for strength in tracked(strengths, unit="fit", desc="logistic regression", disable=not world.is_main):
        regression = LogisticRegression(C=strength, max_iter=MAX_ITERATIONS, tol=tolerance)
        model = make_pipeline(*([StandardScaler()] if standardize else []), regression)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", ConvergenceWarning)
            model.fit(features, labels)
        converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
        rows.append({"C": strength, "iterations": int(model[-1].n_iter_.max()), "converged": converged})
        decisions = [model.decision_function(target.numpy().astype(dtype, copy=False)) for target in targets]
        scores.append([_class_scores(decision, regression.classes_) for decision in decisions])
    return scores, pd.DataFrame(rows)


def _class_scores(decision: np.ndarray, classes: np.ndarray) -> Tensor:
    """[M, K], of the classes that were fitted; two have one column in scikit-learn, the second's."""
    decided = torch.from_numpy(np.asarray(decision))
    decided = torch.stack([-decided, decided], dim=1) if decided.ndim == 1 else decided
    scores = decided.new_full((len(decided), int(classes.max()) + 1), -math.inf)
    scores[:, torch.from_numpy(classes)] = decided
    return scores


def random_tenth(n: int) -> tuple[Tensor, Tensor]:
    """Indices to train on, and a tenth of all (rounded down) to choose on (dinov2, eval/log_regression.py)."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    return order[n // 10 :], order[: n // 10]


def hold_out(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to train on, and a random `share` of each class (rounded down) for model selection."""
    kept, held = [], []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero()[:, 0]
        members = members[torch.from_numpy(np.random.default_rng([seed, label]).permutation(len(members)))]
        count = int(share * len(members))
        held.append(members[:count])
        kept.append(members[count:])
    return torch.cat(kept).sort().values, torch.cat(held).sort().values
