"""Recognize an architecture by the names and shapes of its weights; build the empty network and rename the weights.

Weights come in the names of their authors (`names.to_published_names`).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from timm.models import convnext, xcit
from torch import Tensor, nn

from dino_dense.backbone.dino_vit import HEAD_DIM, VIT_SIZES, ViTShape, build_module, create_timm, rebuild
from dino_dense.backbone.dinov3 import DinoV3, infer_rotary_shape, periods_of, to_eva_names
from dino_dense.checkpoint import CheckpointError, Weights

Tensors = dict[str, Tensor]
Positions = Literal["official", "hf"]


@dataclass(frozen=True)
class Hints:
    """Facts about a network that its weights do not show."""

    heads: int | None = None
    """Attention heads given by the user."""
    stated_heads: int | None = None
    """Attention heads by the file's own config."""
    tool: str = ""
    """The tool that wrote the file, if a rule of `layouts` recognized it."""
    positions: Positions = "official"
    """The rule that resamples a position table: its authors' (DINO, DINOv2), or transformers' (plain bicubic)."""
    rope_base: float | None = None
    """Base of DINOv3's periods by the file's own config."""


@dataclass(frozen=True)
class Recognized:
    """An empty body and the weights in its names."""

    module: nn.Module
    weights: Tensors
    note: str = ""
    """An assumption that may be wrong, and the option that overrides it; "" without an assumption."""


def recognize(weights: Tensors, hints: Hints, path: Path | str) -> Recognized:
    """The architecture of weights, from their names and shapes.

    Raises:
        CheckpointError: this project does not know the architecture.
    """
    for fits, build in FAMILIES:
        if fits(weights):
            return build(weights, hints, path)
    hint = "Give its architecture with --arch (any timm name)."
    if any("storage_tokens" in name or "rope_embed" in name for name in weights):
        hint = "It looks like a part of DINOv3: give a complete backbone file."
    if "patch_embed.proj.0.weight" in weights:
        hint = "Its stem is made of convolutions (MoCo v3's vit_conv), which is not supported."
    raise CheckpointError(f"{path}: unknown architecture; its names begin {_some(weights)}. {hint}")


def _some(names: Mapping[str, Any], most: int = 4) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f", ... ({len(listed) - most} more)" if len(listed) > most else "")


# --- Vision transformers with a position table ---------------------------------------------------------------


def infer_vit_shape(
    weights: Mapping[str, Tensor], path: Path | str = "checkpoint", heads: int | None = None
) -> ViTShape:
    """Read a ViT's architecture off its weights (published or timm names).

    Args:
        heads: attention heads; default channels / 64, for DINO's sizes only.

    Raises:
        CheckpointError: a part is missing, the position table is not a square grid, or the number of heads is
            unknown or impossible.
    """
    needed = ("patch_embed.proj.weight", "cls_token", "norm.weight", "blocks.0.mlp.fc2.weight")
    absent = [name for name in needed if name not in weights and name.replace("fc2", "w3") not in weights]
    if absent:
        raise CheckpointError(f"{path}: no {', '.join(absent)} in it; expected a complete vision transformer.")
    embed_dim, _, patch, _ = weights["patch_embed.proj.weight"].shape
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    if heads is None and (embed_dim, depth) not in VIT_SIZES.values():
        raise CheckpointError(
            f"{path}: a transformer of {embed_dim} channels and {depth} blocks is none of DINO's sizes "
            f"({', '.join(f'{size} {dims}' for size, dims in VIT_SIZES.items())}), so its number of heads is unknown. "
            "Give it with --heads, or its architecture with --arch."
        )
    heads = heads or embed_dim // HEAD_DIM
    if embed_dim % heads:
        raise CheckpointError(f"{path}: {heads} heads cannot share its {embed_dim} channels. Give another --heads.")
    registers = weights.get("register_tokens", weights.get("reg_token"))
    count = 0 if registers is None else registers.shape[1]
    swiglu = "blocks.0.mlp.w12.weight" in weights
    hidden = weights["blocks.0.mlp.w12.weight" if swiglu else "blocks.0.mlp.fc1.weight"].shape[0]
    swiglu = swiglu or weights["blocks.0.mlp.fc2.weight"].shape[1] * 2 == hidden
    shape = ViTShape(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=heads,
        patch_size=patch,
        grid_size=_grid_side(weights["pos_embed"], path),
        registers=count,
        layer_scale="blocks.0.ls1.gamma" in weights or "blocks.0.gamma_1" in weights,
        mlp="swiglu" if swiglu else "gelu",
        mlp_hidden=None if hidden == 4 * embed_dim else hidden,
    )
    if count:  # DINOv2's register models drop the 0.1 and antialias (dinov2/hub/backbones.py)
        shape = replace(shape, position_offset=0.0, position_antialias=True)
    return shape


