"""The crops of each micro-batch, read and cut in loader processes.

Shapes: B images per optimizer step over all processes, b images in one micro-batch of one process, n local crops.
"""

import math
from collections.abc import Generator
from itertools import chain
from typing import NamedTuple, Protocol, runtime_checkable

import cv2
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from dino_dense.arrays import Pixels
from dino_dense.distributed import World
from dino_dense.loaders import WorkerItems, read_items
from dino_dense.pretrain import streams
from dino_dense.pretrain.bad_samples import BadSample
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.crops import EncodedPicture, MultiCrop, View
from dino_dense.pretrain.photometric import PARAMETERS
from dino_dense.training.plan import Groups, Plan, PlanSampler, Position
from dino_dense.training.seeds import derive_seed
from dino_dense.training.signals import leave_signals_to_parent

SUBSTITUTES = 16
"""Replacements tried for a bad image. If 1 % of the images are bad, all of them are with probability 1e-32."""


class ImageSource(Protocol):
    """An indexable set of pictures to train on."""

    @property
    def fingerprint(self) -> str:
        """Identifies the pictures: a run resumes only with the same pictures."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> EncodedPicture: ...

    def name(self, index: int) -> str:
        """Name of a picture in messages."""


@runtime_checkable
class GroupedSource(Protocol):
    """Pictures that are read in groups."""

    @property
    def read_groups(self) -> Groups:
        """How they lie together, for the order of an epoch."""


class MicroBatch(NamedTuple):
    """The images of one forward pass of this process."""

    global_views: Tensor
    """uint8 [2*b, 3, G, G], view-major, channels last in memory."""
    local_views: Tensor
    """uint8 [n*b, 3, L, L], in the same order; empty without local crops."""
    global_photometric: Tensor
    """[2*b, PARAMETERS]: photometric parameters to apply on the device; [0, PARAMETERS] if the loader applied them."""
    local_photometric: Tensor
    """[n*b, PARAMETERS] or [0, PARAMETERS], the same for local views."""
    larger_views: Tensor
    """uint8 [2*b, 3, H, H]: the global views at a larger size, in their order; [0, 3, 0, 0] if no objective uses them
    in this step."""
    larger_photometric: Tensor
    """[2*b, PARAMETERS] or [0, PARAMETERS], the same for larger views."""
    slots: Tensor
    """int64 [b]: each image's slot in the global batch."""
    bad: list[BadSample]
    """Unreadable images, which other images have replaced."""


def pretraining_plan(n_images: int, config: PretrainConfig, world: World, groups: Groups | None = None) -> Plan:
    """The run's plan; ValueError if the pictures do not fill a batch, or the batch does not divide evenly."""
    lengths = config.epochs, world, config.accumulate, config.seed, config.max_steps
    return Plan(n_images, config.batch_size, *lengths, groups=groups)


