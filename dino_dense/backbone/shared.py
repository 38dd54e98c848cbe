"""Measure the layers of a backbone one after another, with one pass of the network over each image.

The pass for the first layer also computes the later layers, and keeps their features while they fit in memory.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence, Set
from typing import Self

import torch
from torch import Tensor

from dino_dense.backbone.backbone import Backbone, Features


class SharedLayers(Backbone):
    """A backbone whose `at` gives each layer in turn; made by `share_layers`."""

    store: "LayerStore"
    later: tuple[int, ...] = ()
    """Layers that are measured after the present one."""

    def at(self, layer: int, later: Sequence[int] = ()) -> Self:
        """The backbone with this layer as the default of `extract`; forgets features of all but it and the later ones.

        Args:
            layer, later: numbers from 0 to `depth` - 1.

        Raises:
            ValueError: see `Backbone.with_layers`.
        """
        chosen = self.with_layers([-1 if layer == self.depth - 1 else layer], self.norm)
        assert isinstance(chosen, type(self))
        chosen.later = tuple(later)
        self.store.forget_all_but({layer, *later})
        return chosen

    @torch.no_grad()
    def extract(
        self,
        images: Tensor,
        want: Set[str] | Sequence[str] = frozenset({"patches"}),
        layers: Sequence[int] | None = None,
        *,
        norm: bool | None = None,
    ) -> Features:
        """See `Backbone.extract`. Explicit layers, or another norm, are always extracted."""
        if layers is not None or norm not in (None, self.norm) or (not self.later and self.store.used == 0):
            return super().extract(images, want, layers, norm=norm)
        own, key = self.layers[0] % self.depth, self._digest(images, want)
        if (parts := self.store.get(own, key)) is not None:
            return Features({kind: part.to(self.device) for kind, part in parts.items()})
        missing = [layer for layer in self.later if self.store.get(layer, key) is None]
        if not missing or self.store.full:
            return super().extract(images, want, norm=norm)
        joined = super().extract(images, want, [own, *missing], norm=norm).by_kind
        chunks = {kind: value.chunk(1 + len(missing), dim=1) for kind, value in joined.items()}
        for number, layer in enumerate(missing, 1):
            self.store.add(layer, key, {kind: parts[number] for kind, parts in chunks.items()})
        return Features({kind: parts[0].clone() for kind, parts in chunks.items()})

    def _digest(self, images: Tensor, want: Set[str] | Sequence[str]) -> bytes:
        """Identifies the images, how their pixels are normalized, and what is wanted of them."""
        read = (tuple(images.shape), str(images.dtype), self.mean, self.std, str(self.dtype), sorted(want))
        digest = hashlib.blake2b(repr(read).encode(), digest_size=16)
        digest.update(images.detach().cpu().contiguous().numpy().data)
        return digest.digest()


class LayerStore:
    """Features of layers in CPU memory, up to a limit.

    Attributes:
        used: bytes.
        full: whether features did not fit since the last were forgotten.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.used, self.full = max_bytes, 0, max_bytes == 0
        self._kept: dict[int, dict[bytes, dict[str, Tensor]]] = {}

    def get(self, layer: int, key: bytes) -> dict[str, Tensor] | None:
        """The features of a layer, or None."""
        return self._kept.get(layer, {}).get(key)

    def add(self, layer: int, key: bytes, parts: Mapping[str, Tensor]) -> None:
        """Keep copies, if they fit."""
        size = sum(part.nbytes for part in parts.values())
        if self.used + size > self.max_bytes:
            self.full = True
            return
        self._kept.setdefault(layer, {})[key] = {kind: part.to("cpu", copy=True) for kind, part in parts.items()}
        self.used += size

    def forget_all_but(self, layers: Collection[int]) -> None:
        """Free the memory of all other layers."""
        for layer in set(self._kept) - set(layers):
            freed = sum(part.nbytes for parts in self._kept.pop(layer).values() for part in parts.values())
            self.used -= freed
            self.full = self.full and not freed


def share_layers(backbone: Backbone, max_bytes: int) -> SharedLayers:
    """The same weights, to be measured layer by layer.

    Args:
        max_bytes: of the features that are kept for later layers.

    Raises:
        ValueError: its patch tokens are upsampled.
    """
    if backbone.upsampled:
        raise ValueError("a sweep over layers measures patch tokens as they are: leave out --upsampling.")
    shared = SharedLayers.__new__(SharedLayers)
    vars(shared).update(vars(backbone))
    shared.store = LayerStore(max_bytes)
    return shared
