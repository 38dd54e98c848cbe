"""The images of each optimizer step, their order, and their division among processes.

All are pure functions of (seed, step), independent of workers, processes and resumes.

Shapes: B images per optimizer step over all processes, b images in one micro-batch of one process.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch.utils.data import Sampler

from dino_dense.distributed import World
from dino_dense.training import seeds


class Position(NamedTuple):
    """One image of one step."""

    epoch: int
    turn: int
    """Its index in the order of the epoch."""
    image: int
    """Index into the images."""
    slot: int
    """Its index in the global batch, in [0, B)."""


class Groups(Protocol):
    """How images lie together in files that are read in groups, such as the row groups of Parquet."""

    @property
    def sizes(self) -> Sequence[int]:
        """Images of each group; the first group has the first images."""

    @property
    def window(self) -> int:
        """Groups to shuffle together."""


class Plan:
    """Order, batches and shares. A process's share of a batch is a range of slots, cut into `accumulate` micro-batches.

    Args:
        n_images: number of images.
        batch_size: B.
        epochs: passes over the images, each without its last incomplete batch.
        world: the processes.
        accumulate: micro-batches per step in each process.
        seed: seed of the order.
        max_steps: stop after this many optimizer steps.
        groups: shuffle groups of images instead of all images, so that a group is read few times.

    Raises:
        ValueError: the images do not fill a batch, or the batch does not divide evenly.
    """

    def __init__(
        self,
        n_images: int,
        batch_size: int,
        epochs: int,
        world: World,
        accumulate: int = 1,
        seed: int = 0,
        max_steps: int | None = None,
        groups: Groups | None = None,
    ) -> None:
        self.shares = world.size * accumulate
        if batch_size % self.shares:
            raise ValueError(
                f"batch_size is {batch_size}, which {world.size} process(es) x {accumulate} micro-batch(es) cannot "
                f"share evenly: use a multiple of {self.shares}"
            )
        if n_images < batch_size:
            raise ValueError(
                f"{n_images} image(s) do not fill one batch of {batch_size}: lower --batch-size, or add images"
            )
        self.n_images, self.batch_size, self.seed, self.groups = n_images, batch_size, seed, groups
        self.rank, self.accumulate = world.rank, accumulate
        self.steps_per_epoch = n_images // batch_size
        self.total_steps = epochs * self.steps_per_epoch
        self.last_step = min(self.total_steps, max_steps or self.total_steps)

    def order(self, epoch: int) -> list[int]:
        """The permutation of all images in `epoch`.

        With groups: the groups are permuted, then the images of each `window` successive groups.
        """
        generator = seeds.generator(seeds.ORDER, self.seed, epoch)
        if self.groups is None:
            return torch.randperm(self.n_images, generator=generator).tolist()
        by_group = torch.arange(self.n_images).split(list(self.groups.sizes))
        order, window = torch.randperm(len(by_group), generator=generator).tolist(), self.groups.window
        windows = [torch.cat([by_group[i] for i in order[at : at + window]]) for at in range(0, len(order), window)]
        return torch.cat([part[torch.randperm(len(part), generator=generator)] for part in windows]).tolist()

    def slots(self, share: int) -> Sequence[int]:
        """The slots of one of the `shares` micro-batches of a step."""
        size = self.batch_size // self.shares
        return range(share * size, (share + 1) * size)

    def images(self, step: int) -> list[int]:
        """The images of one step of all processes, by slot."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return self.order(epoch)[batch * self.batch_size :][: self.batch_size]

    def micro_batches(self, start_step: int) -> Iterator[list[Position]]:
        """This process's micro-batches from `start_step` to the end, `accumulate` per step."""
        order, order_epoch = [], -1
        for step in range(start_step, self.last_step):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = self.order(epoch), epoch
            first = batch * self.batch_size
            for micro in range(self.accumulate):
                slots = self.slots(self.rank * self.accumulate + micro)
                yield [Position(epoch, first + slot, order[first + slot], slot) for slot in slots]


class PlanSampler(Sampler[list[Position]]):
    """A plan from a step on, as a sampler for torch's loader."""

    def __init__(self, plan: Plan, start_step: int) -> None:
        self.plan, self.start_step = plan, start_step

    def __iter__(self) -> Iterator[list[Position]]:
        return self.plan.micro_batches(self.start_step)

    def __len__(self) -> int:
        return (self.plan.last_step - self.start_step) * self.plan.accumulate
