"""Blocked bfloat16 attention on the CPU: the same numbers as PyTorch's, used only where it can be."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_dense import load_backbone
from dino_dense.backbone import cpu_attention
from dino_dense.backbone.cpu_attention import BLOCK, MOST_TOKENS_TO_TRAIN, BlockedAttention, attend_in_blocks

TOKENS = 300


def triple(tokens: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, 2, 3, tokens, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    return q, k, v


@pytest.mark.parametrize("tokens", [1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7])
def test_blocks_give_the_definition(tokens: int):
    q, k, v = triple(tokens, torch.float32)
    expected = (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v
    torch.testing.assert_close(attend_in_blocks(q, k, v), expected, atol=1e-6, rtol=1e-5)


def test_no_further_from_float32_than_pytorchs_own_kernel():
    parts = triple(700)
    exact = F.scaled_dot_product_attention(*(part.float() for part in parts))
    ours, theirs = (
        (attend(*parts).float() - exact).abs().mean().item()
        for attend in (attend_in_blocks, F.scaled_dot_product_attention)
    )
    assert ours < 2 * theirs


def test_a_backbone_in_bf16_uses_it_and_stays_near_fp32(monkeypatch: pytest.MonkeyPatch):
    calls: list[torch.Size] = []

    def counted(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        calls.append(query.shape)
        return attend_in_blocks(query, key, value)

    monkeypatch.setattr(cpu_attention, "attend_in_blocks", counted)
    backbone = load_backbone("random:vit_micro_patch8_64")
    images = torch.rand(1, 3, 192, 256, generator=torch.Generator().manual_seed(0))  # 768 patches
    exact = backbone.extract(images).patches
    assert not calls
    reduced = backbone.to("cpu", torch.bfloat16).extract(images).patches
    assert exact is not None
    assert reduced is not None
    assert len(calls) == backbone.depth
    assert (reduced - exact).abs().mean() < 0.02 * exact.abs().mean()


@pytest.mark.parametrize(
    ("parts", "options"),
    [
        (triple(TOKENS, torch.float32), {}),
        (triple(TOKENS), {"is_causal": True}),
        (triple(TOKENS), {"attn_mask": torch.ones(TOKENS, TOKENS, dtype=torch.bool)}),
        (triple(TOKENS), {"scale": 0.5}),
    ],
)
@torch.no_grad()
def test_all_else_is_left_to_pytorch(parts: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu_attention, "attend_in_blocks", lambda *_: pytest.fail("not for this"))
    expected = F.scaled_dot_product_attention(*parts, **options)
    with BlockedAttention():
        assert torch.equal(F.scaled_dot_product_attention(*parts, **options), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_the_definition(dtype: torch.dtype):
    results = []
    for attend in (attend_in_blocks, F.scaled_dot_product_attention):
        parts = [part.requires_grad_() for part in triple(197, dtype)]
        out = attend(*parts)
        out.square().sum().backward()
        results.append([out, *(part.grad for part in parts)])
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    for ours, theirs in zip(*results, strict=True):
        assert (ours.float() - theirs.float()).norm() <= tolerance * theirs.float().norm()


@pytest.mark.parametrize(("tokens", "ours"), [(MOST_TOKENS_TO_TRAIN, True), (MOST_TOKENS_TO_TRAIN + 1, False)])
def test_long_inputs_that_need_gradients_go_through_pytorchs_kernel(
    tokens: int, ours: bool, monkeypatch: pytest.MonkeyPatch
):
    calls: list[int] = []
    monkeypatch.setattr(cpu_attention, "attend_in_blocks", lambda *parts: calls.append(1) or attend_in_blocks(*parts))
    q, k, v = (part.requires_grad_() for part in triple(tokens))
    with BlockedAttention():
        F.scaled_dot_product_attention(q, k, v).sum().backward()
    assert bool(calls) == ours
    assert q.grad is not None
