"""Transformers with rotary positions, against their forward pass written out here."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_dense import Backbone, load_backbone
from dino_dense.backbone.dino_vit import build_module

PREFIX = 5  # DINOv3: the class token and four registers


def normalized(backbone: Backbone, image: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (backbone.mean, backbone.std))
    return (image - mean) / std


def rotary_angles(h: int, w: int, head_dim: int, base: float = 100.0) -> Tensor:
    """[h*w, head_dim]: cell centers scaled to -1..1, over periods base^(k / (head_dim / 4)); y first, then x, twice."""
    periods = base ** (torch.arange(head_dim // 4) / (head_dim // 4))
    y, x = torch.meshgrid((torch.arange(h) + 0.5) / h * 2 - 1, (torch.arange(w) + 0.5) / w * 2 - 1, indexing="ij")
    angles = 2 * math.pi * torch.stack([y, x], dim=-1).reshape(h * w, 2, 1) / periods
    return angles.flatten(1).tile(2)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """The halves of a head's channels [..., N, c] are the two coordinates of c / 2 points, turned by the angles."""
    left, right = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat([-right, left], dim=-1) * angles.sin()


class DinoV3ByHand:
    """DINOv3's forward pass on the weights of timm's body, one operation a line."""

    def __init__(self, backbone: Backbone) -> None:
        self.weights, self.heads = backbone.module.state_dict(), backbone.num_heads
        self.depth, self.width = backbone.depth, backbone.embed_dim
        self.tokens: list[Tensor] = []
        self.keys: list[Tensor] = []
        self.rows: list[Tensor] = []

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (self.width,), self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], 1e-5)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def __call__(self, x: Tensor) -> None:
        w = self.weights
        patches = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=16)
        angles = rotary_angles(*patches.shape[-2:], self.width // self.heads)
        tokens = torch.cat([w["cls_token"], w["reg_token"], patches.flatten(2).transpose(1, 2)], dim=1)[0]
        for index in range(self.depth):
            name = f"blocks.{index}"
            tokens = tokens + w[f"{name}.gamma_1"] * self.attention(self.norm(tokens, f"{name}.norm1"), name, angles)
            hidden = F.gelu(self.linear(self.norm(tokens, f"{name}.norm2"), f"{name}.mlp.fc1"))
            tokens = tokens + w[f"{name}.gamma_2"] * self.linear(hidden, f"{name}.mlp.fc2")
            self.tokens.append(self.norm(tokens, "norm"))

    def attention(self, x: Tensor, name: str, angles: Tensor) -> Tensor:
        parts = (x @ self.weights[f"{name}.attn.qkv.weight"].T).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(0, 1) for part in parts)  # [heads, tokens, c]
        self.keys.append(k[:, PREFIX:])
        q, k = (torch.cat([p[:, :PREFIX], turned(p[:, PREFIX:], angles)], dim=1) for p in (q, k))
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        self.rows.append(weights[:, 0, PREFIX:])
        return self.linear((weights @ v).transpose(0, 1).flatten(1), f"{name}.attn.proj")


@pytest.fixture(scope="module")
def dinov3() -> Backbone:
    """Weights that matter: LayerScale is no longer 1e-5, norms are not 1 and attention is not flat."""
    backbone = load_backbone("random:vit_small_patch16_dinov3")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in backbone.module.named_parameters():
            if "gamma" in name:
                weight.fill_(0.5)
            elif "qkv" in name:
                weight.mul_(5)
            elif weight.ndim == 1:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return backbone


