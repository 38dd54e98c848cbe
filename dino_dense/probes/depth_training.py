"""A linear head of depth bins on frozen tokens: how it is trained, and applied to any picture.

Shapes: B images, H x W pixels, h x w patches, D channels.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as V

from dino_dense import Backbone, distributed
from dino_dense.backbone.bytes import divided, moved
from dino_dense.backbone.grid import fit
from dino_dense.checkpoint import read_tensors, write_tensors
from dino_dense.loaders import WorkerItems, read_items
from dino_dense.probes.depth import (
    at_size,
    bin_depths,
    expected_depth,
    known_depth,
    mean_of_flips,
    regressed_depth,
    sig_loss,
)
from dino_dense.probes.depth_schedule import lr_factor, momentum
from dino_dense.probes.pixels import crop_draws, image_of
from dino_dense.probes.protocol import DepthProbe, PixelProbe
from dino_dense.progress import progress, tracked
from dino_dense.training.losses import PendingLosses
from dino_dense.training.optimizer_state import load_optimizer_tensors, optimizer_tensors
from dino_dense.training.seeds import derive_seed

SAVE_SECONDS = 60.0  # a long run loses at most this
LOG_EVERY = 10  # steps between rows of the learning curve
LOSS_WARM_UP = 100  # steps without the variance term, at most a tenth of all (dinov3 `eval/depth/loss.py`)
INIT_STD = 0.01  # of the linear layer's first weights (dinov3 `eval/depth/models/linear_head.py`)
CHANCE = 0.5  # of a rotation, a flip and a change of colors, each (dinov3 `eval/depth/transforms.py`)
NYU_WIDTH, NYU_HEIGHT = 640, 480
FOUR_BLOCKS = {12: (3, 6, 9, 12), 24: (5, 12, 18, 24), 40: (10, 20, 30, 40)}
"""Depth of a network -> its four layers, counted from 1 (DINOv2)."""

Depth = npt.NDArray[np.float32]
Batches = Iterator[tuple[Tensor, Tensor]]
"""Tokens [B, D, h, w] and meters [B, H, W], a batch a step."""


class PictureWithDepth(Protocol):
    """An image file with the depth of every pixel."""

    @property
    def name(self) -> str:
        """How messages call it."""

    def read(self) -> tuple[Image.Image, Depth]:
        """RGB picture and meters [H, W], 0 where there is none."""


class DepthHead(nn.Module):
    """Tokens [B, D, h, w] -> meters [B, 1, h, w] (times `upsample`): the weighted mean of uniform bins, or, for one
    bin, the output itself.

    The batch norm is DINOv3's; DINOv2's head has none.
    """

    def __init__(self, channels: int, config: DepthProbe) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels) if config.batch_norm else nn.Identity()
        self.linear = nn.Conv2d(channels, config.bins, 1)
        if config.init == "normal":
            nn.init.normal_(self.linear.weight, std=INIT_STD)
            nn.init.zeros_(self.linear.bias)  # type: ignore[arg-type]
        self.upsample = config.upsample
        self.depths: Tensor
        self.low = config.min_depth
        depths = bin_depths(config.bins, config.min_depth, config.max_depth) if config.bins > 1 else torch.empty(0)
        self.register_buffer("depths", depths, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.upsample > 1:
            tokens = F.interpolate(tokens, scale_factor=self.upsample, mode="bilinear", align_corners=False)
        logits = self.linear(self.norm(tokens))
        return expected_depth(logits, self.depths) if len(self.depths) else regressed_depth(logits, self.low)


class Padding(NamedTuple):
    """Pixels added around an image, so that it is made of whole patches."""

    left: int
    right: int
    top: int
    bottom: int

    def cut(self, maps: Tensor) -> Tensor:
        """The image's part of maps [..., H, W] of the padded size."""
        return maps[..., self.top : maps.shape[-2] - self.bottom, self.left : maps.shape[-1] - self.right]


def padding_of(size: tuple[int, int], patch: int) -> Padding:
    """Around an image of `size` (H, W), the image in the middle (DINOv2's CenterPadding)."""
    whole = fit(size, patch, "ceil").size
    rows, columns = whole[0] - size[0], whole[1] - size[1]
    return Padding(columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)