def has_official_positions(name: str) -> bool:
    """Whether a network is DINO's or DINOv2's by its name in timm: their authors have a rule for positions."""
    return "dinov2" in name or name.endswith(".dino")


def _grid_side(table: Tensor, path: Path | str) -> int:
    positions = table.shape[1]
    side = round(positions**0.5)  # timm leaves out the class token's position in some; both are square +0 or +1
    if side**2 not in (positions, positions - 1):
        raise CheckpointError(
            f"{path}: pos_embed has {positions} positions; expected a square grid, with or without the class token."
        )
    return side


def to_our_names(weights: Weights) -> Weights:
    """Published and timm names -> the names of `DinoViT`."""
    renames = {"register_tokens": "reg_token"}
    if "norm.weight" not in weights:  # a body that pools before its norm (MAE's fine-tuning, iBOT's mean pooling)
        renames |= {"fc_norm.weight": "norm.weight", "fc_norm.bias": "norm.bias"}
    ours = {_our_name(renames.get(name, name)): value for name, value in weights.items()}
    table = ours.get("pos_embed")
    if table is not None and round(table.shape[1] ** 0.5) ** 2 == table.shape[1]:
        # timm adds the class token's position into the token itself; ours keeps a (now zero) position for it.
        ours["pos_embed"] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
    return ours


def _our_name(name: str) -> str:
    name = re.sub(r"\.mlp\.w12\.", ".mlp.fc1.", re.sub(r"\.mlp\.w3\.", ".mlp.fc2.", name))
    return re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name)  # iBOT's layer scale


PLAIN_POSITIONS = ("MoCo v3", "MoCo", "I-JEPA", "timm with averaged weights")
"""Tools whose networks are not DINO's: their positions are resampled as timm does, to the size alone, antialiased."""


def _recognize_vit(weights: Tensors, hints: Hints, path: Path | str) -> Recognized:
    weights = to_our_names(weights)
    heads, note = _heads(weights, hints)
    shape = infer_vit_shape(weights, path, heads)
    if hints.positions == "hf":
        shape = replace(shape, position_offset=0.0)
    elif hints.tool in PLAIN_POSITIONS or has_sine_positions(weights["pos_embed"]):
        shape = replace(shape, position_offset=0.0, position_antialias=True)
    like_moco = shape.embed_dim == 384 and shape.patch_size == 16 and not shape.layer_scale and not shape.registers
    if not note and heads is None and like_moco and not hints.tool.startswith("DINO"):
        note = (
            f"{shape.num_heads} attention heads are assumed, as in DINO's networks of this size; nothing in the file "
            "says so. MoCo v3's has 12: then give --heads 12."
        )
    return Recognized(rebuild({"body": "vit", **vars(shape)}), weights, note)


def _heads(weights: Tensors, hints: Hints) -> tuple[int | None, str]:
    """Attention heads (None if unknown), and a note if they are only inferred."""
    if hints.heads or hints.stated_heads:
        return hints.heads or hints.stated_heads, ""
    small = weights["cls_token"].shape[-1] == 384 if "cls_token" in weights else False
    if small and hints.tool == "MoCo v3":
        return 12, ""  # moco-v3/vits.py, vit_small
    if small and has_sine_positions(weights["pos_embed"]):
        return (
            12,
            "its fixed positions are those of MoCo v3's ViT-S, which has 12 attention heads (else give --heads)",
        )
    return None, ""