@pytest.mark.parametrize("size", [(64, 96), (224, 224)])
@pytest.mark.parametrize("layer", [-1, 4])
def test_dinov3_is_its_forward_pass_written_out(dinov3: Backbone, size: tuple[int, int], layer: int):
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(2))
    features = dinov3.extract(image, {"cls", "patches", "keys", "attention"}, layers=(layer,))
    by_hand = DinoV3ByHand(dinov3)
    by_hand(normalized(dinov3, image))
    tokens = by_hand.tokens[layer]
    close = {"atol": 2e-4, "rtol": 0}
    torch.testing.assert_close(features.cls[0], tokens[0], **close)
    torch.testing.assert_close(features.patches[0].flatten(1).T, tokens[PREFIX:], **close)
    torch.testing.assert_close(features.keys[0].flatten(1), by_hand.keys[layer].transpose(1, 2).flatten(0, 1), **close)
    torch.testing.assert_close(features.attention[0].flatten(1), by_hand.rows[layer], atol=1e-5, rtol=0)
    assert features.patches.shape[-2:] == (size[0] // 16, size[1] // 16)
    assert (features.cls[0] - tokens[PREFIX:].mean(0)).abs().max() > 0.1, "the mean of the patches is another feature"


def test_the_image_feature_of_a_dinov3_body_is_its_class_token(dinov3: Backbone):
    """Pretraining and fine-tuning take the body's own output."""
    image = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        output = dinov3.module(normalized(dinov3, image))
    torch.testing.assert_close(output, dinov3.extract(image, {"cls"}).cls)


@pytest.mark.parametrize(
    "name", ["eva02_tiny_patch14_224", "eva02_base_patch16_clip_224", "vit_small_patch16_rope_mixed_224"]
)
def test_class_token_and_attention_of_other_rotary_bodies(name: str):
    """The class token that leaves a block is timm's; its attention row is what turns values into the layer's output."""
    backbone = load_backbone(f"random:{name}")
    body, size = backbone.module, backbone.patch_size * 4
    image = torch.rand(1, 3, size, size + backbone.patch_size)
    layer = backbone.depth - 2
    captured = {}
    attention = body.blocks[layer].attn
    attention.norm.register_forward_pre_hook(lambda _, inputs: captured.update(joined=inputs[0]))
    features = backbone.extract(image, {"cls", "patches", "values", "attention"}, layers=(layer,))
    with torch.no_grad():
        ((maps, prefix),) = body.forward_intermediates(
            normalized(backbone, image), indices=[layer], return_prefix_tokens=True, intermediates_only=True
        )
        norm = body.fc_norm if isinstance(body.norm, torch.nn.Identity) else body.norm
        torch.testing.assert_close(features.cls, norm(prefix[:, 0]))
        torch.testing.assert_close(features.patches, norm(maps.movedim(1, -1)).movedim(-1, 1))
    rows = features.attention[0].flatten(1)
    values = features.values[0].flatten(1).unflatten(0, (backbone.num_heads, -1))  # [heads, c, N]
    own = 1 - rows.sum(dim=1)
    class_value = captured["joined"][0, 0].unflatten(0, (backbone.num_heads, -1)) - torch.einsum(
        "hn,hcn->hc", rows, values
    )
    assert ((own > 0) & (own < 1)).all()
    with torch.no_grad():
        expected = own[:, None] * values_of_class_token(attention, body, backbone, image, layer)
    torch.testing.assert_close(class_value, expected, atol=1e-5, rtol=1e-4)


def values_of_class_token(attention, body, backbone: Backbone, image: Tensor, layer: int) -> Tensor:
    """[heads, c] of the class token, from the tokens that enter the block."""
    ((_, prefix),) = body.forward_intermediates(
        normalized(backbone, image), indices=[layer - 1], return_prefix_tokens=True, intermediates_only=True
    )
    x = body.blocks[layer].norm1(prefix[0, 0])
    if attention.qkv is None:
        return attention.v_proj(x).unflatten(0, (backbone.num_heads, -1))
    bias = attention.qkv.bias.chunk(3)[2] if attention.qkv.bias is not None else attention.v_bias
    return F.linear(x, attention.qkv.weight.chunk(3)[2], bias).unflatten(0, (backbone.num_heads, -1))


def test_a_rotary_body_without_class_token_pools_as_timm_does():
    backbone = load_backbone("random:vit_medium_patch16_rope_reg1_gap_256")
    assert "attention" not in backbone.provides
    image = torch.rand(1, 3, 64, 96)
    features = backbone.extract(image, {"cls", "keys"})
    with torch.no_grad():
        expected = backbone.module(normalized(backbone, image))
    torch.testing.assert_close(features.cls, expected)
    assert features.keys.shape == (1, 512, 4, 6)


def test_pretraining_a_dinov3_body_trains_its_class_token():
    body = build_module("vit_small_patch16_dinov3").eval()
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(body(x), body.forward_features(x)[:, 0])
