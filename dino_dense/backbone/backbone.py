"""The interface of every network to every task: images in [0, 1] in, dense features out.

Shapes: B images, h x w patch grid, N = h*w patches, C channels, L layers.
"""

import copy
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dino_dense.backbone.bytes import sent, statistics
from dino_dense.backbone.cpu_attention import fast_attention
from dino_dense.backbone.dino_vit import IMAGENET_MEAN, IMAGENET_STD
from dino_dense.backbone.families import reader_of
from dino_dense.backbone.reader import KINDS, Reader
from dino_dense.checkpoint import sha256_of_weights

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Features:
    """The requested features. Several layers are joined along dimension 1, in the requested order.

    A feature that was not requested raises ValueError.
    """

    by_kind: Mapping[str, Tensor]

    def __getitem__(self, kind: str) -> Tensor:
        """The feature of this kind."""
        if kind not in self.by_kind:
            asked = ", ".join(sorted(self.by_kind)) or "nothing"
            raise ValueError(f"you did not ask for {kind}: extract was asked for {asked}. Name it in want.")
        return self.by_kind[kind]

    @property
    def patches(self) -> Tensor:
        """[B, L*C, h, w], patch tokens after the final norm."""
        return self["patches"]

    @property
    def cls(self) -> Tensor:
        """[B, L*C], class token after the final norm; the pooled feature of a body without one."""
        return self["cls"]

    @property
    def keys(self) -> Tensor:
        """[B, L*C, h, w], attention keys of the patches, heads joined.

        They come from the key projection, before a norm of keys and before rotary positions (RoPE). TokenCut and LOST
        compare keys with each other, and RoPE would make equal content at two positions differ.
        """
        return self["keys"]

    @property
    def queries(self) -> Tensor:
        """[B, L*C, h, w], attention queries of the patches, heads joined, from the query projection."""
        return self["queries"]

    @property
    def values(self) -> Tensor:
        """[B, L*C, h, w], attention values of the patches, heads joined."""
        return self["values"]

    @property
    def attention(self) -> Tensor:
        """[B, L*heads, h, w], attention of the class token to each patch, from queries and keys after their norms and
        RoPE. In each head the attention to patches and to prefix tokens together sums to 1."""
        return self["attention"]


