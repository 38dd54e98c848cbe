"""Build networks: timm's, and a ViT with DINO's position interpolation, which timm lacks.

Shapes: B images, h x w patch grid, N = h*w patches, R register tokens, C channels.
"""

import difflib
import functools
import re
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

import timm
import torch
import torch.nn.functional as F
from timm.layers import Mlp, SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dino_dense.backbone import families
from dino_dense.backbone.dinov3 import DinoV3, RotaryShape

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# (channels, blocks). Heads are always channels / 64, as in DeiT and DINO (vision_transformer.py), so weights alone
# determine them. "giant" is DINOv2's; "micro" is ours: small enough to train on a laptop in minutes.
VIT_SIZES = {
    "micro": (128, 4),
    "tiny": (192, 12),
    "small": (384, 12),
    "base": (768, 12),
    "large": (1024, 24),
    "giant": (1536, 40),
}
HEAD_DIM = 64
Shape = TypeVar("Shape", "ViTShape", RotaryShape)
VIT_NAME = re.compile(r"vit_(?P<size>micro|tiny|small|base|large|giant)_patch(?P<patch>\d+)_(?P<image>\d+)")


@dataclass(frozen=True)
class ViTShape:
    """The architecture of a DINO or DINOv2 vision transformer. Stored in every checkpoint we write."""

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int
    grid_size: int
    """Side of the square position grid, in patches (14 for 224 pixels at patch 16)."""
    registers: int = 0
    layer_scale: bool = False
    mlp: Literal["gelu", "swiglu"] = "gelu"
    mlp_hidden: int | None = None
    """Channels of the hidden layer (both halves together for SwiGLU); None is 4 times embed_dim."""
    position_offset: float = 0.1
    """Added to the grid sides in the scale factor (DINO, DINOv2 without registers: 0.1; with registers: 0)."""
    position_antialias: bool = False
    """Antialias when the position grid shrinks (DINOv2 with registers: true)."""

    @property
    def name(self) -> str:
        """timm-style name if the size has one (`vit_small_patch16_224`), else the numbers.

        Other heads than channels / 64 and another position rule than the authors' change the features, so the name
        then includes them.
        """
        sizes = {dims: size for size, dims in VIT_SIZES.items()}
        size = sizes.get((self.embed_dim, self.depth), f"c{self.embed_dim}d{self.depth}")
        registers = f"_reg{self.registers}" if self.registers else ""
        heads = "" if self.num_heads * HEAD_DIM == self.embed_dim else f"_heads{self.num_heads}"
        plain = "_plainpos" if not self.registers and not self.position_offset else ""
        plain = "_timmpos" if plain and self.position_antialias else plain
        return f"vit_{size}_patch{self.patch_size}{registers}_{self.grid_size * self.patch_size}{heads}{plain}"

    @staticmethod
    def from_name(name: str, image_size: int | None = None) -> "ViTShape | None":
        """Shape for a name such as `vit_small_patch16_224`; None for a name of another form.

        A tag after a dot (`vit_small_patch16_224.dino`) names weights, not an architecture, and is ignored.
        """
        match = VIT_NAME.fullmatch(name.partition(".")[0])
        if match is None:
            return None
        embed_dim, depth = VIT_SIZES[match["size"]]
        patch, image = int(match["patch"]), image_size or int(match["image"])
        if image % patch:
            raise ValueError(f"{name}: image size {image} is not a multiple of patch size {patch}.")
        return ViTShape(embed_dim, depth, embed_dim // HEAD_DIM, patch, image // patch)


class DinoViT(VisionTransformer):
    """timm's ViT with DINO's position embedding, resampled to any input size as in the reference.

    The position table is [1, 1+N, C]: the class token has a position of its own, registers have none
    (dinov2/models/vision_transformer.py).
    """

    def __init__(self, shape: ViTShape, drop_path_rate: float = 0.0) -> None:
        super().__init__(
            img_size=shape.grid_size * shape.patch_size,
            patch_size=shape.patch_size,
            embed_dim=shape.embed_dim,
            depth=shape.depth,
            num_heads=shape.num_heads,
            mlp_ratio=(shape.mlp_hidden or 4 * shape.embed_dim) / shape.embed_dim,
            mlp_layer=SwiGLUPacked if shape.mlp == "swiglu" else Mlp,
            act_layer="silu" if shape.mlp == "swiglu" else None,
            init_values=1e-5 if shape.layer_scale else None,
            reg_tokens=shape.registers,
            no_embed_class=True,
            dynamic_img_size=True,
            drop_path_rate=drop_path_rate,
            num_classes=0,
        )
        self.shape = shape
        # With no_embed_class timm gives no position to registers, but none to the class token either.
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + shape.grid_size**2, shape.embed_dim))
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def positions(self, height: int, width: int) -> Tensor:
        """Position embedding for an h x w patch grid, [1, 1+h*w, C].

        The reference passes (h + 0.1) / sqrt(N) to `interpolate` as its scale factor. Bicubic sampling uses this
        factor, not the ratio of the sizes, so the 0.1 moves every sample
        (dino/vision_transformer.py, interpolate_pos_encoding).
        """
        grid = self.shape.grid_size
        if (height, width) == (grid, grid):
            return self.pos_embed
        table = self.pos_embed[:, 1:].unflatten(1, (grid, grid)).permute(0, 3, 1, 2)  # [1, C, grid, grid]
        rule = self.shape.position_offset, self.shape.position_antialias
        by_matrices = self.pos_embed.is_cuda and torch.is_grad_enabled()
        table = (resample_by_matrices if by_matrices else resample)(table, (height, width), *rule)
        return torch.cat([self.pos_embed[:, :1], table.flatten(2).transpose(1, 2)], dim=1)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Patch embeddings [B, h, w, C] -> tokens [B, 1+R+h*w, C]: class token, registers, patches."""
        batch, height, width, _ = x.shape
        tokens = torch.cat([self.cls_token.expand(batch, -1, -1), x.flatten(1, 2)], dim=1)
        tokens = tokens + self.positions(height, width)
        if self.reg_token is not None:
            registers = self.reg_token.expand(batch, -1, -1)
            tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
        return self.pos_drop(tokens)


def resample(table: Tensor, size: tuple[int, int], offset: float, antialias: bool) -> Tensor:
    """A position table [1, C, g, g'] at another size (h, w): bicubic; `offset` is added to the sides in the factor."""
    sides = table.shape[-2:]
    target: dict[str, Any] = {"size": size}
    if offset:
        target = {"scale_factor": tuple((new + offset) / old for new, old in zip(size, sides, strict=True))}
    resampled = F.interpolate(table, mode="bicubic", antialias=antialias, **target)
    if resampled.shape[-2:] != size:
        raise RuntimeError(f"positions came out {tuple(resampled.shape[-2:])}, expected {size}")
    return resampled


def resample_by_matrices(table: Tensor, size: tuple[int, int], offset: float, antialias: bool) -> Tensor:
    """`resample` as two fixed products, up to rounding.

    Bicubic sampling is separable. On CUDA the backward pass of `interpolate` adds in any order; that of a product gives
    the same bits in every run.
    """
    rows, columns = (
        _resampling_matrix(old, new, offset, antialias, table.device)
        for old, new in zip(table.shape[-2:], size, strict=True)
    )
    with torch.autocast(table.device.type, enabled=False):
        return rows @ table.float() @ columns.T


@functools.lru_cache(maxsize=64)
def _resampling_matrix(old: int, new: int, offset: float, antialias: bool, device: torch.device) -> Tensor:
    """[new, old]: the weights of bicubic sampling along one side."""
    units = torch.eye(old)[None, None]  # the columns are the unit vectors; each keeps its place
    target: dict[str, Any] = {"scale_factor": ((new + offset) / old, 1.0)} if offset else {"size": (new, old)}
    return F.interpolate(units, mode="bicubic", antialias=antialias, **target)[0, 0].to(device)


def build_module(
    name: str, *, drop_path_rate: float = 0.0, img_size: int | None = None, num_heads: int | None = None
) -> nn.Module:
    """A network with random weights.

    Args:
        name: `vit_{micro,tiny,small,base,large}_patch{P}_{SIZE}` for a DINO ViT, a name of `families.architectures`,
            else any timm model name.
        drop_path_rate: stochastic depth rate of the last block, in [0, 1); 0 for a network without stochastic depth.
        img_size: side in pixels of the square image that the position grid is for; default from the name.
        num_heads: attention heads; default from the name.

    Returns:
        A module that maps normalized images [B, 3, H, W] to image features [B, C].

    Raises:
        ValueError: the name is unknown (with the nearest names).
    """
    shape = ViTShape.from_name(name, img_size)
    if shape is not None:
        if num_heads is not None:
            shape = replace(shape, num_heads=num_heads)
        body = DinoViT(shape, drop_path_rate)
        if (shape.embed_dim, shape.depth) == VIT_SIZES["micro"]:
            widen_attention(body)
        return body
    options: dict[str, Any] = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
    if num_heads is not None:
        options["num_heads"] = num_heads
    if name.startswith("resnet"):
        options["zero_init_last"] = False  # torchvision's initialization, which DINO used
    try:
        if name in families.architectures():
            return families.build(name, **options)
        check_timm_name(name)
        return create_timm(name.partition(".")[0], pretrained=False, **options)
    except TypeError as error:
        raise ValueError(f"{name} cannot be built with {', '.join(options) or 'these options'} ({error}).") from None


def widen_attention(body: DinoViT | DinoV3) -> None:
    """Initialize query and key weights with deviation 2 / sqrt(C) instead of the usual 0.02.

    In such a narrow network 0.02 makes every attention weight about 1 / N. The class token is then the mean of the
    patches, hardly more than the mean color, and training does not start.
    """
    channels = body.embed_dim
    blocks: Any = body.blocks
    for block in blocks:
        nn.init.trunc_normal_(block.attn.qkv.weight[: 2 * channels], std=2 * channels**-0.5)


def check_timm_name(name: str) -> None:
    """Raise ValueError, with the nearest names, unless timm knows an architecture of this name."""
    if not timm.is_model(name):
        known = [*timm.list_models(), *_example_names(), *families.architectures()]
        near = difflib.get_close_matches(name.split(".")[0], known, n=4)
        hint = f" Near names: {', '.join(near)}." if near else ""
        raise ValueError(
            f"unknown architecture {name!r}.{hint} Expected vit_{{micro,tiny,small,base,large}}_patch{{P}}_{{SIZE}} "
            "or a name that timm.list_models() gives."
        )


def create_timm(name: str, *, pretrained: bool, **options: Any) -> nn.Module:
    """timm.create_model without classifier, for any image size if the network allows it.

    timm pools DINOv3 and similar networks by the mean of the patches; here they return their class token.
    """
    for any_size in ({"dynamic_img_size": True}, {"strict_img_size": False}, {}):  # ViTs, Swin, and all others
        try:
            body: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, **any_size, **options)
            break
        except TypeError:  # the network has no such option
            if not any_size:
                raise
    norm_before_pooling = isinstance(body, Eva) and isinstance(body.fc_norm, nn.Identity)
    if norm_before_pooling and body.cls_token is not None and body.global_pool == "avg":
        body.global_pool = "token"
    return body


