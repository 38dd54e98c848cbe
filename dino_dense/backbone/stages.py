"""Reads any other network of timm, through timm's own reader of the maps between its layers.

Shapes: B images, h x w cells of the last map, C channels.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

PROBE_SIDE = 64  # pixels, or more: the small image that the grid is measured on; many networks cannot take less


class StageReader:
    """A network of stages or of blocks that timm knows how to interrupt: ResNet, ConvNeXt, Swin, XCiT, BEiT.

    The grid is measured on an image, never computed from the network's description.
    """

    version = 2

    def __init__(self, module: nn.Module) -> None:
        body: Any = module
        self.body = body
        self.num_heads = 0
        self.prefix: int = getattr(body, "num_prefix_tokens", 0)
        with_prefix = self.prefix and "return_prefix_tokens" in parameters_of(body, "forward_intermediates")
        self.has_class_token = bool(with_prefix) and getattr(body, "cls_token", None) is not None
        info = list(getattr(body, "feature_info", []))
        self.depth = max(len(info), 1)
        self.embed_dim: int = body.num_features
        self.patch_size = int(info[-1]["reduction"]) if info else 1
        self.provides = frozenset({"cls"})
        self.nonnegative_maps, self.uniform_width = False, self.has_class_token
        if hasattr(body, "forward_intermediates"):
            self.provides |= {"patches"}
            self._measure()

    @staticmethod
    def reads(module: nn.Module) -> bool:
        """Whether the network is of this family: it is the last resort."""
        return True

    def _measure(self) -> None:
        """Cell size, channels and sign of the last map, on a small image or, where that fails, one of native size."""
        weight = next(self.body.parameters())
        side = self.patch_size * max(2, math.ceil(PROBE_SIDE / self.patch_size))
        native = self.body.pretrained_cfg["input_size"][-2:]
        generator = torch.Generator().manual_seed(0)
        for size in ((side, side), native):
            image = torch.randn(1, 3, *size, generator=generator).to(weight.device, weight.dtype)
            try:
                with torch.no_grad():
                    last = self._maps(image, [self.depth - 1], norm=True)[1][self.depth - 1]
            except Exception:
                if size == native:
                    raise
                continue
            cell = size[0] / last.shape[-2]
            if size == native or cell == self.patch_size:
                break
        self.patch_size = round(cell)
        self.embed_dim = last.shape[1]
        self.nonnegative_maps = bool((last >= 0).all())

    def read(self, x: Tensor, want: frozenset[str], layers: Sequence[int], norm: bool) -> dict[str, Tensor]:
        """See `Reader.read`."""
        if "patches" not in self.provides:
            return {"cls": self.body.forward_head(self.body.forward_features(x), pre_logits=True)}
        final, maps, tokens = self._maps(x, layers, norm)
        result = {}
        if "patches" in want:
            size = maps[layers[-1]].shape[-2:]
            if any(maps[layer].shape[-2:] != size for layer in layers):
                raise ValueError(f"layers {list(layers)} have maps of different sizes; ask for one.")
            result["patches"] = torch.cat([maps[layer] for layer in layers], dim=1)
        if "cls" in want:
            result["cls"] = torch.cat([self._cls(layer, final, maps, tokens) for layer in layers], dim=1)
        return result

    def _maps(
        self, x: Tensor, layers: Sequence[int], norm: bool
    ) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
        """The network's last output, and for each layer its map [B, C, h, w] and its prefix tokens [B, P, C]."""
        asked = sorted(set(layers))
        options = {"return_prefix_tokens": True} if self.has_class_token else {}
        final, parts = self.body.forward_intermediates(x, indices=asked, norm=norm, output_fmt="NCHW", **options)
        if not self.has_class_token:
            return final, dict(zip(asked, parts, strict=True)), {}
        maps, tokens = ([part[which] for part in parts] for which in (0, 1))
        if norm and isinstance(self.body.norm, nn.Identity):  # a body that pools before its norm
            maps = [self.body.fc_norm(part.movedim(1, -1)).movedim(-1, 1) for part in maps]
            tokens = [self.body.fc_norm(part) for part in tokens]
        return final, dict(zip(asked, maps, strict=True)), dict(zip(asked, tokens, strict=True))

    def _cls(self, layer: int, final: Tensor, maps: dict[int, Tensor], tokens: dict[int, Tensor]) -> Tensor:
        """[B, C]: the class token, else the network's own pooling after the last layer and the mean after others."""
        if self.has_class_token:
            return tokens[layer][:, 0]
        if layer == self.depth - 1:
            return self.body.forward_head(final, pre_logits=True)
        return maps[layer].mean((-2, -1))


def parameters_of(body: nn.Module, method: str) -> Sequence[str]:
    """Names that a method takes; none where there is no such method."""
    return list(inspect.signature(getattr(body, method)).parameters) if hasattr(body, method) else []
