"""Tables of parameter names: the spelling of each tool, and the parts of a file outside of the backbone."""

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

Tensors = dict[str, Tensor]

HUGGING_FACE = (
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.mask_token", "mask_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.register_tokens", "register_tokens"),
    (r"embeddings\.patch_embeddings\.(?:projection\.)?(\w+)", r"patch_embed.proj.\1"),
    (r"layernorm\.(\w+)", r"norm.\1"),
    (r"(?:model\.)?(?:encoder\.)?layers?\.(\d+)\.(.*)", r"blocks.\1.\2"),
    (r"(blocks\.\d+\.)attention\.(?:attention\.)?(?:query|q_proj)\.(.*)", r"\1attn.q.\2"),
    (r"(blocks\.\d+\.)attention\.(?:attention\.)?(?:key|k_proj)\.(.*)", r"\1attn.k.\2"),
    (r"(blocks\.\d+\.)attention\.(?:attention\.)?(?:value|v_proj)\.(.*)", r"\1attn.v.\2"),
    (r"(blocks\.\d+\.)attention\.(?:output\.dense|o_proj)\.(.*)", r"\1attn.proj.\2"),
    (r"(blocks\.\d+\.)layernorm_before\.(.*)", r"\1norm1.\2"),
    (r"(blocks\.\d+\.)layernorm_after\.(.*)", r"\1norm2.\2"),
    (r"(blocks\.\d+\.)intermediate\.dense\.(.*)", r"\1mlp.fc1.\2"),
    (r"(blocks\.\d+\.)output\.dense\.(.*)", r"\1mlp.fc2.\2"),
    (r"(blocks\.\d+\.)layer_scale([12])\.lambda1", r"\1ls\2.gamma"),
    (r"(blocks\.\d+\.)mlp\.weights_in\.(.*)", r"\1mlp.w12.\2"),
    (r"(blocks\.\d+\.)mlp\.weights_out\.(.*)", r"\1mlp.w3.\2"),
    (r"(blocks\.\d+\.)mlp\.gate_proj\.(.*)", r"\1mlp.w1.\2"),
)
"""transformers' ViTModel, Dinov2Model, Dinov2WithRegistersModel and DINOv3ViTModel, of versions 4 and 5."""

GATED = ((r"(.*\.mlp\.)up_proj\.(.*)", r"\1w2.\2"), (r"(.*\.mlp\.)down_proj\.(.*)", r"\1w3.\2"))
NOT_GATED = ((r"(.*\.mlp\.)up_proj\.(.*)", r"\1fc1.\2"), (r"(.*\.mlp\.)down_proj\.(.*)", r"\1fc2.\2"))

HUGGING_FACE_CONVNEXT = (
    (r"(?:model\.)?stages\.(\d+)\.downsample_layers\.(\d+)\.(\w+)", r"downsample_layers.\1.\2.\3"),
    (r"(?:model\.)?(stages\.\d+)\.layers\.(\d+)\.depthwise_conv\.(\w+)", r"\1.\2.dwconv.\3"),
    (r"(?:model\.)?(stages\.\d+)\.layers\.(\d+)\.layer_norm\.(\w+)", r"\1.\2.norm.\3"),
    (r"(?:model\.)?(stages\.\d+)\.layers\.(\d+)\.pointwise_conv([12])\.(\w+)", r"\1.\2.pwconv\3.\4"),
    (r"(?:model\.)?(stages\.\d+)\.layers\.(\d+)\.gamma", r"\1.\2.gamma"),
    (r"layer_norm\.(\w+)", r"norm.\1"),
)