def _example_names() -> list[str]:
    return [f"vit_{size}_patch{patch}_224" for size in VIT_SIZES for patch in (8, 14, 16)]


def describe(module: nn.Module) -> dict[str, Any]:
    """The architecture as plain JSON, for `rebuild`."""
    if isinstance(module, DinoViT):
        return {"body": "vit", **asdict(module.shape)}
    if isinstance(module, DinoV3):
        return {"body": "dinov3", **asdict(module.shape)}
    if isinstance(name := getattr(module, "architecture", None), str):
        return {"body": "family", "name": name}
    timm_config: Any = module.pretrained_cfg
    return {"body": "timm", "name": timm_config["architecture"]}


def rebuild(description: Any) -> nn.Module:
    """The network of a `describe` result, with random weights.

    A description comes from a file, so it is not trusted: it may name our networks and timm's own only, never a
    download, and no size beyond the largest ViT's.

    Raises:
        ValueError: `describe` does not write such a description.
    """
    fields = dict(description) if isinstance(description, dict) else {}
    kind = fields.pop("body", None)
    try:
        if kind == "vit":
            return DinoViT(_checked_shape(ViTShape(**fields)))
        if kind == "dinov3":
            return DinoV3(_checked_shape(RotaryShape(**fields)))
        if kind == "family" and fields["name"] in families.architectures():
            return families.build(fields["name"])
        if kind == "timm" and timm.is_model(fields["name"]):
            return create_timm(fields["name"], pretrained=False)
    except (TypeError, KeyError, ValueError, RuntimeError, ZeroDivisionError, AssertionError) as error:
        raise ValueError(f"architecture {description!r:.200} cannot be built ({error}).") from None
    raise ValueError(f"architecture {description!r:.200} is none of ours and none of timm's own.")


def _checked_shape(shape: Shape) -> Shape:
    """Raise ValueError for sizes that would only fill the memory; the largest ViT (22B) has 6144 x 48."""
    limits = {"embed_dim": 8192, "depth": 128, "patch_size": 128, "grid_size": 512, "num_heads": 256}
    limits |= {"registers": 1024, "mlp_hidden": 65536}
    for name, most in limits.items():
        value = getattr(shape, name, None)
        low = 0 if name == "registers" else 1
        if value is not None and not (type(value) is int and low <= value <= most):
            raise ValueError(f"{name} is {value!r}, expected a whole number from {low} to {most}")
    return shape
