"""A folder that transformers opens: config.json, preprocessor_config.json and model.safetensors.

Names and fields are those of ViTModel, Dinov2Model, Dinov2WithRegistersModel and DINOv3ViTModel (transformers,
models/*/modeling_*.py and configuration_*.py). C channels, R registers.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dino_dense.backbone.backbone import Backbone
from dino_dense.backbone.dino_vit import DinoViT, ViTShape
from dino_dense.backbone.dinov3 import ROPE_BASE, DinoV3, RotaryShape, periods_of
from dino_dense.checkpoint import write_plain_tensors
from dino_dense.export.timm_folder import CONFIG_FILE, WEIGHTS_FILE
from dino_dense.files import write_text

PREPROCESSOR_FILE = "preprocessor_config.json"
Rename = tuple[tuple[str, str], ...]

COMMON: Rename = (
    (r"cls_token", "embeddings.cls_token"),
    (r"pos_embed", "embeddings.position_embeddings"),
    (r"reg_token", "embeddings.register_tokens"),
)
VIT: Rename = (
    *COMMON,
    (r"patch_embed\.proj\.(\w+)", r"embeddings.patch_embeddings.projection.\1"),
    (r"norm\.(\w+)", r"layernorm.\1"),
    (r"blocks\.(\d+)\.attn\.([qkv])\.(\w+)", r"encoder.layer.\1.attention.attention.<\2>.\3"),
    (r"blocks\.(\d+)\.attn\.proj\.(\w+)", r"encoder.layer.\1.attention.output.dense.\2"),
)
PLAIN: Rename = (
    *VIT,
    (r"blocks\.(\d+)\.norm1\.(\w+)", r"encoder.layer.\1.layernorm_before.\2"),
    (r"blocks\.(\d+)\.norm2\.(\w+)", r"encoder.layer.\1.layernorm_after.\2"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(\w+)", r"encoder.layer.\1.intermediate.dense.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(\w+)", r"encoder.layer.\1.output.dense.\2"),
)
DINOV2: Rename = (
    *VIT,
    (r"blocks\.(\d+)\.norm([12])\.(\w+)", r"encoder.layer.\1.norm\2.\3"),
    (r"blocks\.(\d+)\.ls([12])\.gamma", r"encoder.layer.\1.layer_scale\2.lambda1"),
    (r"blocks\.(\d+)\.mlp\.fc([12])\.(\w+)", r"encoder.layer.\1.mlp.fc\2.\3"),
)
DINOV2_GATED: Rename = (
    *DINOV2[:-1],
    (r"blocks\.(\d+)\.mlp\.fc1\.(\w+)", r"encoder.layer.\1.mlp.weights_in.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(\w+)", r"encoder.layer.\1.mlp.weights_out.\2"),
)
DINOV3: Rename = (
    *COMMON,
    (r"patch_embed\.proj\.(\w+)", r"embeddings.patch_embeddings.\1"),
    (r"norm\.(\w+)", r"norm.\1"),
    (r"blocks\.(\d+)\.attn\.([qkv])\.(\w+)", r"layer.\1.attention.\2_proj.\3"),
    (r"blocks\.(\d+)\.attn\.proj\.(\w+)", r"layer.\1.attention.o_proj.\2"),
    (r"blocks\.(\d+)\.norm([12])\.(\w+)", r"layer.\1.norm\2.\3"),
    (r"blocks\.(\d+)\.gamma_([12])", r"layer.\1.layer_scale\2.lambda1"),
    (r"blocks\.(\d+)\.mlp\.fc1_g\.(\w+)", r"layer.\1.mlp.gate_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.(?:fc1|fc1_x)\.(\w+)", r"layer.\1.mlp.up_proj.\2"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(\w+)", r"layer.\1.mlp.down_proj.\2"),
)
LONG = {"<q>": "query", "<k>": "key", "<v>": "value"}


def write(backbone: Backbone, folder: Path) -> None:
    """Weights in transformers' names, and the config that makes the network for them.

    Raises:
        ValueError: transformers has no network of this form.
    """
    config, renames = _layout(backbone)
    weights = {_renamed(name, renames): value for name, value in _split(backbone).items()}
    if config["model_type"] != "vit":
        weights["embeddings.mask_token"] = _mask_token(config)
    write_plain_tensors(folder / WEIGHTS_FILE, weights)
    write_text(folder / CONFIG_FILE, json.dumps(config | {"torch_dtype": "float32"}, indent=2) + "\n")
    write_text(folder / PREPROCESSOR_FILE, json.dumps(_preprocessor(backbone, config), indent=2) + "\n")


def _layout(backbone: Backbone) -> tuple[dict[str, Any], Rename]:
    body = backbone.module
    if isinstance(body, DinoV3):
        return _dinov3_config(body), DINOV3
    if not isinstance(body, DinoViT):
        raise ValueError(
            f"{backbone.name}: transformers has no network of this form that we know to fill; vision transformers of "
            "DINO, DINOv2 and DINOv3 have one. Take --to timm."
        )
    shape = body.shape
    if not shape.layer_scale and not shape.registers and shape.mlp == "gelu":
        hidden = {"intermediate_size": shape.mlp_hidden or 4 * shape.embed_dim}
        return {"model_type": "vit", "architectures": ["ViTModel"], **_sizes(shape), **hidden}, PLAIN
    if not shape.layer_scale:
        raise ValueError(
            f"{backbone.name}: transformers has no vision transformer with registers or SwiGLU but without LayerScale. "
            "Take --to timm."
        )
    return _dinov2_config(shape, backbone.name), DINOV2_GATED if shape.mlp == "swiglu" else DINOV2


def _sizes(shape: ViTShape) -> dict[str, Any]:
    return {
        "hidden_size": shape.embed_dim,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.num_heads,
        "image_size": shape.grid_size * shape.patch_size,
        "patch_size": shape.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }


def _dinov2_config(shape: ViTShape, name: str) -> dict[str, Any]:
    kind = "dinov2_with_registers" if shape.registers else "dinov2"
    architecture = "Dinov2WithRegistersModel" if shape.registers else "Dinov2Model"
    config = {"model_type": kind, "architectures": [architecture], **_sizes(shape), "layerscale_value": 1.0}
    config |= {"mlp_ratio": 4, "drop_path_rate": 0.0, "use_swiglu_ffn": shape.mlp == "swiglu"}
    if shape.registers:
        config["num_register_tokens"] = shape.registers
    expected = 4 * shape.embed_dim
    if shape.mlp == "swiglu":  # transformers rounds two thirds of it up to a multiple of 8, both halves together
        expected = 2 * ((int(expected * 2 / 3) + 7) // 8 * 8)
    if (shape.mlp_hidden or 4 * shape.embed_dim) != expected:
        raise ValueError(
            f"{name}: {shape.mlp_hidden} channels in its hidden layers; transformers' Dinov2 has {expected}. "
            "Take --to timm."
        )
    return config


def _dinov3_config(body: DinoV3) -> dict[str, Any]:
    shape: RotaryShape = body.shape
    rope: Any = body.rope
    official = periods_of(shape.embed_dim // shape.num_heads)
    if not torch.allclose(rope.periods.float(), official, rtol=1e-2):
        raise ValueError(
            f"{shape.name}: its rotary periods are not those of base {ROPE_BASE:g}, which config.json says."
        )
    return {
        "model_type": "dinov3_vit",
        "architectures": ["DINOv3ViTModel"],
        "hidden_size": shape.embed_dim,
        "intermediate_size": shape.mlp_hidden,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.num_heads,
        "num_register_tokens": shape.registers,
        "image_size": 224,
        "patch_size": shape.patch_size,
        "num_channels": 3,
        "hidden_act": "silu" if shape.mlp == "swiglu" else "gelu",
        "use_gated_mlp": shape.mlp == "swiglu",
        "query_bias": shape.qkv_bias,
        "key_bias": shape.key_bias,
        "value_bias": shape.qkv_bias,
        "layerscale_value": 1.0,
        "layer_norm_eps": 1e-5,
        "rope_theta": ROPE_BASE,
        "attention_dropout": 0.0,
        "drop_path_rate": 0.0,
    }


def _split(backbone: Backbone) -> dict[str, Tensor]:
    """The weights with queries, keys and values apart, and without what a config says."""
    weights: dict[str, Tensor] = {}
    for name, value in backbone.module.state_dict().items():
        if name == "rope.periods":
            continue
        stem, joined, kind = name.partition("attn.qkv.")
        if joined:
            parts = zip("qkv", value.chunk(3), strict=True)
            weights |= {f"{stem}attn.{part}.{kind}": chunk for part, chunk in parts}
        else:
            weights[re.sub(r"attn\.([qkv])_bias", r"attn.\1.bias", name)] = value
    body = backbone.module
    if isinstance(body, DinoV3) and not body.shape.key_bias:
        weights = {name: value for name, value in weights.items() if not name.endswith("attn.k.bias")}
    return weights


def _mask_token(config: dict[str, Any]) -> Tensor:
    """A token that only training uses: transformers wants one, of the shape that its class has."""
    channels = config["hidden_size"]
    return torch.zeros(1, 1, channels) if config["model_type"] == "dinov3_vit" else torch.zeros(1, channels)


def _preprocessor(backbone: Backbone, config: dict[str, Any]) -> dict[str, Any]:
    side = min(config["image_size"], 224)
    return {
        "image_processor_type": "BitImageProcessor" if config["model_type"] != "vit" else "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side} if config["model_type"] == "vit" else {"shortest_edge": 256},
        "resample": 3,
        "do_center_crop": config["model_type"] != "vit",
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(backbone.mean),
        "image_std": list(backbone.std),
        "do_convert_rgb": True,
    }


def _renamed(name: str, renames: Rename) -> str:
    for pattern, new in renames:
        match = re.fullmatch(pattern, name)
        if match is not None:
            return re.sub(r"<[qkv]>", lambda short: LONG[short[0]], match.expand(new))
    raise ValueError(f"the weight {name} has no place in transformers' network. Take --to timm.")
