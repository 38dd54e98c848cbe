"""Batches as a pure function of (seed, step): whatever the workers, the processes, or where the run was
resumed.

Shapes: B images per optimizer step over all processes, b images in one micro-batch of one process, n local
crops.
"""

import signal
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dino_dense.distributed import World
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.crops import MultiCrop, derive_seed

ORDER_STREAM, CROP_STREAM, DROP_PATH_STREAM = range(3)
"""First number of a seed's key, so that order, crops and drop path never share random numbers."""


class ImageSource(Protocol):
    """What pretraining reads: any indexable set of RGB pictures."""

    @property
    def fingerprint(self) -> str:
        """Changes when the pictures do: a run is only resumed on the pictures it began with."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Image.Image: ...


class Position(NamedTuple):
    """One image of one step."""

    epoch: int
    image: int
    """Index into the source."""
    place: int
    """Position in the global batch, in [0, B)."""


class MicroBatch(NamedTuple):
    """One forward's worth of images, on this process."""

    global_views: Tensor
    """uint8 [2*b, 3, G, G], view-major."""
    local_views: Tensor
    """uint8 [n*b, 3, L, L], view-major; empty without local crops."""
    places: Tensor
    """int64 [b]: each image's position in the global batch."""


class Plan:
    """Which images each optimizer step sees, and in which order.

    Raises ValueError when the pictures do not fill one batch, or the batch does not divide evenly.
    """

    def __init__(self, n_images: int, config: PretrainConfig, world: World) -> None:
        share = world.size * config.accumulate
        if config.batch_size % share:
            raise ValueError(
                f"batch_size is {config.batch_size}, which {world.size} process(es) x {config.accumulate} "
                f"micro-batch(es) cannot share evenly: use a multiple of {share}"
            )
        if n_images < config.batch_size:
            raise ValueError(
                f"{n_images} image(s) do not fill one batch of {config.batch_size}: lower --batch-size, or add images"
            )
        self.n_images = n_images
        self.batch_size = config.batch_size
        self.micro_size = config.batch_size // share
        self.accumulate = config.accumulate
        self.rank = world.rank
        self.seed = config.seed
        self.steps_per_epoch = n_images // config.batch_size
        total = config.epochs * self.steps_per_epoch
        self.last_step = min(total, config.max_steps or total)

    def order(self, epoch: int) -> list[int]:
        """The permutation of all images that `epoch` walks through; the last incomplete batch is left out."""
        generator = torch.Generator().manual_seed(derive_seed(ORDER_STREAM, self.seed, epoch))
        return torch.randperm(self.n_images, generator=generator).tolist()

    def micro_batches(self, start_step: int) -> Iterator[list[Position]]:
        """This process's micro-batches from `start_step` to the end, `accumulate` per step."""
        order, order_epoch = [], -1
        for step in range(start_step, self.last_step):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = self.order(epoch), epoch
            for micro in range(self.accumulate):
                first = (self.rank * self.accumulate + micro) * self.micro_size
                places = range(first, first + self.micro_size)
                yield [Position(epoch, order[batch * self.batch_size + place], place) for place in places]


class StepPlan(Protocol):
    """What a training run of any kind does step by step."""

    last_step: int
    accumulate: int

    def micro_batches(self, start_step: int) -> Iterator[list[Any]]:
        """Positions of this process's micro-batches, `accumulate` a step, from `start_step` to `last_step`."""


class PlanSampler(Sampler[list[Any]]):
    """A plan from one step on, as torch's loader wants it."""

    def __init__(self, plan: StepPlan, start_step: int) -> None:
        self.plan, self.start_step = plan, start_step

    def __iter__(self) -> Iterator[list[Any]]:
        return self.plan.micro_batches(self.start_step)

    def __len__(self) -> int:
        return (self.plan.last_step - self.start_step) * self.plan.accumulate


class Sample(NamedTuple):
    """One image's crops, and its place in the global batch."""

    crops: list[Tensor]
    place: int


class CropDataset(Dataset[Sample | Exception]):
    """A position in the plan -> that image's crops.

    An unreadable picture gives the error itself, which the training process raises: torch's loader would bury
    its message in the worker's traceback.
    """

    def __init__(self, images: ImageSource, config: PretrainConfig) -> None:
        self.images = images
        self.crop = MultiCrop(config)
        self.seed = config.seed

    def __getitem__(self, position: Position) -> Sample | Exception:
        seed = derive_seed(CROP_STREAM, self.seed, position.epoch, position.image)
        try:
            return Sample(self.crop(self.images[position.image], seed), position.place)
        except (ValueError, OSError) as error:
            return error


def collate(samples: list[Sample | Exception]) -> MicroBatch | Exception:
    """Crops of b images -> one tensor per resolution, view-major; or the first error among them."""
    good = [sample for sample in samples if isinstance(sample, Sample)]
    for sample in samples:
        if isinstance(sample, Exception):
            return sample
    views = list(zip(*(sample.crops for sample in good), strict=True))  # views x images
    local_views = [crop for view in views[2:] for crop in view]
    return MicroBatch(
        torch.stack([crop for view in views[:2] for crop in view]),
        torch.stack(local_views) if local_views else torch.empty(0, 3, 0, 0, dtype=torch.uint8),
        torch.tensor([sample.place for sample in good]),
    )


def build_loader(
    images: ImageSource, plan: Plan, start_step: int, config: PretrainConfig, workers: int, pin_memory: bool
) -> DataLoader[MicroBatch | Exception]:
    """One loader for the whole run from `start_step` on: its workers never restart between epochs."""
    return DataLoader(
        CropDataset(images, config),  # type: ignore[arg-type]
        batch_sampler=PlanSampler(plan, start_step),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        worker_init_fn=leave_signals_to_parent,
        # The loader draws a seed for its workers; nothing here uses it, and the global generator is left
        # alone.
        generator=torch.Generator().manual_seed(config.seed),
    )


def leave_signals_to_parent(_worker: int) -> None:
    """Ctrl-C, and torchrun's SIGTERM, reach the whole process group; only the training process is to act on them.

    A worker ends when the training process tells it to, or is gone.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
