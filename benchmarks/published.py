"""The published code itself, where it runs on a CPU, beside ours; the results are compared first.

Set DINO_DENSE_SOURCES to a folder of clones, each with the name of its repository: `dino` (facebookresearch),
`davis2017-evaluation` (davisvideochallenge), `vos-benchmark` (hkchengrex), `TokenCut` (YangtaoWANG95). Their functions
are imported from there and are not changed. This module replaces what they need and a CPU or this environment lacks;
the row's note says so:

- `Tensor.cuda` returns the tensor (`label_propagation` and `restrict_neighborhood` of DINO call it),
- DINO's network returns given features, and its options are those of its script,
- `torch.distributed` of `main_dino.py` is one process,
- `skimage.morphology.disk` is `disk` below if scikit-image is not installed (both scorers import it).

Data of the scorers: a DAVIS-2016 tree (DINO_DENSE_DAVIS) or the embedded videos, written as ids; predictions as in
`benchmarks.scoring`. All other inputs are random.
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench import Row, in_turn, publish
from benchmarks.propagation import CONTEXT, DIM, HEIGHT, RADIUS, TOP_K, WIDTH
from benchmarks.scoring import make_predictions, tree, write_id_tree
from benchmarks.tokencut import EPS, IMAGES, TAU, keys, smooth_features
from data.davis import load_davis
from dino_dense.objects.cuts import tokencut
from dino_dense.pretrain.objectives.dino import DINOLoss
from dino_dense.propagation.protocol import PropagationProtocol
from dino_dense.propagation.stream import LabelPropagator
from tasks.knn import knn_votes
from tasks.scores.classification import TOPS, hits
from tasks.scores.jf import score_folder

VARIABLE = "DINO_DENSE_SOURCES"
REPOSITORIES = ("dino", "davis2017-evaluation", "vos-benchmark", "TokenCut")
SAME_LABELS = 1e-5  # largest difference of propagated soft labels
SAME_SCORES = 1e-9  # of J and F in [0, 1], of top-1 and top-5 in percent
SAME_LOSS = 1e-4  # nats, of a loss of about 11
SAME_GRADIENT = 1e-4  # largest difference, as a share of the largest value
SCORING_TARGET, TOKENCUT_TARGET = 5, 10  # ratios beside the official scorer and TokenCut's script

Values = dict[str, float]


# --- Importing the published code ---------------------------------------------------------------------------


def lacking() -> dict[str, str]:
    """Repository -> the reason why it cannot be used; empty if all are there."""
    folder = os.environ.get(VARIABLE)
    if folder is None:
        return dict.fromkeys(REPOSITORIES, f"{VARIABLE} names no folder of clones")
    absent = [name for name in REPOSITORIES if not (Path(folder) / name).is_dir()]
    return {name: f"{VARIABLE} is {folder}, which has no folder {name}: clone it there" for name in absent}


def published(repository: str, name: str) -> Any:
    """A module of a repository, imported from the folder of clones."""
    folder = str(Path(os.environ[VARIABLE]) / repository)
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(folder)


def commit(repository: str) -> str:
    """The repository's name and commit."""
    command = ["git", "-C", str(Path(os.environ[VARIABLE]) / repository), "rev-parse", "--short=7", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{repository} {result.stdout.strip() or '(no commit)'}"


def disk(radius: float) -> np.ndarray:
    """uint8 [2r + 1, 2r + 1]: 1 at a distance of at most r from the center, as scikit-image's."""
    steps = np.arange(-radius, radius + 1)
    return (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.uint8)


def give_disk() -> str:
    """Make `skimage.morphology.disk` importable. Returns a note."""
    stand_in = isinstance(sys.modules.get("skimage"), SimpleNamespace)
    if not stand_in and importlib.util.find_spec("skimage") is not None:
        return "disk of scikit-image"
    morphology = SimpleNamespace(disk=disk)
    sys.modules["skimage"] = SimpleNamespace(morphology=morphology, __path__=[])  # type: ignore[assignment]
    sys.modules["skimage.morphology"] = morphology  # type: ignore[assignment]
    return "disk of this project, since scikit-image is not installed"


# --- Timing -------------------------------------------------------------------------------------------------


def row(
    work: str,
    repository: str,
    calls: tuple[Callable[[], Any], Callable[[], Any]],
    check: str,
    *,
    note: str = "",
    target: float | None = None,
    repeats: int = 3,
) -> Row:
    """Time the published call and ours in turn. The comparison has warmed both up."""
    cpu: tuple[list[float], list[float]] = [], []
    counted = [_counting(call, kept) for call, kept in zip(calls, cpu, strict=True)]
    plain_s, ours_s = in_turn(counted[0], counted[1], repeats, warm_up=False)
    plain_cpu, ours_cpu = (statistics.median(kept) for kept in cpu)
    notes = [commit(repository), f"CPU seconds {plain_cpu:.3g} and {ours_cpu:.3g}, {plain_cpu / ours_cpu:.2f}x", note]
    note = "; ".join(filter(None, notes))
    print(f"{work}: {plain_s:.3g} s and {ours_s:.3g} s; {note}", flush=True)
    return Row("published", work, plain_s, ours_s, "s", target=target, check=check, note=note)


def _counting(call: Callable[[], Any], kept: list[float]) -> Callable[[], None]:
    """The call, which also keeps its CPU seconds, with its threads and finished processes."""

    def counted() -> None:
        before = sum(os.times()[:4])
        call()
        kept.append(sum(os.times()[:4]) - before)

    return counted


def require(difference: float, largest: float, work: str) -> str:
    """The text of a difference of two results.

    Raises:
        AssertionError: it is larger than `largest`, or NaN.
    """
    if not difference <= largest:
        raise AssertionError(f"{work}: the published result and ours differ by {difference:.3g}, allowed {largest:g}")
    return f"within {difference:.0e}"


# --- Label propagation (dino/eval_video_segmentation.py) ----------------------------------------------------


class PublishedVideo:
    """`label_propagation` of DINO through a video: frame 0 and the last 7 frames are the context, as in its loop."""

    def __init__(self, patch_size: int, first: Tensor, labels: Tensor) -> None:
        """first [D, h, w], labels [C, h, w] of frame 0."""
        self.code = published("dino", "eval_video_segmentation")
        self.code.args = self.args = argparse.Namespace(size_mask_neighborhood=RADIUS, topk=TOP_K)
        self.patch_embed, self.tokens = SimpleNamespace(patch_size=patch_size), first
        self.first = first.flatten(1), labels[None]
        self.recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=CONTEXT - 1)
        with on_cpu():
            start = time.perf_counter()
            self.window = self.code.restrict_neighborhood(*first.shape[1:])[None]
            self.window_seconds = time.perf_counter() - start

    def get_intermediate_layers(self, frames: Tensor, n: int) -> list[Tensor]:
        """The tokens of the frame, in the place of DINO's network: [1, 1 + h*w, D] with an unused class token."""
        return [F.pad(self.tokens.flatten(1).T, (0, 0, 1, 0))[None]]

    def step(self, features: Tensor) -> Tensor:
        """The labels [C, h, w] of the next frame with features [D, h, w]."""
        self.tokens = features
        used = [self.first, *self.recent]
        sources, labels = [pair[0] for pair in used], [pair[1] for pair in used]
        pixels = torch.zeros(3, HEIGHT, WIDTH)
        with on_cpu():
            result, own, _ = self.code.label_propagation(self.args, self, pixels, sources, labels, self.window)
        self.recent.append((own, result))
        return result[0]


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """A context in which `Tensor.cuda` returns the tensor."""
    with mock.patch.object(Tensor, "cuda", lambda tensor, *_, **__: tensor):
        yield


