"""How the cost of propagation grows with frames, patches and objects; draws docs/growth.png.

"plain" is what the smallest problem's figure foretells, "ours" is what the largest took: a ratio of 1 is linear time
(in frames, and in patches at a fixed window) or constant memory (in frames).
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from benchmarks._bench import Measured, Row, in_new_process, machine, publish
from tasks._propagation import PropagationProtocol, propagate_video

PLOT = Path(__file__).parents[1] / "docs" / "growth.png"
GRID = (30, 52)  # a DAVIS frame at patch 16
DIM = 384
FRAMES = (20, 40, 80, 160)
GRIDS = ((30, 52), (42, 74), (60, 104), (85, 147))
PATCH_FRAMES = 10
CHANNELS = (2, 5, 10, 20)
OBJECT_FRAMES = 20
LINEAR = 0.85  # of what the smallest problem foretells
FLAT = 0.9


def propagate(frames: int, grid: tuple[int, int], channels: int) -> None:
    """A video of random features, each made when it is asked for."""
    labels = torch.rand(channels, *grid, generator=torch.Generator().manual_seed(0))

    def features_of(index: int) -> Tensor:
        noise = torch.randn(grid[0] * grid[1], DIM, generator=torch.Generator().manual_seed(index))
        return noise.T.unflatten(1, grid)

    for _ in propagate_video(features_of, labels, frames, PropagationProtocol()):
        pass


def sweep(values: Sequence[int], call: Callable[[int], tuple[int, tuple[int, int], int]]) -> list[Measured]:
    propagate(3, GRID, 2)
    return [in_new_process(propagate, *call(value)) for value in values]


def main() -> list[Row]:
    by_frames = sweep(FRAMES, lambda frames: (frames, GRID, 2))
    patches = [h * w for h, w in GRIDS]
    by_patches = sweep(patches, lambda count: (PATCH_FRAMES, GRIDS[patches.index(count)], 2))
    by_channels = sweep(CHANNELS, lambda channels: (OBJECT_FRAMES, GRID, channels))
    first, last = by_frames[0], by_frames[-1]
    text = f"{FRAMES[0]} to {FRAMES[-1]} frames"
    # The first frames have a smaller context, so that time is foretold from the second half of the sweep.
    doubled = 2 * by_frames[-2].seconds
    rows = [
        Row("growth", f"{FRAMES[-2]} to {FRAMES[-1]} frames", doubled, last.seconds, "s", target=LINEAR),
        Row("growth", text, first.mib, last.mib, "MiB", target=FLAT),
        Row(
            "growth",
            f"{patches[0]} to {patches[-1]} patches, {PATCH_FRAMES} frames",
            by_patches[0].seconds * patches[-1] / patches[0],
            by_patches[-1].seconds,
            "s",
            target=LINEAR,
        ),
        Row(
            "growth",
            f"{CHANNELS[0] - 1} to {CHANNELS[-1] - 1} objects, {OBJECT_FRAMES} frames",
            by_channels[0].seconds,
            by_channels[-1].seconds,
            "s",
        ),
    ]
    draw([("frames", FRAMES, by_frames), ("patches", patches, by_patches), ("label channels", CHANNELS, by_channels)])
    publish(rows)
    return rows


def draw(panels: Sequence[tuple[str, Sequence[int], Sequence[Measured]]]) -> None:
    """Seconds (left axes, blue) and MiB (right axes, orange) of every sweep."""
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 3.4), layout="constrained")
    for axis, (name, values, measured) in zip(axes, panels, strict=True):
        memory = axis.twinx()
        axis.plot(values, [item.seconds for item in measured], "o-", color="tab:blue")
        memory.plot(values, [item.mib for item in measured], "s--", color="tab:orange")
        axis.set(xlabel=name, ylabel="seconds", xlim=(0, None), ylim=(0, None))
        memory.set(ylabel="MiB", ylim=(0, None))
        axis.yaxis.label.set_color("tab:blue")
        memory.yaxis.label.set_color("tab:orange")
    figure.suptitle(f"Label propagation, D = {DIM}, window 25x25, 8 context frames ({machine()})", fontsize=9)
    figure.savefig(PLOT, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
