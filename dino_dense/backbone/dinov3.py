"""DINOv3's vision transformer: timm's `Eva`, with its rotary periods in the state dict.

Shapes: C channels, c channels of a head.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from timm.layers import LayerNorm
from timm.models.eva import Eva
from torch import Tensor

ROPE_BASE = 100.0  # dinov3/hub/backbones.py, pos_embed_rope_base
SIZES = {
    "tiny": (192, 12, 768, "gelu"),
    "small": (384, 12, 1536, "gelu"),
    "small_plus": (384, 12, 1536, "swiglu"),
    "base": (768, 12, 3072, "gelu"),
    "large": (1024, 24, 4096, "gelu"),
    "huge_plus": (1280, 32, 5120, "swiglu"),
    "7b": (4096, 40, 8192, "swiglu"),
}
"""Name -> channels, blocks, channels of the hidden layer, its kind (dinov3/hub/backbones.py; tiny is EUPE's)."""


@dataclass(frozen=True)
class RotaryShape:
    """The architecture of a DINOv3 vision transformer. Stored in every checkpoint we write."""

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int
    registers: int
    mlp: Literal["gelu", "swiglu"]
    mlp_hidden: int
    layer_scale: bool = True
    qkv_bias: bool = True
    """Biases of queries and values."""
    key_bias: bool = False
    """Biases of keys; DINOv3 masks them."""

    @property
    def name(self) -> str:
        """timm-style name if the size has one (`vit_small_patch16_dinov3`), else the numbers."""
        sizes = {numbers: size for size, numbers in SIZES.items()}
        own = (self.embed_dim, self.depth, self.mlp_hidden, self.mlp)
        size = sizes.get(own, f"c{self.embed_dim}d{self.depth}")
        return f"vit_{size}_patch{self.patch_size}_dinov3"


class DinoV3(Eva):
    """A transformer with rotary positions as DINOv3 trains it. Its image feature is the class token.

    `rope.periods` is part of the state dict: published files have them rounded to bfloat16, timm would recompute them.
    """

    def __init__(self, shape: RotaryShape, drop_path_rate: float = 0.0) -> None:
        super().__init__(
            img_size=16 * shape.patch_size,
            patch_size=shape.patch_size,
            num_classes=0,
            global_pool="token",
            embed_dim=shape.embed_dim,
            depth=shape.depth,
            num_heads=shape.num_heads,
            qkv_bias=shape.qkv_bias,
            mlp_ratio=(shape.mlp_hidden + 0.5) / shape.embed_dim,  # timm rounds the product down
            swiglu_mlp=shape.mlp == "swiglu",
            swiglu_align_to=1 if shape.mlp == "swiglu" else 0,
            norm_layer=partial(LayerNorm, eps=1e-5),
            init_values=1e-5 if shape.layer_scale else None,
            num_reg_tokens=shape.registers,
            use_abs_pos_emb=False,
            use_rot_pos_emb=True,
            rope_type="dinov3",
            rope_temperature=ROPE_BASE,
            rope_rotate_half=True,
            use_fc_norm=False,
            dynamic_img_size=True,
            drop_path_rate=drop_path_rate,
        )
        self.shape = shape
        rope: Any = self.rope
        rope.register_buffer("periods", rope.periods, persistent=True)
        for block in self.blocks if shape.key_bias else []:
            attention: Any = block.attn
            attention.register_buffer("k_bias", attention.k_bias, persistent=True)


def periods_of(head_dim: int, base: float = ROPE_BASE) -> Tensor:
    """[c / 4], base^(k / (c / 4)) (dinov3/layers/rope_position_encoding.py)."""
    return base ** (2 * torch.arange(head_dim // 4, dtype=torch.float32) / (head_dim // 2))


def infer_rotary_shape(weights: dict[str, Tensor], heads: int | None) -> RotaryShape:
    """Infer the architecture from weights in DINOv3's names; `heads` if the file's periods do not determine them.

    Raises:
        KeyError: a part is missing.
    """
    embed_dim, _, patch, _ = weights["patch_embed.proj.weight"].shape
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    swiglu = "blocks.0.mlp.w1.weight" in weights
    hidden = weights["blocks.0.mlp.w1.weight" if swiglu else "blocks.0.mlp.fc1.weight"].shape[0]
    tokens = weights.get("storage_tokens")
    return RotaryShape(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=heads or embed_dim // (4 * len(weights["rope_embed.periods"])),
        patch_size=patch,
        registers=0 if tokens is None else tokens.shape[1],
        mlp="swiglu" if swiglu else "gelu",
        mlp_hidden=hidden,
        layer_scale="blocks.0.ls1.gamma" in weights,
        qkv_bias="blocks.0.attn.qkv.bias" in weights,
        key_bias=any(bool(bias.chunk(3)[1].any()) for bias in _biases(weights).values()),
    )


def to_eva_names(weights: dict[str, Tensor], shape: RotaryShape) -> dict[str, Tensor]:
    """DINOv3's names -> the names of `DinoV3`."""
    biases = _biases(weights)
    result: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name in biases:
            stem, (q, k, v) = name.removesuffix("qkv.bias"), biases[name].chunk(3)
            result |= {f"{stem}q_bias": q, f"{stem}v_bias": v} | ({f"{stem}k_bias": k} if shape.key_bias else {})
        elif not name.endswith("bias_mask"):
            result[_eva_name(name)] = value
    result.setdefault("rope.periods", periods_of(shape.embed_dim // shape.num_heads))
    return result


def _eva_name(name: str) -> str:
    renames = {"storage_tokens": "reg_token", "rope_embed.periods": "rope.periods"}
    parts = {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
    parts |= {"mlp.w1.": "mlp.fc1_g.", "mlp.w2.": "mlp.fc1_x.", "mlp.w3.": "mlp.fc2."}
    for old, new in parts.items():
        name = name.replace(old, new)
    return renames.get(name, name)


def _biases(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Biases of queries, keys and values times their mask, as the layer applies them (LinearKMaskedBias)."""
    masked = {}
    for name, bias in weights.items():
        if name.endswith("attn.qkv.bias"):
            mask = weights.get(f"{name}_mask")
            masked[name] = bias if mask is None else torch.where(mask == 0, torch.zeros_like(bias), bias * mask)
    return masked