def video(patch_size: int) -> Iterator[Tensor]:
    """Features [D, h, w] of similar frames, without end."""
    generator = torch.Generator().manual_seed(0)
    shape = DIM, HEIGHT // patch_size, WIDTH // patch_size
    scene = torch.randn(shape, generator=generator)
    while True:
        yield scene + 0.5 * torch.randn(shape, generator=generator)


@torch.no_grad()
def propagation(patch_size: int, repeats: int) -> Row:
    frames = video(patch_size)
    first = next(frames)
    labels = F.one_hot(torch.randint(0, 2, first.shape[1:]), 2).permute(2, 0, 1).float()
    theirs, ours = PublishedVideo(patch_size, first, labels), LabelPropagator(PropagationProtocol())
    ours.step(first, labels)
    pairs = [(theirs.step(frame), ours.step(frame)) for frame, _ in zip(frames, range(CONTEXT), strict=False)]
    difference = max((one - other).abs().max().item() for one, other in pairs)
    h, w = first.shape[1:]
    work = f"label propagation of one frame, {h}x{w} patches, {CONTEXT} context frames"
    check = f"labels of {CONTEXT} frames {require(difference, SAME_LABELS, work)}"
    note = (
        "Tensor.cuda replaced, features given; its window, built once a video in Python loops "
        f"({theirs.window_seconds:.1f} s), is not counted"
    )
    calls = lambda: theirs.step(next(frames)), lambda: ours.step(next(frames))
    return row(work, "dino", calls, check, note=note, repeats=repeats)


