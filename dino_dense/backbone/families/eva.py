"""Reads timm's `Eva`: DINOv3, EUPE, EVA-02, Perception Encoder and other transformers with rotary positions.

timm pools many of them by the mean of their patches. Here `cls` is the class token wherever there is one, as DINOv3
means it (dinov3/models/vision_transformer.py, `x_norm_clstoken`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import AttentionRope, apply_rot_embed_cat
from timm.models.eva import Eva, EvaAttention
from torch import Tensor, nn

from dino_dense.backbone.tokens import Projections, TokenReader, heads_of


class EvaReader(TokenReader):
    """A transformer with rotary positions (RoPE): queries and keys of patches are rotated by their position."""

    @staticmethod
    def reads(module: nn.Module) -> bool:
        """Whether the network is of this family."""
        return isinstance(module, Eva)

    @property
    def has_class_token(self) -> bool:
        """Whether the first token is a class token."""
        return self.body.cls_token is not None

    def can_project(self, attention: Any) -> bool:
        """Whether `project` and `compared` know this kind of attention."""
        return isinstance(attention, EvaAttention | AttentionRope)

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images [B, 3, H, W] -> the tokens [B, P+N, C] that enter the first block, and the rotary embedding."""
        tokens, rope = self.body._pos_embed(self.body.patch_embed(x))
        return self.body.norm_pre(tokens), rope

    def call(self, index: int, tokens: Tensor, rope: Tensor | None) -> Tensor:
        """One block: [B, P+N, C] -> [B, P+N, C]. "Mixed" rotary positions have different angles in each block."""
        own = rope[index] if rope is not None and self.body.rope_mixed else rope
        return self.body.blocks[index](tokens, rope=own)

    def project(self, attention: Any, x: Tensor) -> Projections:
        """Queries, keys and values of the tokens that enter an attention layer."""
        heads = attention.num_heads
        if attention.qkv is None:
            kv_heads = getattr(attention, "num_kv_heads", heads)
            parts = (attention.q_proj(x), attention.k_proj(x), attention.v_proj(x))
            return Projections(*map(heads_of, parts, (heads, kv_heads, kv_heads)))
        bias = attention.qkv.bias
        if getattr(attention, "q_bias", None) is not None:
            bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
        return Projections(*(heads_of(part, heads) for part in F.linear(x, attention.qkv.weight, bias).chunk(3, -1)))

    def compared(self, attention: Any, queries: Tensor, keys: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Queries and keys of the dot product: after norms and RoPE, with a key head for each query head."""
        queries, keys = attention.q_norm(queries), attention.k_norm(keys)
        rope = options.get("rope")
        if rope is not None:
            queries, keys = (self._turned(attention, part, rope) for part in (queries, keys))
        return queries, keys.repeat_interleave(attention.num_heads // keys.shape[1], dim=1)

    def _turned(self, attention: Any, x: Tensor, rope: Tensor) -> Tensor:
        """[B, heads, P+N, c] with the patches rotated by their positions; prefix tokens have no position."""
        prefix, patches = x[:, :, : self.prefix], x[:, :, self.prefix :]
        return torch.cat([prefix, apply_rot_embed_cat(patches, rope, half=attention.rotate_half)], dim=2).type_as(x)


READER = EvaReader