class CropDataset(Dataset[MicroBatch]):
    """Maps the positions of a micro-batch to its crops, written directly into one tensor per resolution.

    Crops stay uint8 up to the training device: a quarter of the bytes between processes. An unreadable picture is
    replaced, or raises its ValueError or OSError.
    """

    def __init__(self, images: ImageSource, config: PretrainConfig, worker_items: WorkerItems | None = None) -> None:
        self.images, self.batch_size = images, config.batch_size
        self.crop = MultiCrop(config, config.larger_crops)
        self.seed = config.seed
        self.skips = config.on_bad_sample == "skip"
        self.worker_items = worker_items or WorkerItems(0, images.name)

    def __getitem__(self, positions: list[Position]) -> MicroBatch:
        b, sizes = len(positions), [kind.size for kind in self.crop.kinds]
        larger_sizes = self._larger_sizes(positions[0])
        by_size = [_empty_views(b, of_group) for of_group in (sizes[:2], sizes[2:], larger_sizes)]
        by_view = [pixels for views in by_size for pixels in views.numpy()]  # V or V + 2 times [b, S, S, 3]
        read, bad = list[list[View]](), list[BadSample]()
        for i, position in enumerate(positions):
            read.append(self._read(position, [pixels[i] for pixels in by_view], bad))
        changed = read if larger_sizes and self.crop.larger and self.crop.larger.photometric else []
        larger = [[self.crop.larger_view(view) for view in views[:2]] for views in changed]
        global_views, local_views, larger_views = (views.flatten(0, 1).permute(0, 3, 1, 2) for views in by_size)
        return MicroBatch(
            global_views,
            local_views,
            self._photometric([views[:2] for views in read]),
            self._photometric([views[2:] for views in read]),
            larger_views,
            self._photometric(larger),
            torch.tensor([position.slot for position in positions]),
            bad,
        )

    def _larger_sizes(self, position: Position) -> list[int]:
        """The sizes of the larger crops in the step of this position: two, or none."""
        larger = self.crop.larger
        step = position.epoch * (len(self.images) // self.batch_size) + position.turn // self.batch_size
        return [] if larger is None or step < larger.begin else [larger.size] * 2

    def _photometric(self, by_image: list[list[View]]) -> Tensor:
        """Views of each image -> view-major parameters to apply on the device; [0, PARAMETERS] if the loader does."""
        left = [] if self.crop.applies_photometric else by_image
        rows = [view.photometric.row() for view in chain(*zip(*left, strict=True))]
        return torch.tensor(rows).view(-1, PARAMETERS)

    def _read(self, position: Position, pixels: list[Pixels], bad: list[BadSample]) -> list[View]:
        """Write the crops of one position, from a replacement if its image is bad.

        The replacement and its crops are drawn from (seed, epoch, image) only: the batch keeps its size, and does not
        depend on workers, processes or resumes.
        """
        epoch, image = position.epoch, position.image
        seed, chosen, reason = derive_seed(streams.CROPS, self.seed, epoch, image), image, ""
        for attempt in range(SUBSTITUTES + 1):
            try:
                views = self._crop(chosen, seed, pixels)
            except ConnectionError:
                raise  # of a server: it may answer after a resume, and another picture would make another run
            except (ValueError, OSError) as error:
                if not self.skips or attempt == SUBSTITUTES:
                    raise
                reason = reason or str(error)
                seed = derive_seed(streams.SUBSTITUTES, self.seed, epoch, image, attempt)
                chosen = seed % len(self.images)
            else:
                break
        if chosen != image:
            bad.append(BadSample(image, chosen, reason))
        return views

    def _crop(self, image: int, seed: int, pixels: list[Pixels]) -> list[View]:
        with self.worker_items.reading(image):
            picture = self.images[image]
            views = self.crop.draw(picture.size, seed)
            self.crop.render(picture, views, pixels[: len(views)], pixels[len(views) :])
        return views


def _empty_views(b: int, sizes: list[int]) -> Tensor:
    """Empty views of one size, uint8 [V, b, S, S, 3]; in a worker, in memory shared with the parent process."""
    size = max(sizes, default=0)
    shape = (len(sizes), b, size, size, 3)
    if get_worker_info() is None or not math.prod(shape):
        return torch.empty(shape, dtype=torch.uint8)
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(math.prod(shape))).view(shape)


def build_loader(
    images: ImageSource, plan: Plan, start_step: int, config: PretrainConfig, workers: int, pin_memory: bool
) -> Generator[MicroBatch]:
    """The micro-batches from `start_step` to the end of the run. Workers do not restart between epochs.

    Raises:
        LostWorkerError: a worker died.
        ValueError, OSError: an unreadable picture, with on_bad_sample = raise.
    """
    worker_items = WorkerItems(workers, images.name, "--num-workers")
    return read_items(
        CropDataset(images, config, worker_items),
        worker_items,
        index=None,
        set_up=set_up_worker,
        batch_size=None,  # an item is a whole micro-batch
        sampler=PlanSampler(plan, start_step),
        pin_memory=pin_memory,
        # The loader draws a seed for its workers, which is unused; this keeps the global generator unchanged.
        generator=torch.Generator().manual_seed(config.seed),
    )


def set_up_worker(worker: int) -> None:
    """Use one thread, since there are many workers; leave signals to the training process."""
    cv2.setNumThreads(0)
    leave_signals_to_parent(worker)
