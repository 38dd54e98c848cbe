"""The training images and crops of each step.

Shapes: B images a step over all processes, b in one micro-batch of one process.
"""

from collections.abc import Callable, Generator
from typing import NamedTuple

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import Compose

from data.images import LabeledImages, read_rgb
from dino_dense.backbone.backbone import Triple
from dino_dense.backbone.bytes import moved, sent, statistics
from dino_dense.distributed import World
from dino_dense.loaders import WorkerItems, read_items
from dino_dense.training.plan import Plan, PlanSampler, Position
from dino_dense.training.seeds import derive_seed, seeded
from tasks.finetuning.config import FinetuneConfig
from tasks.finetuning.streams import AUGMENTATION


class Crop(NamedTuple):
    """A training crop on its way to the device: bytes, and what random erasing writes into it once it is normalized."""

    pixels: Tensor
    """uint8 [3, S, S]."""
    box: tuple[int, int, int, int]
    """Top, left, height h and width w of the erased part; 0 without."""
    noise: Tensor
    """float32 [3 * h * w]: the normalized pixels of the erased part."""


class LabeledBatch(NamedTuple):
    """The images of one forward pass of this process."""

    pixels: Tensor
    """uint8 [b, 3, S, S]."""
    boxes: Tensor
    """int64 [b, 4], on the CPU: each crop's `box`."""
    noise: Tensor
    """float32: the crops' `noise`, one after another."""
    labels: Tensor
    """int64 [b]."""
    slots: Tensor
    """int64 [b]: each image's slot in the global batch."""

    def images(self, mean: Triple, std: Triple, device: torch.device) -> Tensor:
        """Normalized images float32 [b, 3, S, S] on the device, with the bits of timm's transforms on the CPU."""
        average, deviation = statistics(mean, std, device)
        images = sent(self.pixels, device).sub_(average).div_(deviation)
        boxes = self.boxes.tolist()
        parts = moved(self.noise, device).split([3 * height * width for _, _, height, width in boxes])
        for image, (top, left, height, width), noise in zip(images, boxes, parts, strict=True):
            if len(noise):
                image[:, top : top + height, left : left + width] = noise.view(3, height, width)
        return images


class PairedPlan(Plan):
    """The plan of a run that mixes pairs of images: slots p and B - 1 - p of a batch.

    A share has a range of slots and their mirrored slots, so pairs and results do not depend on the number of shares.
    The batch size B is at most the number of images.

    Raises:
        ValueError: the batch cannot be shared evenly in pairs.
    """

    def __init__(self, n_images: int, config: FinetuneConfig, world: World, seed: int) -> None:
        shares = world.size * config.accumulate
        unit = 2 * shares if shares > 1 else 1
        if config.batch_size % unit:
            raise ValueError(
                f"batch_size is {config.batch_size}, expected a multiple of {unit}: {world.size} process(es) x "
                f"{config.accumulate} part(s) each take pairs of images."
            )
        batch = min(config.batch_size, n_images - n_images % unit)
        if not batch:
            raise ValueError(f"{n_images} training image(s) are too few for {shares} shares of pairs: {unit}.")
        super().__init__(n_images, batch, config.epochs, world, config.accumulate, seed, config.max_steps)
        self.repeats = config.repeats

    def order(self, epoch: int) -> list[int]:
        """The order of images in `epoch`, of the length of the data set; repeats of an image are adjacent."""
        return [image for image in super().order(epoch) for _ in range(self.repeats)][: self.n_images]

    def slots(self, share: int) -> list[int]:
        """The slots of one share: mirrored around its middle."""
        half = self.batch_size // 2 // self.shares
        front = list(range(share * half, (share + 1) * half))
        middle = [self.batch_size // 2] if self.batch_size % 2 else []
        return front + middle + [self.batch_size - 1 - slot for slot in reversed(front)]


class TrainingImages(Dataset[tuple[Crop, int, int]]):
    """Maps a position in the plan to an augmented crop, its label and its slot."""

    def __init__(self, images: LabeledImages, transform: Callable[[Image.Image], Crop], seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, position: Position) -> tuple[Crop, int, int]:
        picture = read_rgb(self.images.paths[position.image])
        with seeded(derive_seed(AUGMENTATION, self.seed, position.epoch, position.turn)):
            return self.transform(picture), self.images.labels[position.image], position.slot


class TrainingTransform:
    """PIL image -> crop, by timm as in DeiT: all but the last steps, which `LabeledBatch.images` does on the device."""

    def __init__(self, config: FinetuneConfig, mean: Triple) -> None:
        crop, _, to_bytes = create_transform(
            input_size=config.crop,
            is_training=True,
            scale=config.crop_scale,
            hflip=config.flip,
            color_jitter=None,  # as in DeiT with RandAugment
            interpolation="bicubic",
            normalize=False,
            separate=True,
        )
        self.crop = Compose([crop, *_randaugment(config, mean), to_bytes])
        self.erase = RandomErasing(config.erasing, mode="pixel", device="cpu") if config.erasing else None

    def __call__(self, picture: Image.Image) -> Crop:
        """Draws from the global generators."""
        pixels = self.crop(picture).contiguous()  # the layout decides which convolution is taken
        erased = _Erased(pixels.shape)
        if self.erase:
            self.erase(erased)
        return Crop(pixels, erased.box, erased.noise)


class _Erased:
    """Stands for a normalized image, and keeps what timm's RandomErasing writes into it."""

    dtype = torch.float32

    def __init__(self, shape: torch.Size) -> None:
        self.shape, self.box, self.noise = shape, (0, 0, 0, 0), torch.empty(0)

    def size(self) -> torch.Size:
        return self.shape

    def __setitem__(self, index: tuple[slice, slice, slice], noise: Tensor) -> None:
        _, rows, columns = index
        self.box = (rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
        self.noise = noise.flatten()


def _randaugment(config: FinetuneConfig, mean: Triple) -> list[Callable[[Image.Image], Image.Image]]:
    """timm's RandAugment, with the constants of its `create_transform`."""
    if config.randaugment is None:
        return []
    constants = {
        "translate_const": int(0.45 * config.crop),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
        "interpolation": Image.Resampling.BICUBIC,
        # At magnitude 10, timm posterizes to 0 bits (black), which newer versions of Pillow refuse.
        "magnitude_max": 9.99,
    }
    return [rand_augment_transform(config.randaugment, constants)]


def image_of(position: Position) -> int:
    """Index into the training images."""
    return position.image


def collate(samples: list[tuple[Crop, int, int]]) -> LabeledBatch:
    """Stack each field to a tensor."""
    crops, labels, slots = zip(*samples, strict=True)
    pixels, boxes, noise = zip(*crops, strict=True)
    return LabeledBatch(
        torch.stack(pixels), torch.tensor(boxes), torch.cat(noise), torch.tensor(labels), torch.tensor(slots)
    )


def training_loader(
    dataset: TrainingImages, plan: Plan, start_step: int, workers: int | None, pin_memory: bool
) -> Generator[LabeledBatch]:
    """The micro-batches from `start_step` to the end of the run. Workers do not restart between epochs.

    Raises:
        LostWorkerError: a worker died.
        ValueError, OSError: an image is unreadable.
    """
    paths = dataset.images.paths
    return read_items(
        dataset,
        WorkerItems(workers, lambda image: str(paths[image])),
        index=image_of,
        collate=collate,
        batch_sampler=PlanSampler(plan, start_step),
        pin_memory=pin_memory,
        generator=torch.Generator(),  # the loader draws its workers' seed from it, not from the global generator
    )
