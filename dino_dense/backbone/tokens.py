"""The shared reader of plain transformers, which pass one sequence of tokens from the first block to the last.

Shapes: B images, h x w patch grid, N = h*w patches, P prefix tokens (class token, then registers), C channels,
c channels of a head.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

ATTENTION_KINDS = frozenset({"keys", "queries", "values", "attention"})


class Projections(NamedTuple):
    """Queries, keys and values from the layer's projection, [B, heads, P+N, c] each.

    They precede the norms of queries and keys, and rotary positions.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor


class TokenReader:
    """Reads a timm transformer with one sequence of tokens through all blocks.

    A family defines the first tokens (`embed`), the call of a block (`call`), the projections of its attention
    (`project`), and the queries and keys of the dot product (`compared`).
    """

    version = 1
    last_resort, uniform_width, nonnegative_maps = False, True, False

    def __init__(self, module: nn.Module) -> None:
        body: Any = module
        self.body = body
        self.embed_dim: int = body.num_features
        self.depth = len(body.blocks)
        self.prefix: int = body.num_prefix_tokens
        attention = getattr(body.blocks[-1], "attn", None)
        self.num_heads: int = attention.num_heads if attention is not None else 0
        self.patch_size = measured_patch(body.patch_embed)
        self.provides = frozenset({"patches", "cls"})
        if attention is not None and self.can_project(attention):
            self.provides |= ATTENTION_KINDS if self.has_class_token else ATTENTION_KINDS - {"attention"}

    @property
    def has_class_token(self) -> bool:
        """Whether the first token is a class token."""
        raise NotImplementedError

    def can_project(self, attention: Any) -> bool:
        """Whether `project` and `compared` know this kind of attention."""
        raise NotImplementedError

    def embed(self, x: Tensor) -> tuple[Tensor, Any]:
        """Images [B, 3, H, W] -> the tokens [B, P+N, C] that enter the first block, and a further input of `call`."""
        raise NotImplementedError

    def call(self, index: int, tokens: Tensor, beside: Any) -> Tensor:
        """One block: [B, P+N, C] -> [B, P+N, C]."""
        raise NotImplementedError

    def project(self, attention: Any, x: Tensor) -> Projections:
        """Queries, keys and values of the tokens that enter an attention layer."""
        raise NotImplementedError

    def compared(self, attention: Any, queries: Tensor, keys: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Queries and keys [B, heads, P+N, c] as they enter the dot product; `options` are the layer's arguments."""
        raise NotImplementedError

    def read(self, x: Tensor, want: frozenset[str], layers: Sequence[int], norm: bool) -> dict[str, Tensor]:
        """See `Reader.read`."""
        grid = (x.shape[-2] // self.patch_size, x.shape[-1] // self.patch_size)
        tokens, beside = self.embed(x)
        parts: dict[int, dict[str, Tensor]] = {}
        for index in range(self.depth):
            if index not in layers:
                tokens = self.call(index, tokens, beside)
                continue
            with inputs_of(getattr(self.body.blocks[index], "attn", None)) as inputs:
                tokens = self.call(index, tokens, beside)
            parts[index] = self._of_layer(index, tokens, inputs, want, grid, norm)
        return {kind: torch.cat([parts[layer][kind] for layer in layers], dim=1) for kind in want}

    def _of_layer(
        self,
        index: int,
        tokens: Tensor,
        inputs: list[tuple[Tensor, dict[str, Any]]],
        want: frozenset[str],
        grid: tuple[int, int],
        norm: bool,
    ) -> dict[str, Tensor]:
        """Features of one layer, from its output tokens and the inputs of its attention."""
        result = {}
        if want & ATTENTION_KINDS:
            result = self._of_attention(self.body.blocks[index].attn, *inputs[0], want, grid)
        outputs = self.final_norm(tokens) if norm else tokens
        if "patches" in want:
            result["patches"] = rearrange(outputs[:, self.prefix :], "b (h w) c -> b c h w", h=grid[0])
        if "cls" in want:
            result["cls"] = outputs[:, 0] if self.has_class_token else self._pooled(tokens, index, norm)
        return result

    def final_norm(self, tokens: Tensor) -> Tensor:
        """The norm after the last block; in `fc_norm` if the network pools before its norm."""
        body = self.body
        return body.norm(tokens) if not isinstance(body.norm, nn.Identity) else body.fc_norm(tokens)

    def _pooled(self, tokens: Tensor, index: int, norm: bool) -> Tensor:
        """[B, C] for a network without class token: its own pooling after the last block, the mean after others."""
        body = self.body
        if not norm:
            return tokens[:, self.prefix :].mean(1)
        if index == self.depth - 1:
            return body.forward_head(body.norm(tokens), pre_logits=True)
        return body.fc_norm(body.norm(tokens)[:, self.prefix :].mean(1))

    def _of_attention(
        self, attention: Any, x: Tensor, options: dict[str, Any], want: frozenset[str], grid: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Projections of patches [B, heads*c, h, w], and the class token's attention row [B, heads, h, w]."""
        projections = self.project(attention, x)
        result = {
            kind: rearrange(value[:, :, self.prefix :], "b heads (h w) c -> b (heads c) h w", h=grid[0])
            for kind, value in projections._asdict().items()
            if kind in want
        }
        if "attention" in want:
            queries, keys = self.compared(attention, projections.queries, projections.keys, options)
            row = (queries[:, :, :1] * attention.scale) @ keys.transpose(-2, -1)
            result["attention"] = row.softmax(dim=-1)[:, :, 0, self.prefix :].unflatten(-1, grid)
        return result


def heads_of(x: Tensor, heads: int) -> Tensor:
    """[B, N, heads*c] -> [B, heads, N, c]."""
    return rearrange(x, "b n (heads c) -> b heads n c", heads=heads)


@contextmanager
def inputs_of(layer: nn.Module | None) -> Iterator[list[tuple[Tensor, dict[str, Any]]]]:
    """Record the input and the keyword arguments of a layer's calls in this thread.

    The layer's input then need not be recomputed, whatever its block does first (a norm, nothing, ...).
    """
    inputs: list[tuple[Tensor, dict[str, Any]]] = []
    if layer is None:
        yield inputs
        return
    own = threading.get_ident()

    def collect(_layer: nn.Module, given: tuple[Tensor, ...], options: dict[str, Any]) -> None:
        if threading.get_ident() == own:
            inputs.append((given[0], options))

    handle = layer.register_forward_pre_hook(collect, with_kwargs=True)
    try:
        yield inputs
    finally:
        handle.remove()


def measured_patch(patch_embed: Any) -> int:
    """Side of a token in pixels, measured on an empty image: attributes of convolutional stems can mislead.

    Raises:
        ValueError: the tokens form no square grid of whole pixels.
    """
    size = patch_embed.img_size or patch_embed.patch_size
    weight = next(patch_embed.parameters())
    with torch.no_grad():
        tokens = patch_embed(torch.zeros(1, 3, *size, device=weight.device, dtype=weight.dtype))
    count = tokens.shape[1:-1].numel()
    side = round((count * size[1] / size[0]) ** 0.5)  # tokens in a row
    if not side or size[1] % side or count * (size[1] // side) ** 2 != size[0] * size[1]:
        raise ValueError(f"an image of {size[0]}x{size[1]} pixels became {count} tokens, which form no grid of squares")
    return size[1] // side
