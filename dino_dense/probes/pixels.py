"""A linear layer on frozen patch tokens, one class a pixel: how it is trained, and applied to any picture.

Shapes: B images, h x w patches, D channels, K classes, S side of a crop in pixels.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from dino_dense import Backbone, distributed
from dino_dense.backbone.grid import fit
from dino_dense.checkpoint import read_tensors, write_tensors
from dino_dense.loaders import WorkerItems, read_items
from dino_dense.probes.protocol import PixelProbe
from dino_dense.probes.readout import slide_logits
from dino_dense.progress import progress, tracked
from dino_dense.training.optimizer_state import load_optimizer_tensors, optimizer_tensors
from dino_dense.training.schedules import half_cosine
from dino_dense.training.seeds import derive_seed

SAVE_SECONDS = 60.0  # a long run loses at most this
VOID = 255  # class id of pixels of no class: neither trained on nor scored (PASCAL VOC)
LOG_EVERY = 10  # steps between rows of the learning curve


class LabeledPicture(Protocol):
    """An image file with a class for every pixel."""

    @property
    def name(self) -> str:
        """How messages call it."""

    def read(self) -> tuple[Image.Image, npt.NDArray[np.uint8]]:
        """RGB picture and class ids uint8 [H, W], `VOID` where there is none."""


Batches = Iterator[tuple[Tensor, Tensor]]
"""Tokens [B, D, h, w] and class ids [B, S, S], a batch a step."""


class LinearHead(nn.Sequential):
    """BatchNorm, then one linear layer a patch: [B, D, h, w] -> logits [B, K, h, w] (DINOv3)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(nn.BatchNorm2d(channels), nn.Conv2d(channels, classes, 1))


