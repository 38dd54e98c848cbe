"""Which training images each step sees, and as what crops.

Shapes: B images a step over all processes, b in one micro-batch of one process.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose

from data.images import LabelledImages, read_rgb
from dino_dense.backbone.backbone import Triple
from dino_dense.distributed import World
from dino_dense.pretrain.batches import PlanSampler, leave_signals_to_parent
from dino_dense.pretrain.crops import derive_seed
from tasks.finetuning.config import FinetuneConfig
from tasks.finetuning.draws import AUGMENTATION, ORDER, seeded


class Position(NamedTuple):
    """One image of one step."""

    epoch: int
    turn: int
    """Its number in the epoch: what its augmentation is drawn from."""
    image: int
    """Index into the training images."""
    place: int
    """Its place in the batch of all processes, in [0, B)."""


class MicroBatch(NamedTuple):
    """One forward's worth of images, on this process."""

    images: Tensor
    """float32 [b, 3, S, S], normalised."""
    labels: Tensor
    """int64 [b]."""
    places: Tensor
    """int64 [b]: each image's place in the batch of all processes."""


class Plan:
    """Order, batches, and who takes what: a function of (seed, step), whatever the workers and processes.

    Mixing pairs the places p and B - 1 - p of a batch. A share therefore is a run of places and their mirror images,
    so that pairs, and with them the result, do not depend on the number of shares.

    Attributes:
        batch: B, the batch size; all images where there are fewer.
        steps_per_epoch: the last incomplete batch is left out, as in DeiT.
        last_step: optimizer steps in all.

    Raises:
        ValueError: the batch cannot be shared evenly in pairs.
    """

    def __init__(self, n_images: int, config: FinetuneConfig, world: World, seed: int) -> None:
        self.shares = world.size * config.accumulate
        unit = 2 * self.shares if self.shares > 1 else 1
        if config.batch_size % unit:
            raise ValueError(
                f"batch_size is {config.batch_size}, expected a multiple of {unit}: {world.size} process(es) x "
                f"{config.accumulate} part(s) each take pairs of images."
            )
        self.batch = min(config.batch_size, n_images - n_images % unit)
        if not self.batch:
            raise ValueError(f"{n_images} training image(s) are too few for {self.shares} shares of pairs: {unit}.")
        self.n_images, self.repeats, self.seed = n_images, config.repeats, seed
        self.rank, self.accumulate = world.rank, config.accumulate
        self.steps_per_epoch = n_images // self.batch
        self.total_steps = config.epochs * self.steps_per_epoch
        self.last_step = min(self.total_steps, config.max_steps or self.total_steps)

    def order(self, epoch: int) -> list[int]:
        """The images that `epoch` walks through, as many as there are; repeats follow each other."""
        generator = torch.Generator().manual_seed(derive_seed(ORDER, self.seed, epoch))
        shuffled = torch.randperm(self.n_images, generator=generator)
        return shuffled.repeat_interleave(self.repeats)[: self.n_images].tolist()

    def places(self, share: int) -> list[int]:
        """The places of one share: mirrored around its middle."""
        half = self.batch // 2 // self.shares
        front = list(range(share * half, (share + 1) * half))
        middle = [self.batch // 2] if self.batch % 2 else []
        return front + middle + [self.batch - 1 - place for place in reversed(front)]

    def micro_batches(self, start_step: int) -> Iterator[list[Position]]:
        """This process's micro-batches from `start_step` to the end, `accumulate` a step."""
        order, order_epoch = [], -1
        for step in range(start_step, self.last_step):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = self.order(epoch), epoch
            first = batch * self.batch
            for part in range(self.accumulate):
                places = self.places(self.rank * self.accumulate + part)
                yield [Position(epoch, first + place, order[first + place], place) for place in places]


class TrainingImages(Dataset[tuple[Tensor, int, int] | Exception]):
    """A position in the plan -> the augmented image [3, S, S], its label, its place.

    An unreadable image gives the error itself, which the training process raises: torch's loader would bury its
    message in the worker's traceback.
    """

    def __init__(self, images: LabelledImages, transform: Callable[[Image.Image], Tensor], seed: int) -> None:
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, position: Position) -> tuple[Tensor, int, int] | Exception:
        try:
            picture = read_rgb(self.images.paths[position.image])
        except (ValueError, OSError) as error:
            return error
        with seeded(derive_seed(AUGMENTATION, self.seed, position.epoch, position.turn)):
            return self.transform(picture), self.images.labels[position.image], position.place


def training_transform(config: FinetuneConfig, mean: Triple, std: Triple) -> Callable[[Image.Image], Tensor]:
    """PIL image -> normalised crop [3, S, S], through timm as DeiT has it."""
    crop, _, finish = create_transform(
        input_size=config.crop,
        is_training=True,
        scale=config.crop_scale,
        hflip=config.flip,
        color_jitter=None,  # DeiT leaves it out where there is RandAugment
        interpolation="bicubic",
        mean=mean,
        std=std,
        re_prob=config.erasing,
        re_mode="pixel",
        separate=True,
    )
    return Compose([crop, *_randaugment(config, mean), finish])


def _randaugment(config: FinetuneConfig, mean: Triple) -> list[Callable[[Image.Image], Image.Image]]:
    """timm's, with the constants that its `create_transform` gives it."""
    if config.randaugment is None:
        return []
    constants = {
        "translate_const": int(0.45 * config.crop),
        "img_mean": tuple(min(255, round(255 * value)) for value in mean),
        "interpolation": Image.Resampling.BICUBIC,
        # At 10, timm posterizes to 0 bits, black, which newer versions of Pillow refuse.
        "magnitude_max": 9.99,
    }
    return [rand_augment_transform(config.randaugment, constants)]


def collate(samples: list[tuple[Tensor, int, int] | Exception]) -> MicroBatch | Exception:
    """One tensor a field; or the first error among the samples."""
    good = []
    for sample in samples:
        if isinstance(sample, Exception):
            return sample
        good.append(sample)
    images, labels, places = zip(*good, strict=True)
    return MicroBatch(torch.stack(images), torch.tensor(labels), torch.tensor(places))


def training_loader(
    dataset: TrainingImages, plan: Plan, start_step: int, workers: int, pin_memory: bool
) -> DataLoader[MicroBatch | Exception]:
    """One loader for the whole run from `start_step` on: its workers never restart between epochs."""
    return DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=PlanSampler(plan, start_step),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),  # the loader draws a seed for its workers, from here and not the global one
    )