def layers_of(backbone: Backbone, config: DepthProbe) -> tuple[int, ...]:
    """Numbers, from 0, of the layers that are joined.

    Raises:
        ValueError: the network has fewer layers, or other layers are asked for too.
    """
    if config.blocks == 1:
        return tuple(backbone.layers)
    if tuple(backbone.layers) != (-1,):
        raise ValueError(
            f"layers is {tuple(backbone.layers)}, and the head joins {config.blocks} blocks: give one of both"
        )
    if config.blocks > backbone.depth:
        raise ValueError(f"blocks is {config.blocks}, but {backbone.name} has {backbone.depth} layers")
    even = [round(backbone.depth * (block + 1) / config.blocks) for block in range(config.blocks)]
    chosen = FOUR_BLOCKS.get(backbone.depth, even) if config.blocks == 4 else even
    return tuple(layer - 1 for layer in chosen)


def channels_of(backbone: Backbone, config: DepthProbe) -> int:
    """D of `tokens_of`."""
    return backbone.reader.embed_dim * len(layers_of(backbone, config)) * (2 if config.class_token else 1)


def tokens_of(backbone: Backbone, images: Tensor, config: DepthProbe) -> Tensor:
    """Images [B, 3, H, W] of whole patches -> tokens [B, D, h, w], with the class token where the config says so."""
    want = {"patches", "cls"} if config.class_token else {"patches"}
    features = backbone.extract(images, want, layers_of(backbone, config), norm=config.final_norm and backbone.norm)
    if not config.class_token:
        return features.patches
    everywhere = features.cls[..., None, None].expand(-1, -1, *features.patches.shape[-2:])
    return torch.cat([features.patches, everywhere], dim=1)


class _Crops(Dataset[tuple[Tensor, Tensor]]):
    """Training images and their depth, cropped and changed as a function of the seed and the step."""

    def __init__(self, pairs: Sequence[PictureWithDepth], config: DepthProbe, seed: int) -> None:
        self.pairs, self.config, self.seed = pairs, config, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(draw, image) -> RGB [3, H, W], uint8 or, once changed, in [0, 1], and meters [H, W].

        Changed crops are not sent as bytes: the rotation of the published recipe gives values that no byte holds.
        """
        draw, index = key
        picture, meters = self.pairs[index].read()
        image, depth = V.pil_to_tensor(picture), torch.from_numpy(meters)[None]
        rows, columns = border_box(self.config.border, (picture.height, picture.width))
        image, depth = image[:, rows, columns], depth[:, rows, columns]
        if not self.config.augment:
            return V.center_crop(image, list(self.config.crop)), V.center_crop(depth, list(self.config.crop))[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, draw))
            return self._changed(divided(image), depth)

    def _changed(self, image: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        if _coin():
            angle = _drawn((-config.rotation, config.rotation)).item()
            image = V.rotate(image, angle, v2.InterpolationMode.BILINEAR)
            depth = V.rotate(depth, angle, v2.InterpolationMode.NEAREST)
        short = [max(0, side - have) for side, have in zip(config.crop, image.shape[-2:], strict=True)]
        image, depth = (F.pad(part, (0, short[1], 0, short[0])) for part in (image, depth))
        rows, columns = _random_box((image.shape[-2], image.shape[-1]), config.crop)
        image, depth = image[:, rows, columns], depth[:, rows, columns]
        if _coin():
            image, depth = image.flip(-1), depth.flip(-1)
        if _coin():
            image = recolored(image, _drawn(config.gamma), _drawn(config.brightness), _drawn(config.tint, 3, 1, 1))
        return image, depth[0]


def recolored(image: Tensor, gamma: Tensor, brightness: Tensor, tint: Tensor) -> Tensor:
    """RGB [3, H, W] in [0, 1]: (255 c) ** gamma * brightness * tint, cut to 255 (dinov3, `ColorAug`).

    The exponent is of values up to 255, so it brightens or darkens far more than that of values up to 1.
    """
    return ((255 * image) ** gamma * brightness * tint).clamp(0, 255) / 255


def _coin() -> bool:
    return bool(torch.rand(()) < CHANCE)


def _drawn(span: tuple[float, float], *size: int) -> Tensor:
    return torch.empty(size).uniform_(*span)


def _random_box(size: tuple[int, int], crop: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a random crop (height, width) of an image of `size` (H, W) that is at least as large."""
    first = [int(torch.randint(have - side + 1, ())) for have, side in zip(size, crop, strict=True)]
    return slice(first[0], first[0] + crop[0]), slice(first[1], first[1] + crop[1])


