"""Soft labels carried along frames that are squashed to a square (CRW on JHMDB and VIP).

Shapes: C label channels (0 is background), g x g patch grid.
"""

from collections.abc import Generator, Iterable
from contextlib import closing
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from dino_dense.arrays import Pixels
from dino_dense.backbone import Backbone
from dino_dense.backbone.grid import fit
from dino_dense.pipeline import drawn_ahead
from dino_dense.propagation.frames import resize_frame
from dino_dense.propagation.protocol import SquashedProtocol
from dino_dense.propagation.stream import LabelPropagator
from dino_dense.propagation.video import GPU_BATCH, pixel_statistics


def grid_of(backbone: Backbone, protocol: SquashedProtocol) -> tuple[int, int]:
    """The patch grid (g, g) of the squashed frames."""
    side = protocol.image_size
    size = fit((side, side), backbone.patch_size, "nearest")
    return size.h, size.w


def propagate(
    backbone: Backbone,
    protocol: SquashedProtocol,
    frames: Iterable[Pixels],
    labels: Tensor,
    batch_size: int | None = None,
) -> Generator[Tensor]:
    """Soft labels [C, g, g] of every frame in order; the first frame's are `labels`.

    Args:
        frames: RGB [H, W, 3]; read by one other thread, so avoid torch in it.
        labels: [C, g, g] of the first frame (`grid_of`).
        batch_size: frames whose features are computed at once; None takes 1 on a CPU and 8 on a GPU.
    """
    grid = grid_of(backbone, protocol)
    size = grid[0] * backbone.patch_size, grid[1] * backbone.patch_size
    network = pixel_statistics(backbone, protocol.propagation())
    count = batch_size or (1 if backbone.device.type == "cpu" else GPU_BATCH)
    propagator = LabelPropagator(protocol.propagation())
    given: Tensor | None = labels.to(backbone.device)
    squashed = (resize_frame(frame, size) for frame in frames)
    with closing(drawn_ahead(squashed, ahead=2 * count)) as drawn:
        while batch := list(islice(drawn, count)):
            for features in network.extract(torch.from_numpy(np.stack(batch)).movedim(-1, -3)).patches:
                yield propagator.step(features, given)
                given = None
