"""A folder that timm opens: `timm.create_model("local-dir:FOLDER")`, or its file with `checkpoint_path=`."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from dino_dense.backbone.backbone import Backbone
from dino_dense.backbone.dino_vit import DinoViT
from dino_dense.backbone.dinov3 import DinoV3
from dino_dense.checkpoint import write_plain_tensors
from dino_dense.files import write_text

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"


def write(backbone: Backbone, folder: Path) -> None:
    """Weights in timm's names, and the config that makes the network for them.

    Raises:
        ValueError: timm cannot build this network.
    """
    architecture, arguments = timm_architecture(backbone)
    write_plain_tensors(folder / WEIGHTS_FILE, timm_weights(backbone))
    config = {
        "architecture": architecture,
        "num_classes": 0,
        "num_features": backbone.reader.embed_dim,
        "model_args": arguments,
        "pretrained_cfg": {
            "tag": "dino_dense",
            "input_size": [3, *native_size(backbone)],
            "fixed_input_size": False,
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "num_classes": 0,
        },
    }
    write_text(folder / CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def run(backbone: Backbone, folder: Path) -> Callable[[Tensor], Mapping[str, Tensor]]:
    """The network as timm opens it; its output is the image feature (`cls`)."""
    module: Any = timm.create_model(f"local-dir:{folder.resolve()}", pretrained=True).eval()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (backbone.mean, backbone.std))

    def features(images: Tensor) -> Mapping[str, Tensor]:
        with torch.no_grad():
            return {"cls": module((images - mean) / std)}

    return features


def timm_architecture(backbone: Backbone) -> tuple[str, dict[str, Any]]:
    """A name of timm's, and the arguments that make it this network."""
    body = backbone.module
    if isinstance(body, DinoViT):
        shape = body.shape
        base = "vit_giant_patch14_dinov2" if shape.mlp == "swiglu" else "vit_small_patch16_224"
        return base, {
            "img_size": shape.grid_size * shape.patch_size,
            "patch_size": shape.patch_size,
            "embed_dim": shape.embed_dim,
            "depth": shape.depth,
            "num_heads": shape.num_heads,
            "mlp_ratio": (shape.mlp_hidden or 4 * shape.embed_dim) / shape.embed_dim,
            "init_values": 1e-5 if shape.layer_scale else None,
            "reg_tokens": shape.registers,
            "no_embed_class": bool(shape.registers),
            "dynamic_img_size": True,
        }
    if isinstance(body, DinoV3):
        rotary = body.shape
        return "vit_small_patch16_dinov3", {
            "img_size": 16 * rotary.patch_size,
            "patch_size": rotary.patch_size,
            "embed_dim": rotary.embed_dim,
            "depth": rotary.depth,
            "num_heads": rotary.num_heads,
            "qkv_bias": rotary.qkv_bias,
            "mlp_ratio": (rotary.mlp_hidden + 0.5) / rotary.embed_dim,
            "swiglu_mlp": rotary.mlp == "swiglu",
            "swiglu_align_to": 1 if rotary.mlp == "swiglu" else 0,
            "init_values": 1e-5 if rotary.layer_scale else None,
            "num_reg_tokens": rotary.registers,
            "global_pool": "token",
        }
    config: Any = getattr(body, "pretrained_cfg", None)
    if not config:
        raise ValueError(f"{backbone.name}: not a network of timm's. Take --to torch.")
    return config["architecture"], {}


def timm_weights(backbone: Backbone) -> dict[str, Tensor]:
    """The weights under timm's names."""
    body = backbone.module
    weights = {name: value.detach().cpu().contiguous() for name, value in body.state_dict().items()}
    if isinstance(body, DinoViT) and body.shape.registers:
        # timm's networks with registers add the class token's position to the class token.
        weights["cls_token"] = weights["cls_token"] + weights["pos_embed"][:, :1]
        weights["pos_embed"] = weights["pos_embed"][:, 1:].contiguous()
    if isinstance(body, DinoV3):
        weights = {name: value for name, value in weights.items() if name != "rope.periods"}
        if not body.shape.key_bias:
            weights = {name: value for name, value in weights.items() if not name.endswith("k_bias")}
    return weights


def native_size(backbone: Backbone) -> tuple[int, int]:
    """(height, width) that the network's position table is made for, pixels."""
    body: Any = backbone.module
    if isinstance(body, DinoViT | DinoV3):
        side = body.patch_embed.img_size
        return (side[0], side[1]) if side is not None else (224, 224)
    height, width = body.pretrained_cfg["input_size"][-2:]
    return height, width