# --- k-NN (dino/eval_knn.py) and loss (dino/main_dino.py) ---------------------------------------------------


NEIGHBORS, VOTE_TEMPERATURE, CLASSES = (10, 20, 100, 200), 0.07, 1000  # eval_knn.py's defaults
TRAIN, TEST = 20_000, 2_000  # images


def nearest_classes() -> Row:
    """Votes of all four k, as the script prints them."""
    code = published("dino", "eval_knn")
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(CLASSES, DIM, generator=generator)

    def drawn(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, CLASSES, (count,), generator=generator)
        noise = torch.randn(count, DIM, generator=generator)
        return F.normalize(centers[labels] + 3 * noise, dim=1), labels

    (train, train_labels), (test, test_labels) = drawn(TRAIN), drawn(TEST)
    names = [str(index) for index in range(TEST)]

    def theirs() -> list[Sequence[float]]:
        return [
            code.knn_classifier(train, train_labels, test, test_labels, k, VOTE_TEMPERATURE, CLASSES) for k in NEIGHBORS
        ]

    def ours() -> list[Sequence[float]]:
        ranked = knn_votes(train, train_labels, test, k=list(NEIGHBORS), temperature=VOTE_TEMPERATURE, classes=CLASSES)
        tables = [hits(order, test_labels, names, places=k) for k, order in ranked]
        return [[table[f"top-{top}"].mean() for top in TOPS] for table in tables]

    expected = np.array(theirs())
    work = f"k-NN votes, {TEST:,} x {TRAIN:,} x {DIM}, k {', '.join(map(str, NEIGHBORS))}"
    check = f"top-1 and top-5 {require(float(np.abs(expected - ours()).max()), SAME_SCORES, work)}"
    return row(work, "dino", (theirs, ours), check, note=f"top-1 {expected[1, 0]:.1f} with k = {NEIGHBORS[1]}")


VIEWS, BATCH, PROTOTYPES, LOSS_TEMPERATURE = 10, 8, 65_536, 0.04  # main_dino.py's defaults; images of a process


def loss() -> Row:
    """Loss, gradient to the student's scores and the new center."""
    code = published("dino", "main_dino")
    code.dist = SimpleNamespace(all_reduce=lambda tensor: None, get_world_size=lambda: 1)
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(VIEWS * BATCH, PROTOTYPES, generator=generator).requires_grad_()
    teacher = torch.randn(2 * BATCH, PROTOTYPES, generator=generator)
    their_loss = code.DINOLoss(PROTOTYPES, VIEWS, LOSS_TEMPERATURE, LOSS_TEMPERATURE, 0, 1)
    our_loss = DINOLoss(PROTOTYPES, VIEWS, LOSS_TEMPERATURE, LOSS_TEMPERATURE, 0)

    def theirs() -> tuple[Tensor, Tensor, Tensor]:
        value = their_loss(student, teacher, 0)
        return value.detach(), torch.autograd.grad(value, student)[0], their_loss.center

    def ours() -> tuple[Tensor, Tensor, Tensor]:
        output = our_loss(student, teacher, 0)
        gradient = torch.autograd.grad(output.loss, student)[0]
        our_loss.update_center(output.teacher_mean)
        return output.loss.detach(), gradient, our_loss.center

    work = f"DINO loss, {BATCH} images, {VIEWS} views, {PROTOTYPES:,} prototypes, forward and backward"
    expected, found = theirs(), ours()
    values = require(float((expected[0] - found[0]).abs()), SAME_LOSS, work)
    share = max(float((one - other).abs().max() / one.abs().max()) for one, other in zip(expected, found, strict=True))
    check = f"loss {values}; gradient and center {require(share, SAME_GRADIENT, work)} of the largest"
    return row(work, "dino", (theirs, ours), check, note="torch.distributed replaced by one process")


# --- TokenCut (TokenCut/object_discovery.py) ----------------------------------------------------------------


def cuts() -> Iterator[Row]:
    code = published("TokenCut", "object_discovery")
    random_keys = [each.cpu() for each in keys(16, IMAGES)]
    smooth = [smooth_features(random_keys[0].shape, seed).cpu() for seed in range(IMAGES)]
    kinds = {"keys of a random ViT-S/16": random_keys, "smooth features": smooth}

    def theirs(features: Tensor) -> np.ndarray:
        tokens = F.pad(features.flatten(1).T, (0, 0, 1, 0))[None]  # with the unused class token
        return code.ncut(tokens, features.shape[1:], (16, 16), (3, HEIGHT, WIDTH), TAU, EPS)[2] > 0

    for kind, images in kinds.items():
        work = f"cut of {IMAGES} images, {images[0][0].numel():,} patches, {kind}"
        pixels = sum(np.count_nonzero(theirs(each) != tokencut(each, TAU, EPS).mask) for each in images)
        check = f"masks {require(pixels, 0, work)} patches"
        calls = _each(theirs, images), _each(lambda each: tokencut(each, TAU, EPS), images)
        yield row(work, "TokenCut", calls, check, target=TOKENCUT_TARGET)


