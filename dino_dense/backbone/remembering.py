"""A backbone that keeps the features of the images it has seen, for measures that look at the same images again."""

import hashlib
from collections.abc import Sequence, Set

import torch
from torch import Tensor

from dino_dense.backbone.backbone import Backbone, Features

KEPT_BYTES = 2**30  # of features, on the CPU; images beyond it are extracted anew each time


class RememberingBackbone(Backbone):
    """The same network; an image with the same pixels and the same request gets its features from memory.

    They may differ from those of another batch by rounding, as features of any two batches do.

    Args:
        limit: bytes of features that are kept.
    """

    def __init__(self, backbone: Backbone, limit: int = KEPT_BYTES) -> None:
        self.__dict__.update(backbone.__dict__)
        self.read = type(backbone).extract
        self.limit, self.kept_bytes = limit, [0]
        self.kept: dict[bytes, dict[str, Tensor]] = {}

    @torch.no_grad()
    def extract(
        self,
        images: Tensor,
        want: Set[str] | Sequence[str] = frozenset({"patches"}),
        layers: Sequence[int] | None = None,
        *,
        norm: bool | None = None,
    ) -> Features:
        """As `Backbone.extract`."""
        kinds = sorted(want)
        request = repr((kinds, self.layers if layers is None else tuple(layers), self.norm if norm is None else norm))
        state = repr((self.mean, self.std, str(self.dtype), tuple(images.shape[1:])))
        keys = [_key(image, request + state) for image in images]
        new = [index for index, key in enumerate(keys) if key not in self.kept]
        rows: dict[bytes, dict[str, Tensor]] = {}
        if new or not keys:
            fresh = self.read(self, images[new], want, layers, norm=norm)
            for row, index in enumerate(new):
                rows[keys[index]] = {kind: fresh[kind][row].cpu() for kind in kinds}
                self._keep(keys[index], rows[keys[index]])
        parts = [rows[key] if key in rows else self.kept[key] for key in keys]
        return Features({kind: torch.stack([part[kind] for part in parts]).to(self.device) for kind in kinds})

    def _keep(self, key: bytes, features: dict[str, Tensor]) -> None:
        size = sum(value.numel() * value.element_size() for value in features.values())
        if self.kept_bytes[0] + size <= self.limit:
            self.kept[key] = features
            self.kept_bytes[0] += size


def _key(image: Tensor, request: str) -> bytes:
    digest = hashlib.blake2b(image.detach().cpu().contiguous().numpy().tobytes(), digest_size=20)
    digest.update(request.encode())
    return digest.digest()