def has_sine_positions(table: Tensor) -> bool:
    """Whether a position table [1, 1+N, C] is fixed: sines and cosines of column and row, and 0 for the class token.

    MoCo v3 and MAE have such tables (moco-v3/vits.py, build_2d_sincos_position_embedding).
    """
    side, channels = round((table.shape[1] - 1) ** 0.5), table.shape[2]
    if side**2 + 1 != table.shape[1] or channels % 4:
        return False
    omega = 10000.0 ** -(torch.arange(channels // 4, dtype=torch.float32) / (channels // 4))
    columns = torch.arange(side, dtype=torch.float32)[None].expand(side, side).reshape(-1, 1) * omega
    rows = columns.view(side, side, -1).transpose(0, 1).reshape(side**2, -1)
    own = table[0, 1:].float()
    tables = [torch.cat([first.sin(), first.cos(), second.sin(), second.cos()], dim=1)
              for first, second in ((columns, rows), (rows, columns))]  # fmt: skip
    return not table[0, 0].any() and any(torch.allclose(own, fixed, atol=1e-3) for fixed in tables)


def _recognize_distilled(weights: Tensors, hints: Hints, path: Path | str) -> Recognized:
    """DeiT with a distillation token beside the class token."""
    channels, patch = weights["patch_embed.proj.weight"].shape[0], weights["patch_embed.proj.weight"].shape[2]
    size = {192: "tiny", 384: "small", 768: "base"}.get(channels)
    side = round((weights["pos_embed"].shape[1] - 2) ** 0.5)
    if size is None or patch != 16:
        raise CheckpointError(f"{path}: a distilled transformer of {channels} channels is none of DeiT's.")
    name = f"deit_{size}_distilled_patch16_224"
    return Recognized(create_timm(name, pretrained=False, img_size=16 * side), weights)


# --- DINOv3 --------------------------------------------------------------------------------------------------


def _is_dinov3(weights: Tensors) -> bool:
    return "cls_token" in weights and "pos_embed" not in weights and "blocks.0.attn.qkv.weight" in weights


def _recognize_dinov3(weights: Tensors, hints: Hints, path: Path | str) -> Recognized:
    weights = _from_timm_eva(weights)
    channels = weights["patch_embed.proj.weight"].shape[0]
    heads = hints.heads or hints.stated_heads
    if heads is None and "rope_embed.periods" not in weights:
        heads = channels // (128 if channels == 4096 else HEAD_DIM)  # dinov3/hub/backbones.py
    try:
        shape = infer_rotary_shape(weights, heads)
        ours = to_eva_names(weights, shape)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: looks like DINOv3, but {error} is missing: give a complete file.") from None
    if hints.rope_base is not None and "rope_embed.periods" not in weights:
        ours["rope.periods"] = periods_of(shape.embed_dim // shape.num_heads, hints.rope_base)
    return Recognized(DinoV3(shape), ours)


def _from_timm_eva(weights: Tensors) -> Tensors:
    """timm's names of DINOv3 -> its authors'."""
    names = {"reg_token": "storage_tokens", "register_tokens": "storage_tokens", "rope.periods": "rope_embed.periods"}
    parts = {r"\.gamma_([12])$": r".ls\1.gamma", r"\.fc1_g\.": ".w1.", r"\.fc1_x\.": ".w2."}
    gated = any(".mlp.fc1_g." in name for name in weights)
    result = {}
    for name, value in weights.items():
        new = names.get(name, name)
        for pattern, replacement in parts.items():
            new = re.sub(pattern, replacement, new)
        if gated:
            new = new.replace(".mlp.fc2.", ".mlp.w3.")
        if new.endswith(".q_bias"):
            stem = new.removesuffix("q_bias")
            key_bias = weights.get(f"{stem}k_bias", torch.zeros_like(value))
            result[f"{stem}qkv.bias"] = torch.cat([value, key_bias, weights[f"{stem}v_bias"]])
        elif not new.endswith((".k_bias", ".v_bias")):
            result[new] = value
    return result


# --- Others --------------------------------------------------------------------------------------------------

# Blocks in each stage, and whether they are bottlenecks -> the architecture (He et al. 2016, table 1).
RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
}
CONVNEXTS = {((3, 3, 9, 3), 96): "tiny", ((3, 3, 27, 3), 96): "small", ((3, 3, 27, 3), 128): "base"}
CONVNEXTS |= {((3, 3, 27, 3), 192): "large"}
"""Blocks in each stage and channels of the first -> size (Liu et al. 2022)."""
XCITS = {128: "nano", 192: "tiny", 384: "small", 512: "medium", 768: "large"}
"""Channels -> size (El-Nouby et al. 2021, table 1)."""


def _depths(weights: Tensors, pattern: str) -> tuple[int, ...]:
    """Number of blocks of each stage; `pattern` matches stage and block in a name."""
    blocks = {match.groups() for name in weights if (match := re.match(pattern, name))}
    stages = sorted({stage for stage, _ in blocks})
    return tuple(sum(own == stage for own, _ in blocks) for stage in stages)


def _is_resnet(weights: Tensors) -> bool:
    return _resnet_name(weights) is not None


def _resnet_name(weights: Tensors) -> str | None:
    return RESNETS.get((_depths(weights, r"layer(\d)\.(\d+)\."), "layer1.0.conv3.weight" in weights))  # type: ignore[arg-type]


def _recognize_resnet(weights: Tensors, _: Hints, path: Path | str) -> Recognized:
    side = weights["conv1.weight"].shape[-1] if "conv1.weight" in weights else 7
    if side != 7:
        raise CheckpointError(f"{path}: its first convolution is {side}x{side}, as for CIFAR's images; expected 7x7.")
    return Recognized(build_module(_resnet_name(weights) or "resnet50"), weights)


def _recognize_convnext(weights: Tensors, _: Hints, path: Path | str) -> Recognized:
    depths = _depths(weights, r"stages\.(\d)\.(?:blocks\.)?(\d+)\.")
    channels = next(weights[n] for n in ("downsample_layers.0.0.weight", "stem.0.weight") if n in weights).shape[0]
    size = CONVNEXTS.get((depths, channels))  # type: ignore[arg-type]
    if size is None:
        raise CheckpointError(f"{path}: a ConvNeXt of {depths} blocks and {channels} channels; give it with --arch.")
    module = build_module(f"convnext_{size}")
    return Recognized(module, convnext.checkpoint_filter_fn(dict(weights), module))


def _recognize_xcit(weights: Tensors, _: Hints, path: Path | str) -> Recognized:
    channels = weights["cls_token"].shape[-1]
    depth = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    patch = 16 if "patch_embed.proj.6.0.weight" in weights else 8
    name = f"xcit_{XCITS.get(channels)}_{depth}_p{patch}_224"
    try:
        module = build_module(name)
    except ValueError:
        raise CheckpointError(f"{path}: an XCiT of {channels} channels and {depth} blocks is no known one.") from None
    return Recognized(module, xcit.checkpoint_filter_fn(dict(weights), module))


Build = Callable[[Tensors, Hints, Path | str], Recognized]
FAMILIES: tuple[tuple[Callable[[Tensors], bool], Build], ...] = (
    (lambda weights: "dist_token" in weights and "pos_embed" in weights, _recognize_distilled),
    (lambda weights: "patch_embed.proj.0.0.weight" in weights and "cls_token" in weights, _recognize_xcit),
    (lambda weights: "blocks.0.attn.qkv.weight" in weights and "pos_embed" in weights, _recognize_vit),
    (_is_dinov3, _recognize_dinov3),
    (lambda weights: "downsample_layers.0.0.weight" in weights, _recognize_convnext),
    (lambda weights: "stem.0.weight" in weights and "stages.0.blocks.0.conv_dw.weight" in weights, _recognize_convnext),
    (_is_resnet, _recognize_resnet),
)
"""For each family: the test that recognizes it by names, and the function that builds its network."""