class Backbone:
    """A frozen network, ready to extract features.

    Attributes:
        patch_size: pixels a feature cell spans; image sides must be multiples of it.
        input_patch: pixels a patch of the network spans; the same unless patch tokens are upsampled.
        upsampled: a sentence on how patch tokens are upsampled; empty where they are not.
        embed_dim: channels C.
        depth: number of layers that `layers` can name.
        num_heads: attention heads, 0 where there is no attention.
        provides: names of the features that `extract` can return.
        uniform_width: whether features of several layers may be joined.
        nonnegative_maps: whether the last map has no negative value.
        name: architecture, with timm's tag if the weights are timm's.
        spec: the user's name of the network or file.
        sha256: of the file, or of the weights if no file holds them.
        weights_sha256: of the weights in use (a file may hold a teacher and a student).
        module: the timm network itself, for fine-tuning only.
        layers, norm: defaults of `extract` (set by `with_layers`): the last layer, after the final norm.
        notes: choices and assumptions made when the file was opened, for the user.
        reader: reads the features of the network.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        sha256: str,
        spec: str = "",
        mean: Triple = IMAGENET_MEAN,
        std: Triple = IMAGENET_STD,
        metadata: dict[str, Any] | None = None,
        notes: tuple[str, ...] = (),
        reader: Reader | None = None,
    ) -> None:
        body: Any = module.eval().requires_grad_(False)
        self.module = body
        self.reader = reader or reader_of(module)
        self.name, self.sha256, self.spec = name, sha256, spec or name
        self.weights_sha256 = sha256_of_weights(module)
        self.metadata, self.notes = metadata or {}, notes
        self.mean, self.std = mean, std
        self.dtype = torch.float32
        self.patch_size, self.embed_dim = self.reader.patch_size, self.reader.embed_dim
        self.input_patch, self.upsampled = self.patch_size, ""
        self.depth, self.num_heads = self.reader.depth, self.reader.num_heads
        self.provides = self.reader.provides
        self.uniform_width, self.nonnegative_maps = self.reader.uniform_width, self.reader.nonnegative_maps
        self.layers: tuple[int, ...] = (-1,)
        self.norm = True

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.module.parameters()).device

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU computes, which also reads, resizes and writes, and has nothing to wait for."""
        return self.device.type == "cpu"

    @property
    def reader_version(self) -> str:
        """Name and version of the code that extracts features. The version changes when any feature value does."""
        return f"{type(self.reader).__name__} {self.reader.version}"

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "Backbone":
        """Move the weights; with bfloat16 or float16 `extract` runs under autocast. Returns itself."""
        self.module.to(device)
        self.dtype = dtype
        return self

    def with_normalization(self, mean: Triple, std: Triple) -> "Backbone":
        """The same weights with other pixel statistics (a protocol may differ from the training)."""
        other = copy.copy(self)
        other.mean, other.std = mean, std
        return other

    def with_layers(self, layers: Sequence[int], norm: bool = True) -> "Backbone":
        """The same weights with these layers as the default of `extract`.

        Raises:
            ValueError: there is no such layer, or the maps of layers differ in size and width, so that only the last
                layer can be the default.
        """
        self._check_layers(layers)
        if not self.uniform_width and any(layer % self.depth != self.depth - 1 for layer in layers):
            raise ValueError(f"layers {tuple(layers)}: {self.name} has layers of different widths; leave them out.")
        other = copy.copy(self)
        other.layers, other.norm = tuple(layers), norm
        other.embed_dim = self.reader.embed_dim * len(other.layers)
        return other

    @torch.no_grad()
    def extract(
        self,
        images: Tensor,
        want: Set[str] | Sequence[str] = frozenset({"patches"}),
        layers: Sequence[int] | None = None,
        *,
        norm: bool | None = None,
    ) -> Features:
        """Features of a batch.

        Args:
            images: RGB [B, 3, H, W]; H and W multiples of `patch_size`. uint8 is sent to the device as it is, and
                divided by 255 there (`bytes.sent`); float is in [0, 1]. Normalized here.
            want: any of `provides`; see `Features` for each.
            layers: layers to return, joined along dimension 1 (-1 is the last); default `self.layers`.
            norm: whether patches and class tokens of each layer go through the final norm; default `self.norm`.

        Returns:
            Float32 features on the backbone's device.

        Raises:
            ValueError: the shape, an image side, a wanted feature or a layer is impossible.
        """
        want, layers = frozenset(want), self.layers if layers is None else layers
        norm = self.norm if norm is None else norm
        self._check(images, want)
        self._check_layers(layers)
        x = sent(images, self.device).float()
        mean, std = statistics(self.mean, self.std, x.device)
        x = (x - mean) / std
        reduced = self.dtype != torch.float32
        with torch.autocast(x.device.type, self.dtype, enabled=reduced), fast_attention(x.device, self.dtype):
            by_kind = self.reader.read(x, want, [layer % self.depth for layer in layers], norm)
        return Features({kind: value.float() for kind, value in by_kind.items()})

    def _check(self, images: Tensor, want: frozenset[str]) -> None:
        right = images.is_floating_point() or images.dtype == torch.uint8
        if images.ndim != 4 or images.shape[1] != 3 or not right:
            raise ValueError(f"images must be uint8 or float [B, 3, H, W], got {images.dtype} {tuple(images.shape)}.")
        height, width = images.shape[-2:]
        if height % self.input_patch or width % self.input_patch or not height * width:
            raise ValueError(
                f"image is {height}x{width} (HxW); both sides must be multiples of {self.name}'s patch size "
                f"{self.input_patch}. Resize or pad it."
            )
        unknown = want - KINDS
        if unknown or not want <= self.provides:
            lacks = ", ".join(sorted(unknown or want - self.provides))
            raise ValueError(f"{self.name} has no {lacks}; it has {', '.join(sorted(self.provides))}.")

    def _check_layers(self, layers: Sequence[int]) -> None:
        if not layers or any(not -self.depth <= layer < self.depth for layer in layers):
            raise ValueError(f"layers {tuple(layers)}: {self.name} has {self.depth}, numbered 0 or -{self.depth} up.")
