"""A backbone whose features are colors: what is bright is found wherever it goes."""

import torch

from dino_dense import Features
from dino_dense.propagation.protocol import PropagationProtocol
from tests.oracles import NoiseBackbone

PROTOCOL = PropagationProtocol(short_side=None, rounding="nearest", radius=3, normalise="none")


class ColorBackbone(NoiseBackbone):
    """A patch's features are its mean color: the bright square is found wherever it goes."""

    def extract(self, images: torch.Tensor, want=frozenset({"patches"}), layers=(-1,)) -> Features:
        """[B, 3, h, w]"""
        return Features(patches=torch.nn.functional.avg_pool2d(images, self.patch_size) - 0.4)
