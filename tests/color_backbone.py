"""A backbone whose features are colors: what is bright is found wherever it goes."""

import torch

from dino_dense import Backbone
from dino_dense.propagation.protocol import PropagationProtocol
from tests.oracles import NoiseReader, stub_backbone

PROTOCOL = PropagationProtocol(short_side=None, rounding="nearest", radius=3, normalize="none")


class ColorReader(NoiseReader):
    """A patch's features are its mean color: the bright square is found wherever it goes."""

    embed_dim, provides = 3, frozenset({"patches"})

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def features(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """[B, 3, h, w]; the images' sizes are noted in `seen`."""
        self.seen.append((images.shape[-2], images.shape[-1]))
        return {"patches": torch.nn.functional.avg_pool2d(images, self.patch_size) - 0.4}


def color_backbone(reader: ColorReader | None = None) -> Backbone:
    return stub_backbone("color", reader or ColorReader())
