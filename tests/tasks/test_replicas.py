"""Layers that several processes train alike: each process measures the main process's layer, bit for bit."""

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dino_dense import load_backbone
from dino_dense.distributed import World
from dino_dense.probes import depth_training, pixels
from dino_dense.probes.protocol import DepthProbe, PixelProbe
from tests.data.test_segmentation import halves, make_tree

BACKBONE = "random:vit_micro_patch8_32"
PROCESSES = 2
Job = Callable[[World, Path], list[torch.Tensor]]


def drifting(step: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A step after which each process's layer differs a little, as sums without a fixed order make it."""

    def run(head: torch.nn.Module, *arguments: Any) -> torch.Tensor:
        loss = step(head, *arguments)
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.add_(1e-3 * dist.get_rank())
        return loss

    return run


def train_pixels(world: World, folder: Path) -> list[torch.Tensor]:
    """The weights that were scored, then the trained layer's."""
    from tasks.semantic.options import LabeledImages
    from tasks.semantic.splits import open_splits

    pixels.head_step = drifting(pixels.head_step)
    config = PixelProbe(steps=4, crop=32, batch_size=2, stride=16, evaluations=2, augment=False)
    scored: list[torch.Tensor] = []

    def score(head: pixels.LinearHead) -> float:
        scored.append(head[1].weight.detach().clone())
        return float(len(scored))

    trained = pixels.train_head(
        load_backbone(BACKBONE),
        config,
        open_splits(LabeledImages(data=str(folder / "voc"))).train,
        2,
        state=folder / f"{world.rank}.safetensors",
        world=world,
        seed=0,
        workers=0,
        score=score,
    )
    return [*scored, *trained.head.state_dict().values()]


class Steps:
    """A picture with its depth."""

    name = "steps"

    def read(self) -> tuple[Any, Any]:
        """RGB 32 x 32, and 1 to 2 meters."""
        import numpy as np
        from PIL import Image

        return Image.new("RGB", (32, 32), (90, 30, 200)), np.linspace(1, 2, 1024, dtype=np.float32).reshape(32, 32)


def train_meters(world: World, folder: Path) -> list[torch.Tensor]:
    """The trained head's weights."""
    depth_training.depth_step = drifting(depth_training.depth_step)
    config = DepthProbe(steps=2, crop=(32, 32), batch_size=2, augment=False, border=(0, 0, 640, 480))
    head, _ = depth_training.train_depth(
        *(load_backbone(BACKBONE), config, [Steps(), Steps()]),
        **{"state": folder / f"{world.rank}.safetensors", "world": world, "seed": 0, "workers": 0},
    )
    return list(head.state_dict().values())


def take_part(job: Job, rank: int, folder: Path) -> None:
    """One of the processes: does the job, and writes its tensors."""
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), PROCESSES)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=PROCESSES)
    torch.save(job(World(rank, rank, PROCESSES), folder), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("job", [train_pixels, train_meters])
def test_every_process_measures_the_main_processs_layer(job: Job, tmp_path: Path):
    make_tree(tmp_path / "voc", {"train": {"a": halves(0, 1), "b": halves(1, 0)}, "val": {"v": halves(0, 1)}})
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=take_part, args=(job, rank, tmp_path)) for rank in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    main, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(PROCESSES))
    assert len(main) == len(other)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(main, other, strict=True))
