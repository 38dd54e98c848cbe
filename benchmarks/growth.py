"""Growth of the cost of propagation with frames, patches and objects; draws docs/growth.png.

"plain" is the extrapolation from a smaller problem, "ours" is the largest problem: a ratio of 1 means linear time (in
frames, and in patches at a fixed window) or constant memory (in frames).
"""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from benchmarks.bench import Measured, Row, device, in_new_process, machine, publish, synchronise
from dino_dense.propagation.protocol import PropagationProtocol
from dino_dense.propagation.stream import LabelPropagator

PLOT = Path(__file__).parents[1] / "docs" / "growth.png"
GRID = (30, 52)  # a DAVIS frame at patch 16
DIM = 384
FRAMES = (15, 30, 60, 90)
GRIDS = ((30, 52), (42, 74), (60, 104), (85, 147))
CHANNELS = (2, 5, 10, 20)
SWEEP_FRAMES = 12
REPEATS = 3  # the smallest memory counts: unused memory of the allocator varies by 30 MiB
LINEAR = 0.85  # smallest ratio to the extrapolation
FLAT = 0.9


def noise(grid: tuple[int, int], seed: int) -> Tensor:
    """Features [D, h, w]."""
    drawn = torch.randn(grid[0] * grid[1], DIM, generator=torch.Generator().manual_seed(seed))
    return drawn.T.unflatten(1, grid).to(device())


def propagate(frames: int, grid: tuple[int, int], channels: int) -> float:
    """Propagate random features, created on demand; the median seconds of a frame with a full context."""
    labels = torch.rand(channels, *grid, generator=torch.Generator().manual_seed(0)).to(device())
    protocol, seconds = PropagationProtocol(), []
    propagator = LabelPropagator(protocol)
    propagator.step(noise(grid, 0), labels)
    for index in range(1, frames):
        features = noise(grid, index)
        synchronise()
        start = time.perf_counter()
        propagator.step(features)
        synchronise()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[protocol.context_frames :])


def sweep(cases: Sequence[tuple[int, tuple[int, int], int]], repeats: int = 1) -> list[Measured]:
    """Run each case in new processes: median seconds of a frame, seconds of all frames, and the smallest memory."""
    measured = []
    for case in cases:
        runs = [in_new_process(propagate, *case) for _ in range(repeats)]
        per_frame = statistics.median(run.result for run in runs)
        measured.append(Measured(per_frame, case[0] * per_frame, min(run.mib for run in runs)))
    return measured


def main() -> list[Row]:
    by_frames = sweep([(frames, GRID, 2) for frames in FRAMES], REPEATS)
    by_patches = sweep([(SWEEP_FRAMES, grid, 2) for grid in GRIDS])
    by_channels = sweep([(SWEEP_FRAMES, GRID, channels) for channels in CHANNELS])
    patches = [h * w for h, w in GRIDS]
    # Windows at the border of a grid are clipped, which affects small grids most: extrapolate from the second largest.
    foretold = by_patches[-2].result * patches[-1] / patches[-2]
    rows = [
        Row(
            "growth",
            f"a frame's time in {FRAMES[0]} and in {FRAMES[-1]} frames",
            by_frames[0].result,
            by_frames[-1].result,
            "s",
            target=LINEAR,
        ),
        Row("growth", f"{FRAMES[0]} to {FRAMES[-1]} frames", by_frames[0].mib, by_frames[-1].mib, "MiB", target=FLAT),
        Row("growth", f"{patches[-2]} to {patches[-1]} patches", foretold, by_patches[-1].result, "s", target=LINEAR),
        Row(
            "growth",
            f"{CHANNELS[0] - 1} and {CHANNELS[-1] - 1} objects",
            by_channels[0].result,
            by_channels[-1].result,
            "s",
        ),
    ]
    draw(
        [
            ("frames", FRAMES, [run.seconds for run in by_frames], by_frames),
            ("patches", patches, [run.result for run in by_patches], by_patches),
            ("label channels", CHANNELS, [run.result for run in by_channels], by_channels),
        ]
    )
    publish(rows)
    return rows


def draw(panels: Sequence[tuple[str, Sequence[int], Sequence[float], Sequence[Measured]]]) -> None:
    """Draw seconds (left axes, blue; of the whole video by frames, else of a frame) and MiB (right, orange)."""
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 3.4), layout="constrained")
    for axis, (name, values, seconds, measured) in zip(axes, panels, strict=True):
        memory = axis.twinx()
        axis.plot(values, seconds, "o-", color="tab:blue")
        memory.plot(values, [item.mib for item in measured], "s--", color="tab:orange")
        axis.set(xlabel=name, xlim=(0, None), ylim=(0, None))
        axis.set_ylabel("seconds" if name == "frames" else "seconds a frame", color="tab:blue")
        memory.set_ylim(0, None)
        memory.set_ylabel("MiB", color="tab:orange")
    figure.suptitle(f"Label propagation, D = {DIM}, window 25x25, 8 context frames ({machine()})", fontsize=9)
    figure.savefig(PLOT, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
