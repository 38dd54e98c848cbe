"""A linear layer on frozen patch tokens for semantic segmentation: training, and prediction for any picture.

Shapes: B images, h x w patches, D channels, K classes, S side of a crop in pixels.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import RandomResizedCrop, v2

from dino_dense import Backbone, distributed
from dino_dense.backbone.bytes import filled, moved, sent
from dino_dense.backbone.grid import fit
from dino_dense.checkpoint import read_tensors, write_tensors
from dino_dense.loaders import WorkerItems, read_items
from dino_dense.probes.protocol import PixelProbe
from dino_dense.probes.readout import class_shares, nearest_labels, slide_logits
from dino_dense.progress import progress, tracked
from dino_dense.training.losses import PendingLosses
from dino_dense.training.optimizer_state import load_optimizer_tensors, optimizer_tensors
from dino_dense.training.schedules import half_cosine
from dino_dense.training.seeds import derive_seed

SAVE_SECONDS = 60.0  # a long run loses at most this
VOID = 255  # class id of pixels without class: ignored in training and scores (PASCAL VOC)
LOG_EVERY = 10  # steps between rows of the learning curve
DROPOUT = 1  # number of its stream of draws

# dinov3, eval/segmentation: heads/linear_head.py, schedulers.py (warmup_ratio) and transforms.py
INIT_STD = 0.01
WARMUP_START = 1e-6
CROP_TRIES = 10
BRIGHTNESS = 32.0
CONTRAST = SATURATION = (0.5, 1.5)
HUE = (-0.5, 0.5)
# NeCo, experiments/linear_segmentation/linear_finetune.py and its configs (drop_at 20 of max_epochs 25)
SGD_MOMENTUM = 0.9
DROP, DROP_AT = 0.1, 0.8
CROP_RATIO = (3 / 4, 4 / 3)


class LabeledPicture(Protocol):
    """An image file with a class for every pixel."""

    @property
    def name(self) -> str:
        """Name in messages."""

    def read(self) -> tuple[Image.Image, npt.NDArray[np.uint8]]:
        """RGB picture and class ids uint8 [H, W]; `VOID` for pixels without class."""


Batches = Iterator[tuple[Tensor, Tensor]]
"""Tokens [B, D, h, w] and class ids [B, S, S], a batch for each step."""


class Crop(NamedTuple):
    """A training image, or a batch of them."""

    image: Tensor
    """RGB uint8 [3, S, S]; 0 beside the image."""
    ids: Tensor
    """Class ids uint8 [S, S], or of the side at which the loss is; `VOID` beside the image."""
    size: Tensor
    """Height and width of the image in the crop [2]: it begins at the top left."""


class LinearHead(nn.Sequential):
    """BatchNorm, then one linear layer a patch: [B, D, h, w] -> logits [B, K, h, w] (dinov3, heads/linear_head.py).

    Args:
        config: says whether there is a BatchNorm, and how the layer starts.
    """

    def __init__(self, channels: int, classes: int, config: PixelProbe | None = None) -> None:
        config = config or PixelProbe()
        layer = nn.Conv2d(channels, classes, 1)
        if config.init == "normal":
            nn.init.normal_(layer.weight, std=INIT_STD)
            layer.bias = nn.Parameter(torch.zeros(classes))
        super().__init__(nn.BatchNorm2d(channels) if config.batch_norm else nn.Identity(), layer)


class _Crops(Dataset):
    """Scaled, cropped, flipped and distorted training images, a function of the seed and the step (dinov3)."""

    def __init__(self, pairs: Sequence[LabeledPicture], config: PixelProbe, seed: int) -> None:
        self.pairs, self.config, self.seed = pairs, config, seed

    def __getitem__(self, key: tuple[int, int]) -> Crop:
        """(draw, image) -> its crop."""
        draw, index = key
        picture, ids = self.pairs[index].read()
        image, mask = self._square(picture, ids, draw)
        side = self.config.crop
        size = torch.tensor(mask.shape)
        canvas, labels = (
            torch.zeros(3, side, side, dtype=torch.uint8),
            torch.full((side, side), VOID, dtype=torch.uint8),
        )
        canvas[:, : size[0], : size[1]] = image
        labels[: size[0], : size[1]] = mask
        if self.config.side is not None:
            labels = nearest_labels(labels[None], self.config.side)[0]
        return Crop(canvas, labels, size)

    def _square(self, picture: Image.Image, ids: npt.NDArray[np.uint8], draw: int) -> tuple[Tensor, Tensor]:
        if not self.config.augment:
            return self._middle(picture, ids)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, draw))
            return self._stretched(picture, ids) if self.config.crops == "stretched" else self._augmented(picture, ids)

    def _stretched(self, picture: Image.Image, ids: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """A part of random area, stretched (NeCo's RandomResizedCrop), drawn from the global generator."""
        box = crop_box(picture, self.config.scale)
        image, mask = squared(picture.crop(box), ids[box[1] : box[3], box[0] : box[2]], self.config.crop)
        if _coin():
            image, mask = image.flip(-1), mask.flip(-1)
        if self.config.distort:
            image = distorted(image)
        return image, mask

    def _middle(self, picture: Image.Image, ids: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """The middle square at the scale that validation images have; the stretched image where crops are stretched."""
        if self.config.crops == "stretched":
            return squared(picture, ids, self.config.crop)
        image, mask = resized(picture, ids, self.config.crop)
        image, mask = (v2.functional.center_crop(part, [self.config.crop]) for part in (image, mask[None]))
        return image, mask[0]

    def _augmented(self, picture: Image.Image, ids: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """A crop, drawn from the global generator; smaller than S x S where the image ends."""
        config, side = self.config, self.config.crop
        image, mask = resized(picture, ids, max(1, int(side * _uniform(*config.scale))))
        top, left = mixed_corner(mask, side, config.class_share)
        image, mask = (part[..., top : top + side, left : left + side] for part in (image, mask))
        if _coin():
            image, mask = image.flip(-1), mask.flip(-1)
        return (distorted(image) if config.distort else image), mask


def crop_box(picture: Image.Image, area: tuple[float, float]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random part, as torchvision's RandomResizedCrop draws it."""
    image = v2.functional.pil_to_tensor(picture)
    top, left, height, width = RandomResizedCrop.get_params(image, list(area), list(CROP_RATIO))
    return left, top, left + width, top + height


def squared(picture: Image.Image, ids: npt.NDArray[np.uint8], side: int) -> tuple[Tensor, Tensor]:
    """RGB uint8 [3, side, side], bilinear, and ids uint8 [side, side], nearest (as PIL takes them), stretched."""
    image = v2.functional.resize(picture, [side, side], v2.InterpolationMode.BILINEAR)
    return v2.functional.pil_to_tensor(image), torch.from_numpy(stretched_ids(ids, side))


def stretched_ids(ids: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    """Class ids [H, W] -> [side, side], to the nearest pixel."""
    return np.array(Image.fromarray(ids).resize((side, side), Image.Resampling.NEAREST))


def resized(picture: Image.Image, ids: npt.NDArray[np.uint8], short: int) -> tuple[Tensor, Tensor]:
    """RGB uint8 [3, h, w], bilinear, and ids uint8 [h, w], nearest, whose short side is `short`."""
    size = list(size_at(picture.height, picture.width, short))
    image = v2.functional.resize(picture, size, v2.InterpolationMode.BILINEAR)
    mask = v2.functional.resize(torch.from_numpy(ids)[None], size, v2.InterpolationMode.NEAREST)
    return v2.functional.pil_to_tensor(image), mask[0]


def size_at(height: int, width: int, short: int) -> tuple[int, int]:
    """(height, width) of an image whose short side becomes `short`, the long one rounded (dinov3, transforms.py)."""
    long = int(short * max(height, width) / min(height, width) + 0.5)
    return (long, short) if height > width else (short, long)


def mixed_corner(ids: Tensor, side: int, share: float) -> tuple[int, int]:
    """Top and left of a crop in which no class has `share` of the labeled pixels or more.

    Drawn from the global generator, again where that fails, ten times at most (dinov3, `RandomCropWithLabel`).
    """

    def drawn() -> tuple[int, int]:
        top, left = (int(torch.randint(max(length - side, 0) + 1, ())) for length in ids.shape)
        return top, left

    top, left = drawn()
    for _ in range(CROP_TRIES if share < 1 else 0):
        crop = ids[top : top + side, left : left + side]
        counts = torch.bincount(crop[crop != VOID].flatten())
        if (counts > 0).sum() > 1 and counts.max() < share * counts.sum():
            break
        top, left = drawn()
    return top, left


def distorted(image: Tensor) -> Tensor:
    """Brightness, contrast, saturation and hue of RGB uint8 [3, h, w], each at even odds (`PhotoMetricDistortion`).

    Contrast comes second or last, at even odds too. Drawn from the global generator.
    """
    if _coin():
        image = _scaled(image, 1.0, _uniform(-BRIGHTNESS, BRIGHTNESS))
    contrast_last = _coin()
    for name in ("saturation", "hue", "contrast") if contrast_last else ("contrast", "saturation", "hue"):
        if not _coin():
            continue
        if name == "contrast":
            image = _scaled(image, _uniform(*CONTRAST), 0.0)
        elif name == "saturation":
            image = v2.functional.adjust_saturation(image, _uniform(*SATURATION))
        else:
            image = v2.functional.adjust_hue(image, _uniform(*HUE))
    return image


def _scaled(image: Tensor, factor: float, offset: float) -> Tensor:
    return (image.float() * factor + offset).clamp(0, 255).to(torch.uint8)  # rounded down, as NumPy's astype does


def _uniform(low: float, high: float) -> float:
    return torch.empty(()).uniform_(low, high).item()


def _coin() -> bool:
    return torch.rand(()).item() < 0.5


def image_of(key: tuple[int, int]) -> int:
    """(draw, image) -> image."""
    return key[1]


class Trained(NamedTuple):
    """The layer, and how it came about."""

    head: LinearHead
    curve: pd.DataFrame
    """step, loss, lr."""
    evaluations: pd.DataFrame
    """step, score; one row or more where the layer was scored while it trained: `head` is the best of them."""


def train_head(
    backbone: Backbone,
    config: PixelProbe,
    pairs: Sequence[LabeledPicture],
    classes: int,
    *,
    state: Path,
    world: distributed.World,
    seed: int,
    workers: int | None,
    score: Callable[[LinearHead], float] = lambda head: 0.0,
) -> Trained:
    """The trained layer: the last, or the best of `config.evaluations`.

    An interrupted run resumes from the file `state`. The processes share the extraction and then train the same layer
    redundantly, so their number changes nothing. Each scores its images with the main process's layer.

    Args:
        score: says how good a layer is, more for better ones; all processes call it.
    """
    torch.manual_seed(seed)
    head = LinearHead(backbone.embed_dim, classes, config).to(backbone.device).train()
    optimizer = optimizer_of(head, config)
    training = _Training(head, optimizer)
    distributed.barrier()  # all processes check for the state before any writes it
    if state.is_file():
        training.load(state)
    source = _FreshBatches if config.augment else _KeptBatches
    batches = source(backbone, config, world, seed, pairs, workers)
    is_main, saved, done, pending = world.is_main, time.monotonic(), training.step, PendingLosses()
    with progress(config.steps, initial=done, unit="step", desc="linear layer", disable=not is_main) as bar:
        for step, (tokens, ids) in enumerate(batches(done), start=done):
            lr = config.lr * lr_factor(step, config.steps, config.warmup, config.schedule)
            loss = head_step(head, optimizer, dropped(tokens, config.dropout, seed, step), ids, lr, config.void)
            pending.add(step + 1, loss)
            last = step + 1 == config.steps
            logged, evaluated = step % LOG_EVERY == 0 or last, step + 1 in evaluation_steps(config)
            bar.update()
            training.step = step + 1
            if not (logged or evaluated):
                continue
            value = look_at_losses(pending)
            if logged:
                training.log.append({"step": step + 1, "loss": value, "lr": lr})
                bar.set_postfix_str(f"loss {value:.3f}")
            if evaluated:
                training.look(score)
            if is_main and (last or evaluated or time.monotonic() - saved > SAVE_SECONDS):
                training.save(state)
                saved = time.monotonic()
    if training.best:
        head.load_state_dict(training.best)
    distributed.copy_from_main(head)
    return Trained(head.eval(), pd.DataFrame(training.log), pd.DataFrame(training.scores, columns=["step", "score"]))


def look_at_losses(pending: PendingLosses) -> float:
    """The last of the losses since the last look.

    Raises:
        ValueError: one of them is not finite.
    """
    losses = pending.take()
    for step, loss, finite in losses:
        if not finite:
            raise ValueError(
                f"the loss of the linear layer is {loss} in step {step}: check the weights, use fp32, or lower --lr"
            )
    return losses[-1].loss


def optimizer_of(head: LinearHead, config: PixelProbe) -> torch.optim.Optimizer:
    """AdamW, or SGD with momentum."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(head.parameters(), lr=config.lr, momentum=SGD_MOMENTUM, weight_decay=config.weight_decay)
    return torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=config.weight_decay)


def evaluation_steps(config: PixelProbe) -> set[int]:
    """Numbers of done steps after which the layer is scored, evenly spaced, the last among them; none for one alone."""
    count = config.evaluations
    return {config.steps * part // count for part in range(1, count + 1)} - {0} if count > 1 else set()


def dropped(tokens: Tensor, share: float, seed: int, step: int) -> Tensor:
    """Tokens [B, D, h, w] without a share of the channels of each image, the others scaled up (`Dropout2d`).

    The draw depends on the seed and the step alone, so that all processes, and a run that goes on, have the same.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, DROPOUT, step))
    kept = torch.rand(tokens.shape[:2], generator=generator) >= share
    return tokens * (kept / (1 - share))[..., None, None].to(tokens.device, tokens.dtype, non_blocking=True)


def head_step(
    head: LinearHead,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    ids: Tensor,
    lr: float,
    void: Literal["counted", "left out"] = "counted",
) -> Tensor:
    """One step on tokens [B, D, h, w] and ids [B, S, S]; the loss before it, a mean over all pixels, void ones too, or
    over all with a class."""
    logits = F.interpolate(head(tokens), ids.shape[-2:], mode="bilinear", align_corners=False)
    pixels = ids.numel() if void == "counted" else (ids != VOID).sum().clamp(min=1)
    loss = F.cross_entropy(logits, ids, ignore_index=VOID, reduction="sum") / pixels
    optimizer.param_groups[0]["lr"] = lr
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def lr_factor(step: int, steps: int, warmup: int, schedule: Literal["cosine", "linear", "step"] = "cosine") -> float:
    """Share of the learning rate at a step (0-based), in a linear warm-up and after it.

    cosine: nearly linear, then a cosine to 0 over all steps (`WarmupOneCycleLR` of dinov3
    `eval/segmentation/schedulers.py`, whose loop moves it after the second step); linear: a line to 0 (mmcv's poly of
    power 1); step: a tenth after four fifths of the steps.
    """
    rise = min(warmup, steps // 10)
    if schedule != "cosine":
        fall = 1 - step / steps if schedule == "linear" else DROP if step >= DROP_AT * steps else 1.0
        return (WARMUP_START + (1 - WARMUP_START) * step / rise) * fall if step < rise else fall
    done = max(step - 1, 0)
    if done < rise:
        return (WARMUP_START + (1 - WARMUP_START) * done / rise) * (1 - done / steps)
    return half_cosine(math.pi * min(done + 1, steps) / steps)


def crop_draws(n: int, config: PixelProbe, seed: int, first_step: int) -> Iterator[list[tuple[int, int]]]:
    """The batch of (draw number, image) of each step; all images occur once before any repeats."""
    for step in range(first_step, config.steps):
        numbers = range(step * config.batch_size, (step + 1) * config.batch_size)
        turns = {number // n for number in numbers}
        shuffled = {turn: np.random.default_rng([seed, turn]).permutation(n) for turn in turns}
        yield [(number, int(shuffled[number // n][number % n])) for number in numbers]


@dataclass(frozen=True)
class _FreshBatches:
    """New crops in every step: tokens and ids."""

    backbone: Backbone
    config: PixelProbe
    world: distributed.World
    seed: int
    pairs: Sequence[LabeledPicture]
    workers: int | None

    def __call__(self, first_step: int) -> Batches:
        size, world = self.config.batch_size, self.world
        draws = crop_draws(len(self.pairs), self.config, self.seed, first_step)
        own_items = [distributed.even_share(part, world) for part in draws]
        for tokens, ids in self.load(batch_sampler=own_items):
            yield distributed.all_gather(tokens)[:size], distributed.all_gather(ids)[:size].long()

    def load(self, **order: Any) -> Batches:
        """Tokens and ids (uint8) of this process's share, on the backbone's device."""
        backbone = self.backbone
        crops = _Crops(self.pairs, self.config, self.seed)
        worker_items = WorkerItems(self.workers, lambda image: self.pairs[image].name)
        loaded = read_items(crops, worker_items, index=image_of, pin_memory=not backbone.on_cpu, **order)
        for batch in loaded:
            tokens = backbone.extract(filled(batch.image, batch.size, backbone.mean, backbone.device)).patches
            yield tokens, batch.ids.to(tokens.device, non_blocking=True)


class _KeptBatches(_FreshBatches):
    """The same crop of an image in every step: tokens and ids, extracted once and cached in memory."""

    def __call__(self, first_step: int) -> Batches:
        count, world, device = len(self.pairs), self.world, self.backbone.device
        own_items = distributed.even_share([(index, index) for index in range(count)], world)
        batches = self.load(batch_size=self.config.batch_size, sampler=own_items)
        parts = list(tracked(batches, unit="batch", desc="train tokens", disable=not world.is_main))
        columns = (torch.cat(column) for column in zip(*parts, strict=True))
        tokens, ids = (distributed.all_gather(column)[:count].cpu() for column in columns)
        for draw in crop_draws(count, self.config, self.seed, first_step):
            chosen = [index for _, index in draw]
            yield moved(tokens[chosen], device), moved(ids[chosen], device).long()


class _Training:
    """All that changes while a layer trains."""

    def __init__(self, head: LinearHead, optimizer: torch.optim.Optimizer) -> None:
        self.head, self.optimizer = head, optimizer
        self.step = 0
        self.log: list[dict[str, float]] = []
        self.scores: list[tuple[int, float]] = []
        self.best: dict[str, Tensor] = {}
        """The weights of the best score."""

    def look(self, score: Callable[[LinearHead], float]) -> None:
        """Score the layer, and keep it where it is the best so far (the first of equals)."""
        distributed.copy_from_main(self.head)
        value = score(self.head.eval())
        self.head.train()
        if not self.scores or value > max(known for _, known in self.scores):
            self.best = {name: weights.clone() for name, weights in self.head.state_dict().items()}
        self.scores.append((self.step, value))

    def save(self, path: Path) -> None:
        """Write the state for an exact resume, in one file."""
        parts = {
            "head": self.head.state_dict(),
            "best": self.best,
            "optimizer": optimizer_tensors(self.optimizer, self.head),
        }
        tensors = {f"{kind}.{name}": value for kind, part in parts.items() for name, value in part.items()}
        write_tensors(path, tensors, {"step": self.step, "log": self.log, "scores": self.scores})

    def load(self, path: Path) -> None:
        """Put a saved state in place."""
        tensors, metadata = read_tensors(path)
        parts: dict[str, dict[str, Tensor]] = {"head": {}, "best": {}, "optimizer": {}}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            parts[kind][rest] = value
        self.head.load_state_dict(parts["head"])
        load_optimizer_tensors(self.optimizer, self.head, parts["optimizer"])
        self.step, self.log, self.best = metadata["step"], metadata["log"], parts["best"]
        self.scores = [(step, value) for step, value in metadata["scores"]]


@torch.no_grad()
def predict(backbone: Backbone, head: nn.Module, picture: Image.Image, config: PixelProbe) -> np.ndarray:
    """Class ids uint8 [H, W] of a picture of any size; [side, side] where the protocol has one.

    Of several sizes and mirror images, the softmax at the size of the result is averaged (mmseg, `aug_test`).
    """
    size = (picture.height, picture.width) if config.side is None else (config.side, config.side)
    views = list(itertools.product(config.test_scales, (False, True) if config.test_flip else (False,)))
    parts = (_view_logits(backbone, head, picture, config, *view) for view in views)
    if len(views) == 1:
        scores = F.interpolate(next(parts), size, mode="bilinear", align_corners=False)
    else:
        scores = functools.reduce(torch.add, (class_shares(part, size) for part in parts))
    return scores[0].argmax(0).to(torch.uint8).cpu().numpy()


def joined(backbone: Backbone, config: PixelProbe) -> Backbone:
    """The same weights with the last `blocks` layers joined as its default.

    Raises:
        ValueError: the network has fewer layers, or other layers are asked for too.
    """
    if config.blocks == 1:
        return backbone
    if tuple(backbone.layers) != (-1,):
        raise ValueError(
            f"layers is {tuple(backbone.layers)}, and the head joins {config.blocks} blocks: give one of both"
        )
    return backbone.with_layers(range(-config.blocks, 0), backbone.norm)


def _view_logits(
    backbone: Backbone, head: nn.Module, picture: Image.Image, config: PixelProbe, scale: float, mirrored: bool
) -> Tensor:
    """Logits [1, K, h, w] of a picture whose short side becomes `crop` times `scale`, on any grid."""
    height, width = size_at(picture.height, picture.width, int(config.crop * scale))
    if config.window == "whole":
        height, width = fit((height, width), backbone.patch_size, "even").size
    if config.window == "square":
        height = width = config.crop
    scaled = v2.functional.resize(picture, [height, width], v2.InterpolationMode.BILINEAR)
    image = sent(v2.functional.pil_to_tensor(scaled)[None], backbone.device)
    if mirrored:
        image = image.flip(-1)
    logits = (
        slide_logits(
            lambda part: _logits(backbone, head, part, part.shape[-2:]), image, config.crop, config.window_stride
        )
        if config.window == "slide"
        else _logits(backbone, head, image, None if config.side else (height, width))
    )
    return logits.flip(-1) if mirrored else logits


def _logits(backbone: Backbone, head: nn.Module, image: Tensor, size: Sequence[int] | None) -> Tensor:
    """[1, 3, H, W] -> [1, K, *size], or of the grid."""
    logits: Tensor = head(backbone.extract(image).patches)
    return logits if size is None else F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)