class _Crops(Dataset):
    """Scaled, cropped and flipped training images, a function of the seed and the step."""

    def __init__(self, pairs: Sequence[LabeledPicture], config: PixelProbe, seed: int) -> None:
        self.pairs, self.config, self.seed = pairs, config, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(draw, image) -> RGB [3, S, S] in [0, 1] and ids [S, S]."""
        draw, index = key
        picture, ids = self.pairs[index].read()
        image = tv_tensors.Image(v2.functional.pil_to_tensor(picture))
        mask = tv_tensors.Mask(torch.from_numpy(ids))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, draw))
            image, mask = self._transform()(image, mask)
        return image.float() / 255, mask.long()

    def _transform(self) -> v2.Compose:
        crop = self.config.crop
        if not self.config.augment:
            # The scale and shape that validation images have: squashed ones score lower.
            return v2.Compose([v2.Resize(crop, v2.InterpolationMode.BICUBIC), v2.CenterCrop(crop)])
        low, high = self.config.scale
        short = round(crop * torch.empty(()).uniform_(low, high).item())
        fill: dict[Any, Any] = {tv_tensors.Image: 0, tv_tensors.Mask: VOID}
        return v2.Compose(
            [
                v2.Resize(short, v2.InterpolationMode.BICUBIC),
                v2.RandomCrop(crop, pad_if_needed=True, fill=fill),
                v2.RandomHorizontalFlip(),
            ]
        )


def image_of(key: tuple[int, int]) -> int:
    """(draw, image) -> image."""
    return key[1]


def train_head(
    backbone: Backbone,
    config: PixelProbe,
    pairs: Sequence[LabeledPicture],
    classes: int,
    *,
    state: Path,
    world: distributed.World,
    seed: int,
    workers: int,
) -> tuple[LinearHead, pd.DataFrame]:
    """The trained layer and its learning curve (step, loss, lr).

    An interrupted run goes on from the file `state`. The processes share out the
    extraction and then train the same layer alike, so their number changes nothing.
    """
    torch.manual_seed(seed)
    head = LinearHead(backbone.embed_dim, classes).to(backbone.device).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    distributed.barrier()  # every process looks for the state before any writes it
    done, log = _load(state, head, optimizer) if state.is_file() else (0, [])
    source = _FreshBatches if config.augment else _KeptBatches
    batches = source(backbone, config, world, seed, pairs, workers)
    is_main, saved = world.is_main, time.monotonic()
    with progress(config.steps, initial=done, unit="step", desc="linear layer", disable=not is_main) as bar:
        for step, (tokens, ids) in enumerate(batches(done), start=done):
            lr = config.lr * lr_factor(step, config.steps, config.warmup)
            loss = head_step(head, optimizer, tokens, ids, lr)
            if step % LOG_EVERY == 0 or step + 1 == config.steps:
                log.append({"step": step + 1, "loss": loss.item(), "lr": lr})
                bar.set_postfix_str(f"loss {log[-1]['loss']:.3f}")
            bar.update()
            last = step + 1 == config.steps
            if is_main and (last or time.monotonic() - saved > SAVE_SECONDS):
                _save(state, head, optimizer, step + 1, log)
                saved = time.monotonic()
    return head.eval(), pd.DataFrame(log)


def head_step(head: LinearHead, optimizer: torch.optim.Optimizer, tokens: Tensor, ids: Tensor, lr: float) -> Tensor:
    """One step on tokens [B, D, h, w] and ids [B, S, S]; the loss before it."""
    logits = F.interpolate(head(tokens), ids.shape[-2:], mode="bilinear", align_corners=False)
    # The sum is divided by hand: a batch of void pixels alone has loss 0, not 0 / 0.
    loss = F.cross_entropy(logits, ids, ignore_index=VOID, reduction="sum") / (ids != VOID).sum().clamp(min=1)
    if not loss.isfinite():
        raise ValueError(f"the loss of the linear layer is {loss.item()}: check the weights, use fp32, or lower --lr")
    optimizer.param_groups[0]["lr"] = lr
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def lr_factor(step: int, steps: int, warmup: int) -> float:
    """Share of the learning rate at a step (0-based): a linear rise, then a cosine to 0."""
    rise = min(warmup, steps // 10)
    if step < rise:
        return (step + 1) / rise
    return half_cosine(math.pi * (step - rise) / max(steps - rise, 1))


def crop_draws(n: int, config: PixelProbe, seed: int, first_step: int) -> Iterator[list[tuple[int, int]]]:
    """For each step its batch of (draw number, image), every image once before any comes again."""
    for step in range(first_step, config.steps):
        numbers = range(step * config.batch_size, (step + 1) * config.batch_size)
        turns = {number // n for number in numbers}
        shuffled = {turn: np.random.default_rng([seed, turn]).permutation(n) for turn in turns}
        yield [(number, int(shuffled[number // n][number % n])) for number in numbers]


@dataclass(frozen=True)
class _FreshBatches:
    """Tokens and ids of new crops at every step."""

    backbone: Backbone
    config: PixelProbe
    world: distributed.World
    seed: int
    pairs: Sequence[LabeledPicture]
    workers: int

    def __call__(self, first_step: int) -> Batches:
        size, world = self.config.batch_size, self.world
        draws = crop_draws(len(self.pairs), self.config, self.seed, first_step)
        mine = [distributed.even_share(part, world) for part in draws]
        for tokens, ids in self.load(batch_sampler=mine):
            yield distributed.all_gather(tokens)[:size], distributed.all_gather(ids)[:size]

    def load(self, **order: Any) -> Batches:
        """Tokens and ids of this process's own share, on the backbone's device."""
        crops = _Crops(self.pairs, self.config, self.seed)
        worker_items = WorkerItems(self.workers, lambda image: self.pairs[image].name)
        for images, ids in read_items(crops, worker_items, index=image_of, **order):
            tokens = self.backbone.extract(images.to(self.backbone.device)).patches
            yield tokens, ids.to(tokens.device)


class _KeptBatches(_FreshBatches):
    """Tokens and ids of every image, extracted once and kept in memory."""

    def __call__(self, first_step: int) -> Batches:
        count, world, device = len(self.pairs), self.world, self.backbone.device
        mine = distributed.even_share([(index, index) for index in range(count)], world)
        batches = self.load(batch_size=self.config.batch_size, sampler=mine)
        parts = list(tracked(batches, unit="batch", desc="train tokens", disable=not world.is_main))
        columns = (torch.cat(column) for column in zip(*parts, strict=True))
        tokens, ids = (distributed.all_gather(column)[:count].cpu() for column in columns)
        for draw in crop_draws(count, self.config, self.seed, first_step):
            chosen = [index for _, index in draw]
            yield tokens[chosen].to(device), ids[chosen].to(device)


def _save(path: Path, head: LinearHead, optimizer: torch.optim.Optimizer, step: int, log: list[dict]) -> None:
    """Everything an exact continuation needs, in one file."""
    tensors = {f"head.{name}": value for name, value in head.state_dict().items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(optimizer, head).items()}
    write_tensors(path, tensors, {"step": step, "log": log})


def _load(path: Path, head: LinearHead, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict]]:
    """Put a saved state in place; its step and log."""
    tensors, facts = read_tensors(path)
    parts: dict[str, dict[str, Tensor]] = {"head": {}, "optimizer": {}}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        parts[kind][rest] = value
    head.load_state_dict(parts["head"])
    load_optimizer_tensors(optimizer, head, parts["optimizer"])
    return facts["step"], facts["log"]


@torch.no_grad()
def predict(backbone: Backbone, head: nn.Module, picture: Image.Image, config: PixelProbe) -> np.ndarray:
    """Class ids uint8 [H, W] of a picture of any size."""
    short = config.crop / min(picture.size)
    height, width = fit((picture.height * short, picture.width * short), backbone.patch_size, "even").size
    resized = v2.functional.resize(picture, [height, width], v2.InterpolationMode.BICUBIC)
    image = v2.functional.pil_to_tensor(resized)[None].float() / 255
    logits = (
        slide_logits(lambda part: _logits(backbone, head, part, part.shape[-2:]), image, config.crop, config.stride)
        if config.window == "slide"
        else _logits(backbone, head, image, (height, width))
    )
    logits = F.interpolate(logits, (picture.height, picture.width), mode="bilinear", align_corners=False)
    return logits[0].argmax(0).to(torch.uint8).cpu().numpy()


def _logits(backbone: Backbone, head: nn.Module, image: Tensor, size: Sequence[int]) -> Tensor:
    """[1, 3, H, W] -> [1, K, *size]."""
    tokens = backbone.extract(image.to(backbone.device)).patches
    return F.interpolate(head(tokens), tuple(size), mode="bilinear", align_corners=False)
