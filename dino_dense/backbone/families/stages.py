"""Reads any other timm network, with timm's own access to intermediate maps.

Shapes: B images, h x w cells of the last map, C channels.
"""

import copy
import inspect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

PROBE_SIDE = 64  # pixels; the smallest image to measure the grid on: many networks refuse smaller images
Size = tuple[int, int]
REFUSALS = (AssertionError, RuntimeError, ValueError, IndexError, TypeError)
"""Errors that timm's networks raise for an image size that they do not support."""


class Maps(NamedTuple):
    """Outputs of some layers of a network."""

    final: Tensor
    """Its last output."""
    by_layer: dict[int, Tensor]
    """[B, C, h, w] each."""
    prefix: dict[int, Tensor]
    """[B, P, C] each: prefix tokens; empty for a network without a class token in every layer."""


class StageReader:
    """A network with stages or blocks of which timm can return intermediate maps: ResNet, ConvNeXt, Swin, XCiT, BEiT.

    The grid is measured on an image, never computed from the network's description. timm resizes a network of fixed
    image size if it can (position biases of BEiT and Swin, resampled as by their authors).
    """

    version = 2
    last_resort = True

    def __init__(self, module: nn.Module) -> None:
        body: Any = module
        self.body = body
        self.num_heads = 0
        prefix = getattr(body, "num_prefix_tokens", 0)
        with_prefix = prefix and "return_prefix_tokens" in parameters_of(body, "forward_intermediates")
        self.has_class_token = bool(with_prefix) and getattr(body, "cls_token", None) is not None
        info = list(getattr(body, "feature_info", None) or [])
        self.depth = max(len(info), 1)
        self.embed_dim: int = body.num_features
        self.native: Size = tuple(body.pretrained_cfg["input_size"][-2:])
        self.fixed, self.normable = False, True
        self.resized: tuple[Size, torch.device, Any] | None = None
        self.patch_size = int(info[-1]["reduction"]) if info else 1
        self.provides = frozenset({"cls"})
        self.nonnegative_maps, self.uniform_width = False, self.has_class_token
        if info and hasattr(body, "forward_intermediates"):
            self.provides |= {"patches"}
            self._measure()

    @staticmethod
    def reads(module: nn.Module) -> bool:
        """Whether the network is of this family; used after all other readers."""
        return True

    def _measure(self) -> None:
        """Measure cell size, channels and sign of the last map, on a small image or else on one of native size."""
        side = self.patch_size * max(2, math.ceil(PROBE_SIDE / self.patch_size))
        try:
            last = self._last_map((side, side))
        except REFUSALS as error:
            if "normalization" in str(error):  # Hiera's norm belongs to its pooling
                self.normable = False
                self._measure()
                return
            self.fixed = True
        if self.fixed or side != last.shape[-1] * self.patch_size:
            side = self.native[1]
            last = self._last_map(self.native)
        if side % last.shape[-1]:  # CrossViT (two sizes at once), Inception: a cell is not a whole number of pixels
            self.provides, self.patch_size, self.fixed = frozenset({"cls"}), 1, False
            return
        self.patch_size = side // last.shape[-1]
        self.embed_dim = last.shape[1]
        self.nonnegative_maps = bool((last >= 0).all())

    def _last_map(self, size: Size) -> Tensor:
        weight = next(self.body.parameters())
        image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
        with torch.no_grad():
            return self._maps(self.body, image, [self.depth - 1], norm=True).by_layer[self.depth - 1]

    def read(self, x: Tensor, want: frozenset[str], layers: Sequence[int], norm: bool) -> dict[str, Tensor]:
        """See `Reader.read`."""
        size: Size = (x.shape[-2], x.shape[-1])
        if size == self.native:
            return self._read(self.body, x, want, layers, norm)
        try:
            if not self.fixed:
                return self._read(self.body, x, want, layers, norm)
        except (torch.OutOfMemoryError, _MapError):
            raise
        except REFUSALS:
            self.fixed = True
        try:
            return self._read(self._body_of(size, x.device), x, want, layers, norm)
        except (torch.OutOfMemoryError, _MapError):
            raise
        except REFUSALS as error:
            raise ValueError(self._refusal(size)) from error

    def _read(self, body: Any, x: Tensor, want: frozenset[str], layers: Sequence[int], norm: bool) -> dict[str, Tensor]:
        if "patches" not in self.provides:
            return {"cls": body.forward_head(body.forward_features(x), pre_logits=True)}
        maps = self._maps(body, x, layers, norm)
        result = {}
        if "patches" in want:
            result["patches"] = self._patches(maps, layers, (x.shape[-2], x.shape[-1]))
        if "cls" in want:
            result["cls"] = torch.cat([self._cls(body, layer, maps) for layer in layers], dim=1)
        return result

    def _body_of(self, size: Size, device: torch.device) -> Any:
        """A copy of the network for this image size, kept until another size is requested."""
        resized = self.resized  # another thread may replace it at any time
        if resized is None or resized[:2] != (size, device):
            self.resized = None
            body = copy.deepcopy(self.body)
            if not hasattr(body, "set_input_size"):
                raise ValueError("of one size")
            body.set_input_size(img_size=size)
            self.resized = resized = (size, device, body.eval().requires_grad_(False))
        return resized[2]

    def _refusal(self, size: Size) -> str:
        name = self.body.pretrained_cfg.get("architecture", type(self.body).__name__)
        return (
            f"{name} takes images of {self.native[0]}x{self.native[1]} pixels (height x width) alone, as its windows "
            f"or positions are made for that size, and this one is {size[0]}x{size[1]}. Give the task that size where "
            "it has such an option, or take a network for images of any size: a ViT of DINO, a ResNet, a ConvNeXt."
        )

    def _patches(self, maps: Maps, layers: Sequence[int], size: Size) -> Tensor:
        chosen = [maps.by_layer[layer] for layer in layers]
        if any(part.shape[-2:] != chosen[-1].shape[-2:] for part in chosen):
            raise _MapError(f"layers {list(layers)} have maps of different sizes; ask for one.")
        grid = (size[0] // self.patch_size, size[1] // self.patch_size)
        if self.depth - 1 in layers and tuple(maps.by_layer[self.depth - 1].shape[-2:]) != grid:
            cells = "x".join(map(str, chosen[-1].shape[-2:]))
            raise _MapError(
                f"an image of {size[0]}x{size[1]} pixels gives a map of {cells} cells where {grid[0]}x{grid[1]} are "
                f"expected: this network resizes its maps. Take sides that are multiples of {2 * self.patch_size}."
            )
        return torch.cat(chosen, dim=1)

    def _maps(self, body: Any, x: Tensor, layers: Sequence[int], norm: bool) -> Maps:
        asked = sorted(set(layers))
        options = {"return_prefix_tokens": True} if self.has_class_token else {}
        norm = norm and self.normable
        final, parts = body.forward_intermediates(x, indices=asked, norm=norm, output_fmt="NCHW", **options)
        if not self.has_class_token:
            return Maps(final, dict(zip(asked, parts, strict=True)), {})
        maps, tokens = ([part[which] for part in parts] for which in (0, 1))
        if norm and isinstance(body.norm, nn.Identity):  # the network pools before its norm
            maps = [body.fc_norm(part.movedim(1, -1)).movedim(-1, 1) for part in maps]
            tokens = [body.fc_norm(part) for part in tokens]
        return Maps(final, dict(zip(asked, maps, strict=True)), dict(zip(asked, tokens, strict=True)))

    def _cls(self, body: Any, layer: int, maps: Maps) -> Tensor:
        """[B, C]: the class token; without one, the network's own pooling (last layer) or the mean (other layers)."""
        if self.has_class_token:
            return maps.prefix[layer][:, 0]
        if layer == self.depth - 1:
            return body.forward_head(maps.final, pre_logits=True)
        return maps.by_layer[layer].mean((-2, -1))


class _MapError(ValueError):
    """Unusable maps from an image size that the network supports."""


def parameters_of(body: nn.Module, method: str) -> Sequence[str]:
    """Parameter names of a method; empty if there is no such method."""
    return list(inspect.signature(getattr(body, method)).parameters) if hasattr(body, method) else []


READER = StageReader
