"""Image-level features of a frozen backbone, extracted once and kept on disk."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tqdm import tqdm

from data.images import read_rgb
from data.sample import cache_folder
from dino_dense import Backbone, distributed
from dino_dense.checkpoint import CheckpointError, read_tensors, write_tensors


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side, then cut the middle square, as for ImageNet evaluation (pixels)."""

    resize: int = 256
    crop: int = 224

    def transform(self) -> v2.Compose:
        """PIL image -> float RGB [3, crop, crop] in [0, 1]."""
        return v2.Compose(
            [
                v2.Resize(self.resize, interpolation=v2.InterpolationMode.BICUBIC),
                v2.CenterCrop(self.crop),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
            ]
        )


class _Images(Dataset):
    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing) -> None:
        self.paths, self.transform = paths, preprocessing.transform()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(read_rgb(self.paths[index]))


def image_features(
    backbone: Backbone,
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    *,
    world: distributed.World,
    batch_size: int = 64,
    workers: int = 0,
    label: str = "features",
) -> Tensor:
    """Class-token features [N, C] of images, float32 on the CPU, in the order of `paths`.

    They are read from the cache when it holds this checkpoint, these files (path, size, time of change) and this
    preprocessing; else extracted, by all processes together, and kept there.

    Raises:
        DataError: an image cannot be read; the message names it.
    """
    cached = _cache_file(backbone, paths, preprocessing)
    if cached.is_file():
        try:
            return read_tensors(cached)[0]["cls"]
        except (CheckpointError, KeyError):
            pass  # damaged: extract again
    features = _extract(backbone, paths, preprocessing, world, batch_size, workers, label)
    if world.is_main:
        write_tensors(cached, {"cls": features}, {"checkpoint": backbone.sha256, "name": backbone.name})
    return features


def _extract(
    backbone: Backbone,
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    world: distributed.World,
    batch_size: int,
    workers: int,
    label: str,
) -> Tensor:
    share = -(-len(paths) // world.size)  # every process does as many; the last ones repeat the final image
    mine = [paths[min(index, len(paths) - 1)] for index in range(world.rank * share, (world.rank + 1) * share)]
    loader = DataLoader(_Images(mine, preprocessing), batch_size, num_workers=workers)
    parts = []
    with tqdm(total=len(mine), unit="image", desc=label, disable=not world.is_main) as bar:
        for images in loader:
            cls = backbone.extract(images.to(backbone.device), {"cls"}).cls
            assert cls is not None
            parts.append(cls)
            bar.update(len(images))
    return distributed.all_gather(torch.cat(parts))[: len(paths)].cpu()


def _cache_file(backbone: Backbone, paths: Sequence[Path], preprocessing: Preprocessing) -> Path:
    """Where these features live: the name is a hash of all they depend on."""
    digest = hashlib.sha256()
    facts = {
        "weights": backbone.weights_sha256,
        "architecture": backbone.name,
        "pixels": [backbone.mean, backbone.std],
        "dtype": str(backbone.dtype),
        "device": backbone.device.type,
        "preprocessing": asdict(preprocessing),
    }
    digest.update(json.dumps(facts, sort_keys=True).encode())
    for path in paths:
        status = path.stat()
        digest.update(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return cache_folder() / "features" / f"{digest.hexdigest()[:32]}.safetensors"
