"""Attention of packed crops: PyTorch's attention once for each size (`--pack`), against three ways in one call.

The ways: flex attention with a block mask, compiled; nested tensors; attention of variable lengths
(`torch.nn.attention.varlen`). The work is a stack of ViT-S/16 blocks over the tokens of 2 x 224 and 8 x 96 pixels an
image, forward and backward. Flex attention has no backward on a CPU; attention of variable lengths is for CUDA alone,
in bf16 or fp16: elsewhere its row says that it was not run.
"""

import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.overrides import TorchFunctionMode

from benchmarks.bench import Row, device, in_turn, publish
from dino_dense.backbone.dino_vit import build_module
from dino_dense.pretrain.network import PackedAttention

DEVICE = device()
ON_GPU = DEVICE.type == "cuda"
IMAGES, BLOCKS = (64, 12) if ON_GPU else (2, 2)
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
SAME = 2e-2 if ON_GPU else 1e-4  # largest difference of outputs, and of gradients relative to the largest; bf16 rounds

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values [1, heads, T, c] -> [1, heads, T, c], each token among its own crop's."""


class Pass(NamedTuple):
    """Of a stack of blocks."""

    out: Tensor
    """[1, T, C]."""
    slope: Tensor | None
    """Of the tokens [1, T, C]."""


class Instead(TorchFunctionMode):
    """A context in which another function does the attention."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return self.attention(*args[:3])
        return func(*args, **(kwargs or {}))


def crop_sizes(images: int) -> list[torch.Size]:
    """Crops, and tokens of a crop, of each size: patches of 16 pixels and a class token."""
    return [torch.Size((count * images, (side // 16) ** 2 + 1)) for count, side in ((2, 224), (8, 96))]


def lengths_of(sizes: Sequence[torch.Size]) -> Tensor:
    """Tokens of each crop."""
    return torch.cat([torch.full((crops,), length) for crops, length in sizes])


def by_flex(sizes: Sequence[torch.Size]) -> Attention:
    """Flex attention over all tokens; blocks of scores between different crops are left out."""
    lengths = lengths_of(sizes)
    crop = torch.arange(len(lengths)).repeat_interleave(lengths).to(DEVICE)

    def same(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return crop[query] == crop[key]

    mask = create_block_mask(same, None, None, len(crop), len(crop), device=DEVICE, _compile=ON_GPU)
    compiled = torch.compile(flex_attention)
    return lambda q, k, v: compiled(q, k, v, block_mask=mask)


def by_nesting(sizes: Sequence[torch.Size]) -> Attention:
    """PyTorch's attention of nested tensors: a batch of crops of different lengths."""
    lengths = lengths_of(sizes)
    limits = {"min_seqlen": int(lengths.min()), "max_seqlen": int(lengths.max())}
    offsets = F.pad(lengths.cumsum(0), (1, 0)).to(DEVICE)

    def attend(*qkv: Tensor) -> Tensor:
        nested = (
            torch.nested.nested_tensor_from_jagged(part[0].transpose(0, 1).contiguous(), offsets, **limits)
            for part in qkv
        )  # each [crops, L_i, heads, c]
        out = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in nested))
        return out.transpose(1, 2).values().transpose(0, 1)[None]

    return attend


def by_varlen(sizes: Sequence[torch.Size]) -> Attention:
    """PyTorch's attention of variable lengths, by FlashAttention or cuDNN."""
    from torch.nn.attention.varlen import varlen_attn

    limits = F.pad(lengths_of(sizes).cumsum(0), (1, 0)).to(DEVICE, torch.int32)
    longest = max(length for _, length in sizes)

    def attend(*qkv: Tensor) -> Tensor:
        q, k, v = (part[0].transpose(0, 1).contiguous() for part in qkv)  # each [T, heads, c]
        out = varlen_attn(q, k, v, limits, limits, longest, longest)
        assert isinstance(out, Tensor)  # without return_aux
        return out.transpose(0, 1)[None]

    return attend


def varlen_lacks() -> str:
    """What `by_varlen` needs that is not here; empty if nothing."""
    if not ON_GPU:
        return "CUDA"
    return "" if importlib.util.find_spec("torch.nn.attention.varlen") else "PyTorch 2.10"


def passing(blocks: nn.Module, tokens: Tensor, mode: TorchFunctionMode, *, backward: bool) -> Pass:
    blocks.zero_grad()
    entered = tokens.clone().requires_grad_(backward)
    with torch.set_grad_enabled(backward), torch.autocast(DEVICE.type, DTYPE, enabled=ON_GPU), mode:
        out = blocks(entered)
    if backward:
        out.float().square().mean().backward()
    return Pass(out.detach().float(), entered.grad)


def difference(plain: Pass, ours: Pass) -> float:
    """The larger of the differences of outputs and of gradients, each relative to the largest value."""
    pairs = [(plain.out, ours.out)]
    if plain.slope is not None and ours.slope is not None:
        pairs.append((plain.slope, ours.slope))
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def rows(images: int, depth: int, repeats: int = 5) -> list[Row]:
    """A row for each way, of a batch of images through so many blocks."""
    sizes = crop_sizes(images)
    torch.manual_seed(0)
    blocks = build_module("vit_small_patch16_224").blocks[:depth].to(DEVICE)  # type: ignore[index, union-attr]
    work = f"{depth} blocks of ViT-S/16, {images} images of packed crops"
    both, forward = f"{work}, forward and backward", f"{work}, forward alone"
    return [
        compared(f"{both if ON_GPU else forward}, by flex attention", blocks, sizes, by_flex(sizes), repeats, ON_GPU),
        compared(f"{both}, by nested tensors", blocks, sizes, by_nesting(sizes), repeats, True),
        of_varlen(f"{both}, by attention of variable lengths", blocks, sizes, repeats),
    ]


def of_varlen(work: str, blocks: nn.Module, sizes: Sequence[torch.Size], repeats: int) -> Row:
    if lacks := varlen_lacks():
        return Row("packing", work, math.nan, math.nan, "s", check=f"not run here: needs {lacks}")
    return compared(work, blocks, sizes, by_varlen(sizes), repeats, True)


def compared(
    work: str,
    blocks: nn.Module,
    sizes: Sequence[torch.Size],
    attention: Attention,
    repeats: int,
    backward: bool,
) -> Row:
    tokens = torch.randn(1, int(lengths_of(sizes).sum()), 384).to(DEVICE)

    def run(mode: TorchFunctionMode) -> Pass:
        return passing(blocks, tokens, mode, backward=backward)

    far = difference(run(PackedAttention(sizes)), run(Instead(attention)))
    plain, ours = in_turn(lambda: run(PackedAttention(sizes)), lambda: run(Instead(attention)), repeats)
    work += " (plain: a call a size)"
    return Row("packing", work, plain, ours, "s", check=f"largest difference {far:.1e}", agrees=far <= SAME)


def main() -> list[Row]:
    every = rows(IMAGES, BLOCKS)
    publish(every)
    return every


if __name__ == "__main__":
    main()
