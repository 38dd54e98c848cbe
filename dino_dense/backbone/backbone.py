"""The one interface through which every task sees a network: images in [0, 1] in, dense features out.

Shapes: B images, h x w patch grid, N = h*w patches, P prefix tokens (class token, then registers), C channels.
"""

import copy
from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dino_dense.backbone.cpu_attention import fast_attention
from dino_dense.backbone.dino_vit import (
    IMAGENET_MEAN,
    IMAGENET_STD,
)
from dino_dense.checkpoint import sha256_of_weights

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Features:
    """What was asked for; the rest is None. Several layers are joined along the channels, in the order asked."""

    patches: Tensor | None = None
    """[B, C, h, w], patch tokens after the final norm."""
    cls: Tensor | None = None
    """[B, C], class token after the final norm; the pooled feature of a body without one."""
    keys: Tensor | None = None
    """[B, C, h, w], attention keys of the last block, heads joined."""
    attention: Tensor | None = None
    """[B, heads, h, w], how much the class token attends to each patch in the last block. A head's values and
    those of the prefix tokens sum to 1."""


class Backbone:
    """A frozen network, ready to extract features.

    Attributes:
        patch_size: pixels a feature cell spans; image sides must be multiples of it.
        embed_dim: channels C.
        depth: number of layers that `layers` can name.
        num_heads: attention heads, 0 where there is no attention.
        name: architecture, with timm's tag where the weights are timm's.
        spec: what the user asked for.
        sha256: of the file, or of the weights where no file holds them.
        weights_sha256: of the weights in use (a file may hold a teacher and a student).
        provides: which features `extract` can return.
        module: the timm body itself, for fine-tuning only.
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
    ) -> None:
        body: Any = module.eval().requires_grad_(False)
        self.module = body
        self.name, self.sha256, self.spec = name, sha256, spec or name
        self.weights_sha256 = sha256_of_weights(module)
        self.metadata = metadata or {}
        self.mean, self.std = mean, std
        self.dtype = torch.float32
        self.embed_dim: int = body.num_features
        self._is_vit = isinstance(module, VisionTransformer)
        if self._is_vit:
            self.patch_size: int = body.patch_embed.patch_size[0]
            self.depth, self.num_heads = len(body.blocks), body.blocks[0].attn.num_heads
            self.provides = frozenset({"patches", "cls", "keys", "attention"})
            if not body.has_class_token:
                self.provides -= {"attention"}
        else:
            self.patch_size = int(body.feature_info[-1]["reduction"])
            self.depth, self.num_heads = len(body.feature_info), 0
            self.provides = frozenset({"patches", "cls"})

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "Backbone":
        """Move the weights; with bfloat16 or float16 `extract` runs under autocast. Returns itself."""
        self.module.to(device)
        self.dtype = dtype
        return self

    def with_normalisation(self, mean: Triple, std: Triple) -> "Backbone":
        """The same weights behind other pixel statistics (a protocol may differ from the training's)."""
        other = copy.copy(self)
        other.mean, other.std = mean, std
        return other

    @torch.no_grad()
    def extract(
        self,
        images: Tensor,
        want: Set[str] | Sequence[str] = frozenset({"patches"}),
        layers: Sequence[int] = (-1,),
    ) -> Features:
        """Features of a batch.

        Args:
            images: [B, 3, H, W], float RGB in [0, 1]; H and W multiples of `patch_size`. Normalised here.
            want: any of "patches", "cls", "keys", "attention".
            layers: which blocks' outputs to return for patches and cls (-1 is the last), each after the
                final norm. Keys and attention are always the last block's.

        Returns:
            Float32 features on the backbone's device.

        Raises:
            ValueError: the shape, an image side, a wanted feature or a layer is impossible.
        """
        want = frozenset(want)
        self._check(images, want, layers)
        x = images.to(self.device, torch.float32)
        mean, std = (torch.tensor(values, device=x.device).view(1, 3, 1, 1) for values in (self.mean, self.std))
        x = (x - mean) / std
        reduced = self.dtype != torch.float32
        with torch.autocast(x.device.type, self.dtype, enabled=reduced), fast_attention(x.device, self.dtype):
            read = self._read_vit if self._is_vit else self._read_stages
            found = read(x, want, [layer % self.depth for layer in layers])
        return Features(**{name: value.float() for name, value in found.items()})

    def _check(self, images: Tensor, want: frozenset[str], layers: Sequence[int]) -> None:
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"images must be float [B, 3, H, W], got {images.dtype} {tuple(images.shape)}.")
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size or not height * width:
            raise ValueError(
                f"image is {height}x{width} (HxW); both sides must be multiples of {self.name}'s patch size "
                f"{self.patch_size}. Resize or pad it."
            )
        unknown = want - {"patches", "cls", "keys", "attention"}
        if unknown or not want <= self.provides:
            lacks = ", ".join(sorted(unknown or want - self.provides))
            raise ValueError(f"{self.name} has no {lacks}; it has {', '.join(sorted(self.provides))}.")
        if not layers or any(not -self.depth <= layer < self.depth for layer in layers):
            raise ValueError(f"layers {tuple(layers)}: {self.name} has {self.depth}, numbered 0 or -{self.depth} up.")

    def _read_vit(self, x: Tensor, want: frozenset[str], layers: list[int]) -> dict[str, Tensor]:
        vit: Any = self.module
        height, width = (side // self.patch_size for side in x.shape[-2:])
        prefix = vit.num_prefix_tokens
        tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(x))))  # [B, P+N, C]
        raw: dict[int, Tensor] = {}
        outputs: dict[int, Tensor] = {}
        found: dict[str, Tensor] = {}
        for index, block in enumerate(vit.blocks):
            if index == self.depth - 1 and want & {"keys", "attention"}:
                found |= self._read_attention(block, tokens, want, (height, width))
            tokens = block(tokens)
            if index in layers:
                raw[index] = tokens
                # A body that pools before its norm keeps the norm in fc_norm.
                outputs[index] = vit.norm(tokens) if not isinstance(vit.norm, nn.Identity) else vit.fc_norm(tokens)
        if "patches" in want:
            patches = torch.cat([outputs[layer][:, prefix:] for layer in layers], dim=-1)
            found["patches"] = rearrange(patches, "b (h w) c -> b c h w", h=height, w=width)
        if "cls" in want:
            pooled = [
                outputs[layer][:, 0] if vit.has_class_token else self._pooled(raw[layer], layer) for layer in layers
            ]
            found["cls"] = torch.cat(pooled, dim=-1)
        return found

    def _pooled(self, tokens: Tensor, layer: int) -> Tensor:
        """[B, C] of the tokens that leave a block of a ViT without class token: its own pooling, or the mean."""
        vit: Any = self.module
        if layer == self.depth - 1:
            return vit.forward_head(vit.norm(tokens), pre_logits=True)
        return vit.fc_norm(vit.norm(tokens)[:, vit.num_prefix_tokens :].mean(1))

    def _read_attention(
        self, block: Any, tokens: Tensor, want: frozenset[str], grid: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Keys and the class token's attention row of one block, from the tokens that enter it."""
        attn, prefix = block.attn, self.module.num_prefix_tokens
        qkv = attn.qkv(block.norm1(tokens))
        q, k, _ = rearrange(qkv, "b n (three heads c) -> three b heads n c", three=3, heads=self.num_heads)
        found = {}
        if "keys" in want:
            found["keys"] = rearrange(k[:, :, prefix:], "b heads (h w) c -> b (heads c) h w", h=grid[0], w=grid[1])
        if "attention" in want:
            row = (attn.q_norm(q[:, :, :1]) * attn.scale) @ attn.k_norm(k).transpose(-2, -1)
            row = row.softmax(dim=-1)[:, :, 0, prefix:]  # [B, heads, N]
            found["attention"] = row.unflatten(-1, grid)
        return found

    def _read_stages(self, x: Tensor, want: frozenset[str], layers: list[int]) -> dict[str, Tensor]:
        """Any other timm body, through timm's own reader of intermediate maps."""
        body: Any = self.module
        final, maps = body.forward_intermediates(x, indices=sorted(set(layers)), norm=True, output_fmt="NCHW")
        by_layer = dict(zip(sorted(set(layers)), maps, strict=True))
        found = {}
        if "patches" in want:
            size = by_layer[layers[-1]].shape[-2:]
            if any(by_layer[layer].shape[-2:] != size for layer in layers):
                raise ValueError(f"{self.name}: layers {layers} have maps of different sizes; ask for one.")
            found["patches"] = torch.cat([by_layer[layer] for layer in layers], dim=1)
        if "cls" in want:
            last = self.depth - 1
            pooled = [
                body.forward_head(final, pre_logits=True) if layer == last else by_layer[layer].mean((-2, -1))
                for layer in layers
            ]
            found["cls"] = torch.cat(pooled, dim=-1)
        return found