def _each(call: Callable[[Tensor], Any], items: Sequence[Tensor]) -> Callable[[], Any]:
    return lambda: [call(item) for item in items]


# --- J&F (davis2017-evaluation, vos-benchmark) --------------------------------------------------------------


def official(davis: Path, masks: Path) -> Values:
    """`J of SEQUENCE_OBJECT` and F -> mean over frames, of the official scorer."""
    code = published("davis2017-evaluation", "davis2017.evaluation")
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        results = code.DAVISEvaluation(str(davis), "semi-supervised", "val").evaluate(str(masks))
    return {f"{m} of {name}": value for m in "JF" for name, value in results[m]["M_per_object"].items()}


def by_vos_benchmark(davis: Path, masks: Path, workers: int) -> Values:
    """The same of vos-benchmark, with `workers` processes."""
    code = published("vos-benchmark", "vos_benchmark.benchmark")
    folders = [str(davis / "Annotations" / "480p")], [str(masks)]
    *_, (videos,) = code.benchmark(*folders, num_processes=workers, verbose=False)
    return {
        f"{m} of {name}_{identity}": value / 100
        for name, scores in videos.items()
        for m, values in zip("JF", scores, strict=True)
        for identity, value in values.items()
    }


def ours(davis: Path, masks: Path, workers: int) -> Values:
    """The same of this project, with `workers` threads."""
    table = pd.concat(score_folder(masks, load_davis(davis, 2017), workers=workers), ignore_index=True)
    means = table.groupby(["sequence", "object"], sort=False)[["J", "F"]].mean()
    return {
        f"{m} of {sequence}_{identity}": values[m]
        for (sequence, identity), values in means.to_dict("index").items()
        for m in "JF"
    }


def scores(repositories: Sequence[str]) -> Iterator[Row]:
    if not repositories:
        return
    disk_note = give_disk()
    root, year = tree()
    with tempfile.TemporaryDirectory() as name:
        make_predictions(root, year, Path(name) / "predicted")
        frames = write_id_tree(root, year, Path(name) / "predicted", Path(name))
        files = Path(name) / "tree", Path(name) / "masks"
        for repository in repositories:
            for workers in (2, 1):
                yield scorer_row(repository, files, workers, frames, disk_note)


def scorer_row(repository: str, files: tuple[Path, Path], workers: int, frames: int, note: str) -> Row:
    is_official = repository == "davis2017-evaluation"
    theirs = (lambda: official(*files)) if is_official else (lambda: by_vos_benchmark(*files, workers))
    beside = "the official scorer (one process)" if is_official else f"vos-benchmark ({workers} process(es))"
    work = f"J&F of {frames} frames from PNG, {workers} worker(s), beside {beside}"
    expected, found = theirs(), ours(*files, workers)
    check = f"J and F of {len(expected) // 2} objects {require(difference_of(expected, found), SAME_SCORES, work)}"
    target = SCORING_TARGET if is_official and workers == 2 else None
    return row(work, repository, (theirs, lambda: ours(*files, workers)), check, note=note, target=target, repeats=2)


def difference_of(one: Values, other: Values) -> float:
    """The largest difference of two scores; NaN if an object is missing."""
    difference = pd.Series(one).sub(pd.Series(other)).abs()
    return float(difference.max(skipna=False))


def measured(absent: Collection[str]) -> Iterator[Row]:
    """The rows of the repositories that are there, the longest last."""
    scorers = [name for name in ("davis2017-evaluation", "vos-benchmark") if name not in absent]
    yield from scores(scorers)
    if "TokenCut" not in absent:
        yield from cuts()
    if "dino" not in absent:
        yield from (nearest_classes(), loss())
        for patch_size, repeats in ((16, 5), (8, 2)):
            yield propagation(patch_size, repeats)


def main() -> list[Row]:
    absent = lacking()
    for repository, reason in absent.items():
        print(f"published: no rows of {repository}: {reason}", file=sys.stderr)
    rows = []
    for each in measured(absent):
        publish([each])  # at once: a later row may take minutes
        rows.append(each)
    return rows


if __name__ == "__main__":
    main()
