"""Compare what was carried out with the backbone itself, before it is kept."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from dino_dense.backbone.backbone import Backbone

TOLERANCE = 1e-4
"""Largest difference of a feature that is let pass, beside its largest magnitude."""


class ExportError(ValueError):
    """A written program does not compute what the backbone does."""


def check_equal(
    backbone: Backbone, run: Callable[[Tensor], Mapping[str, Tensor]], sizes: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], float]:
    """The largest difference at each (height, width), of features relative to their largest magnitude.

    Raises:
        ExportError: it is above `TOLERANCE`, with the size and the feature.
    """
    differences = {}
    for size in sizes:
        images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(sum(size)))
        result = run(images)
        ours = backbone.extract(images, set(result), layers=[-1], norm=True)
        worst = 0.0
        for name, value in result.items():
            expected = ours[name].cpu()
            if value.shape != expected.shape:
                raise ExportError(f"{name} at {size[0]}x{size[1]} is {list(value.shape)}, not {list(expected.shape)}")
            difference = float((value - expected).abs().max() / expected.abs().max())
            if not difference <= TOLERANCE:
                raise ExportError(
                    f"{name} at {size[0]}x{size[1]} pixels differs by {difference:.1e} of its largest magnitude, "
                    f"expected {TOLERANCE:g} or less. Nothing was kept. Please report this network."
                )
            worst = max(worst, difference)
        differences[size] = worst
    return differences
