"""Memory over thousands of training steps and hundreds of propagated frames: the slope of a straight line."""

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from data.pretraining import open_pretraining_data
from dino_dense.distributed import World
from dino_dense.pretrain.monitor import Monitor
from dino_dense.pretrain.trainer import Trainer
from dino_dense.propagation.protocol import PropagationProtocol
from dino_dense.propagation.stream import LabelPropagator
from tests.pretrain.tiny_run import TINY, write_pictures

PAGES = 4  # KiB


def resident_kib() -> int:
    """Resident memory of this process (proc(5), statm)."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGES


def slope(samples: list[tuple[int, int]]) -> float:
    """KiB a step, by least squares over the second half: what caches fill at the start is no leak."""
    steps, sizes = np.array(samples[len(samples) // 2 :]).T
    return float(np.polyfit(steps, sizes, 1)[0])


@contextmanager
def watched(every: int) -> Iterator[list[tuple[int, int]]]:
    """(step, KiB) each so many training steps."""
    samples: list[tuple[int, int]] = []
    inner, done = Monitor.tick, 0

    def tick(self: Monitor) -> None:
        nonlocal done
        inner(self)
        done += 1
        if done % every == 0:
            samples.append((done, resident_kib()))

    Monitor.tick = tick  # type: ignore[method-assign]
    try:
        yield samples
    finally:
        Monitor.tick = inner  # type: ignore[method-assign]


def training_slope(steps: int) -> float:
    """KiB a step of training on tiny images."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder / "pictures", 26)
        config = replace(TINY, out=str(folder / "run"), epochs=-(-steps // 3), max_steps=steps, save_every=steps // 4)
        images = open_pretraining_data(folder / "pictures")
        with watched(max(steps // 60, 1)) as samples:
            Trainer(replace(config, log_every=10), images, World(), torch.device("cpu")).train()
    return slope(samples)


def propagation_slope(frames: int) -> float:
    """KiB a frame of carrying labels along random features of a 20 x 30 grid."""
    hw, generator = (20, 30), torch.Generator().manual_seed(0)
    labels = torch.rand(3, *hw, generator=generator)
    samples = []
    propagator = LabelPropagator(PropagationProtocol())
    for index in range(frames + 1):
        propagator.step(torch.randn(64, *hw, generator=generator), None if index else labels)
        if index % max(frames // 60, 1) == 0:
            samples.append((index, resident_kib()))
    return slope(samples)


def main(steps: int = 3000, frames: int = 500) -> list[str]:
    """The long form; the lines it reports."""
    torch.set_num_threads(1)
    training, propagation = training_slope(steps), propagation_slope(frames)
    lines = [
        f"memory over {steps} training steps: {training:+.3f} KiB a step",
        f"memory over {frames} propagated frames: {propagation:+.3f} KiB a frame",
    ]
    # A leaked tensor of one step is 100 KiB or more; the allocator's own noise is below 1 KiB a step.
    assert training < 2, lines
    assert propagation < 10, lines  # a frame's features are 150 KiB
    return lines


if __name__ == "__main__":
    print("\n".join(main()))
