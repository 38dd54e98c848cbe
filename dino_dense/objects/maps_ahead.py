"""Maps of many images: read ahead in threads, extracted in batches of one size."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import TypeVar

import torch
from torch import Tensor

from dino_dense import Backbone
from dino_dense.pipeline import in_batches, read_ahead

Item = TypeVar("Item")
Given = TypeVar("Given")
Maps = TypeVar("Maps")

GPU_BATCH = 8  # images of one size extracted at once


READERS = 2  # threads that read images


def _shape(image: Tensor) -> object:
    return image.shape


def maps_ahead(
    items: Iterable[Item],
    read: Callable[[Item], Given],
    prepare: Callable[[Given], Tensor],
    extract: Callable[[Tensor], Iterable[Maps]],
    batch_size: int,
    *,
    size: Callable[[Tensor], object] = _shape,
    join: Callable[[list[Tensor]], Tensor] = torch.stack,
) -> Iterator[tuple[Item, Given, Maps]]:
    """Yield (item, content, maps) in order: read ahead in threads, extracted in batches of one size.

    Args:
        read: item -> content of its files. Runs in worker threads: avoid torch here, it would start its own thread
            pool.
        prepare: content -> image uint8 [3, H, W].
        extract: images [B, 3, H, W], uint8 unless `join` changes them -> maps [B, ...], or what is computed from
            them for each image.
        batch_size: largest number of images extracted at once; a batch has consecutive images of equal size.
        size: what the images of a batch have in common.
        join: images of a batch -> one tensor.
    """

    def read_one(item: Item) -> tuple[Item, Given]:
        return item, read(item)

    with closing(read_ahead(read_one, items, ahead=2 * batch_size, workers=READERS)) as contents:
        prepared = ((item, content, prepare(content)) for item, content in contents)
        for batch in in_batches(prepared, lambda entry: size(entry[2]), batch_size):
            maps = extract(join([image for _, _, image in batch]))
            yield from ((item, content, image_maps) for (item, content, _), image_maps in zip(batch, maps, strict=True))


def default_batch(backbone: Backbone) -> int:
    """The default batch size: 1 on a CPU, which gains nothing from larger batches."""
    return 1 if backbone.on_cpu else GPU_BATCH
