"""Vision transformers that a run begins with random weights: registers, LayerScale, SwiGLU, rotary positions."""

from dataclasses import dataclass, fields
from typing import ClassVar, Literal

from torch import nn

from dino_dense.backbone.dino_vit import VIT_SIZES, DinoViT, ViTShape, build_module, widen_attention
from dino_dense.backbone.dinov3 import DinoV3, RotaryShape
from dino_dense.pretrain.options import NOT_NEGATIVE, POSITIVE, Options, Ranges

TOKEN_STD = 0.02
"""Deviation of initial class and register tokens (dino, dinov3/models/vision_transformer.py); timm has 1e-6."""
SWIGLU_MULTIPLE = 8
"""The hidden layer of SwiGLU has a multiple of so many channels (dinov2/layers/swiglu_ffn.py)."""


@dataclass(frozen=True)
class BodyOptions(Options):
    """Body: for a vit_{SIZE}_patch{P}_{PIXELS} with random weights"""

    registers: int = 0
    """Register tokens beside the class token. (dinov2 with registers, dinov3: 4)"""
    layer_scale: bool = False
    """A trained factor on each channel of a block's output, 1e-5 at first. (dinov2, dinov3)"""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """Hidden layer of a block: gelu, or swiglu, a gated layer of 2/3 as many channels. (swiglu: dinov2 ViT-g, dinov3
    ViT-S+ and ViT-H+)"""
    mlp_ratio: float = 4.0
    """Channels of the hidden layer / channels; with swiglu, times 2/3. (dinov3 ViT-S+: 6)"""
    positions: Literal["table", "rotary"] = "table"
    """table: a learned position for each patch; rotary: angles of queries and keys (dinov3)."""
    rope_shift: float = 0.0
    """For rotary positions in training: largest shift of the coordinates, which span -1 to 1. A draw for each step,
    block, and size of crop; one for each axis. (dinov3: none)"""
    rope_jitter: float = 1.0
    """Largest factor on the coordinates of each axis; the smallest is its inverse. (dinov3: none)"""
    rope_rescale: float = 1.0
    """Largest factor on the coordinates of both axes; the smallest is its inverse. (dinov3: 2)"""

    RANGES: ClassVar[Ranges] = {
        **dict.fromkeys(("registers", "rope_shift"), NOT_NEGATIVE),
        "mlp_ratio": POSITIVE,
        **dict.fromkeys(("rope_jitter", "rope_rescale"), (1, 100)),
    }

    @property
    def shaped(self) -> list[str]:
        """Names of options that change the weights, and differ from their defaults."""
        names = ("registers", "layer_scale", "mlp", "mlp_ratio", "positions")
        return [field.name for field in fields(BodyOptions) if field.name in names and self._differs(field.name)]

    @property
    def jitters(self) -> bool:
        """Whether rotary coordinates are drawn in training."""
        return any(self._differs(name) for name in ("rope_shift", "rope_jitter", "rope_rescale"))

    def _differs(self, name: str) -> bool:
        return bool(getattr(self, name) != getattr(BodyOptions, name))


def new_body(options: BodyOptions, arch: str, drop_path_rate: float, image_size: int) -> nn.Module:
    """A network with weights drawn from the global generator.

    Raises:
        ValueError: `arch` is unknown, or is no vision transformer that can have these options.
    """
    shape = ViTShape.from_name(arch, image_size)
    if shape is None:
        if names := options.shaped:
            raise ValueError(f"{', '.join(names)} is set, but {arch} is none of the vit_{{SIZE}}_patch{{P}}_{{PIXELS}}")
        return build_module(arch, drop_path_rate=drop_path_rate, img_size=image_size)
    if options.positions == "rotary":
        body: DinoViT | DinoV3 = DinoV3(_rotary_shape(options, shape), drop_path_rate)
    else:
        body = DinoViT(_table_shape(options, shape), drop_path_rate)
    _initialize(body)
    return body


def hidden_channels(options: BodyOptions, channels: int) -> int:
    """Channels of the hidden layer, of each half for SwiGLU."""
    hidden = int(options.mlp_ratio * channels)
    if options.mlp == "gelu":
        return hidden
    return -(-int(hidden * 2 / 3) // SWIGLU_MULTIPLE) * SWIGLU_MULTIPLE


def _table_shape(options: BodyOptions, shape: ViTShape) -> ViTShape:
    hidden = hidden_channels(options, shape.embed_dim) * (2 if options.mlp == "swiglu" else 1)
    return ViTShape(
        *(shape.embed_dim, shape.depth, shape.num_heads, shape.patch_size, shape.grid_size),
        registers=options.registers,
        layer_scale=options.layer_scale,
        mlp=options.mlp,
        mlp_hidden=None if hidden == 4 * shape.embed_dim else hidden,
        # DINOv2's rule of positions, which differs with registers.
        position_offset=0.0 if options.registers else ViTShape.position_offset,
        position_antialias=options.registers > 0,
    )


def _rotary_shape(options: BodyOptions, shape: ViTShape) -> RotaryShape:
    return RotaryShape(
        *(shape.embed_dim, shape.depth, shape.num_heads, shape.patch_size),
        registers=options.registers,
        mlp=options.mlp,
        mlp_hidden=hidden_channels(options, shape.embed_dim),
        layer_scale=options.layer_scale,
    )


def _initialize(body: DinoViT | DinoV3) -> None:
    """Weights as the authors draw them, where timm does otherwise."""
    if isinstance(body, DinoV3):
        for module in body.modules():
            if isinstance(module, nn.Linear):  # timm divides some of these by a root of the block's number
                nn.init.trunc_normal_(module.weight, std=TOKEN_STD)
    if (body.shape.embed_dim, body.shape.depth) == VIT_SIZES["micro"]:
        widen_attention(body)  # before the tokens, as `build_module` does: a seed keeps its weights
    for token in (body.cls_token, body.reg_token):
        if token is not None:
            nn.init.trunc_normal_(token, std=TOKEN_STD)