MMPRETRAIN = (
    (r"patch_embed\.projection\.(\w+)", r"patch_embed.proj.\1"),
    (r"ln1\.(\w+)", r"norm.\1"),
    (r"layers\.(\d+)\.ln([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
    (r"layers\.(\d+)\.attn\.gamma1\.weight", r"blocks.\1.ls1.gamma"),
    (r"layers\.(\d+)\.ffn\.gamma2\.weight", r"blocks.\1.ls2.gamma"),
    (r"layers\.(\d+)\.ffn\.layers\.0\.0\.(\w+)", r"blocks.\1.mlp.fc1.\2"),
    (r"layers\.(\d+)\.ffn\.layers\.1\.(\w+)", r"blocks.\1.mlp.fc2.\2"),
    (r"layers\.(\d+)\.(.*)", r"blocks.\1.\2"),
)

RESNET_PARTS = (
    (r"0\.(\w+)", r"conv1.\1"),
    (r"1\.(\w+)", r"bn1.\1"),
    *((rf"{index}\.(.*)", rf"layer{index - 3}.\1") for index in (4, 5, 6, 7)),
)
"""A ResNet as a list of its parts, as in lightly's examples."""

DINO = (
    # DINOv2 trains in chunks, "blocks.<chunk>.<block>."; block numbers are global. (MobileNet's "blocks.0.0.bn1" stay.)
    (r"blocks\.\d+\.(\d+\.(?:norm1|norm2|attn|mlp|ls1|ls2|gamma_1|gamma_2)\b.*)", r"blocks.\1"),
)

# Parts of a training file that are not the backbone: projection heads, classifiers, masking tokens, decoders, probes.
# But `head.norm` is the last norm of timm's ConvNeXt.
NOT_BACKBONE = re.compile(
    r"(head\.(?!norm\.)|(heads|head_dist|fc|dino_head|ibot_head|projection_head|prototypes|projectors?|predictor|neck|"
    r"pooler|classifier|lm_head|queue\w*|local_cls_norm|embed_head|decoder_\w+|decoder|criterion\w*|"
    r"callbacks_\w+|data_preprocessor|target_generator)\.).*|"
    r"mask_token|masked_embed|decoder_pos_embed|queue\w*|steps|\w*ema_coefficient"
)


def to_published_names(weights: Mapping[str, Tensor]) -> Tensors:
    """A network's weights under the names of its authors: DINO's, DINOv2's, DINOv3's, torchvision's."""
    renames: tuple[tuple[str, str], ...] = DINO
    if any(name.startswith("embeddings.patch_embeddings.") for name in weights):
        gated = any(".mlp.gate_proj." in name for name in weights)
        renames = (*HUGGING_FACE, *(GATED if gated else NOT_GATED))
    elif "stages.0.layers.0.depthwise_conv.weight" in weights:
        renames = HUGGING_FACE_CONVNEXT
    elif "patch_embed.projection.weight" in weights:
        renames = MMPRETRAIN
    elif "4.0.conv1.weight" in weights:
        renames = RESNET_PARTS
    renamed = {_renamed(name, renames): value for name, value in weights.items()}
    return _join_projections(renamed) if renames[: len(HUGGING_FACE)] == HUGGING_FACE else renamed


def without_heads(weights: Mapping[str, Tensor], own: Collection[str] = ()) -> Tensors:
    """The backbone's weights only. Names in `own` always belong to the backbone (SAM has a `neck`)."""
    return {name: value for name, value in weights.items() if name in own or not NOT_BACKBONE.fullmatch(name)}


def _renamed(name: str, renames: tuple[tuple[str, str], ...]) -> str:
    """The name after all matching renames, in order."""
    for pattern, new in renames:
        match = re.fullmatch(pattern, name)
        if match is not None:
            name = match.expand(new)
    return name


def _join_projections(weights: Tensors) -> Tensors:
    """Queries, keys and values as one projection; a missing bias (DINOv3's keys) is 0."""
    joined = {}
    for name, value in weights.items():
        stem, part, kind = name.rpartition(".q.")[0], ".attn.q." in name, name.rpartition(".")[2]
        if part:
            others = [weights.get(f"{stem}.{other}.{kind}") for other in ("k", "v")]
            joined[f"{stem}.qkv.{kind}"] = torch.cat(
                [value, *(torch.zeros_like(value) if other is None else other for other in others)]
            )
        elif ".attn.k." not in name and ".attn.v." not in name:
            joined[name] = value
    return joined