def border_box(border: tuple[int, int, int, int], size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the box x0, y0, x1, y1 of a 640 x 480 image in an image of `size` (H, W)."""
    height, width = size
    x0, x1 = (int(x / NYU_WIDTH * width) for x in border[::2])
    y0, y1 = (int(y / NYU_HEIGHT * height) for y in border[1::2])
    return slice(y0, y1), slice(x0, x1)


def train_depth(
    backbone: Backbone,
    config: DepthProbe,
    pairs: Sequence[PictureWithDepth],
    *,
    state: Path,
    world: distributed.World,
    seed: int,
    workers: int,
) -> tuple[DepthHead, pd.DataFrame]:
    """The trained head and its learning curve (step, loss, lr).

    An interrupted run goes on from the file `state`. The processes share out the extraction and then train the same
    head alike.

    Raises:
        ValueError: the loss is not finite, or a batch has no depth.
    """
    torch.manual_seed(seed)
    head = DepthHead(channels_of(backbone, config), config).to(backbone.device).train()
    betas = (momentum(0, config), config.beta2)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.lr, betas=betas, weight_decay=config.weight_decay)
    distributed.barrier()  # every process looks for the state before any writes it
    done, log = _load(state, head, optimizer) if state.is_file() else (0, [])
    source = _FreshBatches if config.augment else _KeptBatches
    batches = source(backbone, config, world, seed, pairs, workers)
    is_main, saved, pending = world.is_main, time.monotonic(), PendingLosses()
    with progress(config.steps, initial=done, unit="step", desc="depth head", disable=not is_main) as bar:
        for step, (tokens, meters) in enumerate(batches(done), start=done):
            loss, groups = depth_step(head, optimizer, tokens, meters, config, backbone.patch_size, step)
            pending.add(step + 1, loss, loss / groups)
            last = step + 1 == config.steps
            bar.update()
            if not (step % LOG_EVERY == 0 or last):
                continue
            value = look_at_losses(pending, config)
            log.append({"step": step + 1, "loss": value, "lr": optimizer.param_groups[0]["lr"]})
            bar.set_postfix_str(f"loss {value:.3f}")
            if is_main and (last or time.monotonic() - saved > SAVE_SECONDS):
                _save(state, head, optimizer, step + 1, log)
                saved = time.monotonic()
    distributed.copy_from_main(head)
    return head.eval(), pd.DataFrame(log)


def look_at_losses(pending: PendingLosses, config: DepthProbe) -> float:
    """The last of the losses since the last look.

    Raises:
        ValueError: one of them is not finite, or its batch had no depth.
    """
    losses = pending.take()
    for step, loss, finite in losses:
        if math.isfinite(loss) and not finite:
            raise ValueError(
                f"no pixel of step {step} has a depth between 0 and {config.max_depth} m: check the unit of the depth "
                "maps."
            )
        if not finite:
            raise ValueError(
                f"the loss of the depth head is {loss} in step {step}: check the weights, use fp32, or lower --lr"
            )
    return losses[-1].loss


def depth_step(
    head: DepthHead,
    optimizer: torch.optim.Optimizer,
    tokens: Tensor,
    meters: Tensor,
    config: DepthProbe,
    patch: int,
    step: int,
) -> tuple[Tensor, Tensor]:
    """One step on tokens [B, D, h, w] and meters [B, H, W]; `group_loss` before it."""
    predicted = in_pixels(head(tokens), (meters.shape[-2], meters.shape[-1]), patch, config)[:, 0]
    loss, groups = group_loss(predicted, meters, config, warm_up=step < min(LOSS_WARM_UP, config.steps // 10))
    group = optimizer.param_groups[0]
    group["lr"], group["betas"] = config.lr * lr_factor(step, config), (momentum(step, config), config.beta2)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(head.parameters(), config.clip)
    optimizer.step()
    return loss.detach(), groups


def group_loss(predicted: Tensor, meters: Tensor, config: DepthProbe, *, warm_up: bool) -> tuple[Tensor, Tensor]:
    """Mean of the losses of groups of `loss_images` images, [B, H, W] each, and the number of groups with depth, both
    0-dim. Groups without depth do not count; the loss is 0 where no group has any.
    """
    pairs = list(zip(predicted.split(config.loss_images), meters.split(config.loss_images), strict=True))
    losses = torch.stack([sig_loss(ours, truth, config.max_depth, warm_up=warm_up) for ours, truth in pairs])
    known = torch.stack([known_depth(truth, config.max_depth).any() for _, truth in pairs])
    groups = known.sum()
    return losses.masked_fill(~known, 0).sum() / groups.clamp(min=1), groups


def in_pixels(small: Tensor, size: tuple[int, int], patch: int, config: DepthProbe) -> Tensor:
    """Meters [B, 1, h, w] of a padded image -> [B, 1, H, W] of the image of `size`, cut to the range of the bins."""
    if config.padding == "kept":
        return at_size(small, size, config.min_depth, config.max_depth)
    whole = fit(size, patch, "ceil").size
    return padding_of(size, patch).cut(at_size(small, whole, config.min_depth, config.max_depth))


class _FreshBatches:
    """Tokens and depth of new crops at every step."""

    def __init__(
        self,
        backbone: Backbone,
        config: DepthProbe,
        world: distributed.World,
        seed: int,
        pairs: Sequence[PictureWithDepth],
        workers: int,
    ) -> None:
        self.backbone, self.config, self.world, self.seed = backbone, config, world, seed
        self.pairs, self.workers = pairs, workers

    def __call__(self, first_step: int) -> Batches:
        size = self.config.batch_size
        own_batches = [distributed.even_share(part, self.world) for part in self.draws(first_step)]
        for tokens, meters in self.load(batch_sampler=own_batches):
            yield distributed.all_gather(tokens)[:size], distributed.all_gather(meters)[:size]

    def once(self) -> Batches:
        """The images of this process in order, each once; the last processes repeat the last image."""
        own_items = distributed.even_share([(index, index) for index in range(len(self.pairs))], self.world)
        return self.load(batch_size=self.config.batch_size, sampler=own_items)

    def draws(self, first_step: int) -> Iterator[list[tuple[int, int]]]:
        """For each step its batch of (draw number, image)."""
        turns = PixelProbe(steps=self.config.steps, batch_size=self.config.batch_size)
        return crop_draws(len(self.pairs), turns, self.seed, first_step)

    def load(self, **order: Any) -> Batches:
        """Tokens and depth of this process's own share, on the backbone's device."""
        crops = _Crops(self.pairs, self.config, self.seed)
        worker_items = WorkerItems(self.workers, lambda image: self.pairs[image].name)
        backbone = self.backbone
        loaded = read_items(crops, worker_items, index=image_of, pin_memory=not backbone.on_cpu, **order)
        for images, meters in loaded:
            padding = padding_of((images.shape[-2], images.shape[-1]), backbone.patch_size)
            tokens = tokens_of(backbone, F.pad(images, padding), self.config)
            yield tokens, meters.to(tokens.device, non_blocking=True)


class _KeptBatches(_FreshBatches):
    """Tokens and depth of every image, extracted once and kept in memory."""

    def __call__(self, first_step: int) -> Batches:
        count, device = len(self.pairs), self.backbone.device
        parts = list(tracked(self.once(), unit="batch", desc="train tokens", disable=not self.world.is_main))
        columns = (torch.cat(column) for column in zip(*parts, strict=True))
        tokens, meters = (distributed.all_gather(column)[:count].cpu() for column in columns)
        for draw in self.draws(first_step):
            chosen = [index for _, index in draw]
            yield moved(tokens[chosen], device), moved(meters[chosen], device)


def training_batches(
    backbone: Backbone,
    config: DepthProbe,
    pairs: Sequence[PictureWithDepth],
    world: distributed.World,
    seed: int,
    workers: int,
) -> Batches:
    """Tokens and depth of this process's training images, each once, in order."""
    return _FreshBatches(backbone, config, world, seed, pairs, workers).once()


def _save(path: Path, head: DepthHead, optimizer: torch.optim.Optimizer, step: int, log: list[dict]) -> None:
    """Everything an exact continuation needs, in one file."""
    tensors = {f"head.{name}": value for name, value in head.state_dict().items()}
    tensors |= {f"optimizer.{name}": value for name, value in optimizer_tensors(optimizer, head).items()}
    write_tensors(path, tensors, {"step": step, "log": log})


def _load(path: Path, head: DepthHead, optimizer: torch.optim.Optimizer) -> tuple[int, list[dict]]:
    """Put a saved state in place; its step and log."""
    tensors, record = read_tensors(path)
    parts: dict[str, dict[str, Tensor]] = {"head": {}, "optimizer": {}}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        parts[kind][rest] = value
    head.load_state_dict(parts["head"])
    load_optimizer_tensors(optimizer, head, parts["optimizer"])
    return record["step"], record["log"]


@torch.no_grad()
def predict_depth(
    backbone: Backbone, head: Callable[[Tensor], Tensor], picture: Image.Image, config: DepthProbe
) -> Depth:
    """Meters [H, W] of a picture of any size, cut to the range of the bins.

    Args:
        head: tokens [B, D, h, w] -> meters [B, 1, h, w] on any grid.
    """
    size = (picture.height, picture.width)
    padding = padding_of(size, backbone.patch_size)
    image = V.pil_to_tensor(picture)[None]

    def small(part: Tensor) -> Tensor:
        return head(tokens_of(backbone, F.pad(part, padding), config))

    depth = mean_of_flips(small(image), small(image.flip(-1))) if config.flip else small(image)
    return in_pixels(depth, size, backbone.patch_size, config)[0, 0].cpu().numpy()
