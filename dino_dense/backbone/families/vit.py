"""Reads timm's `VisionTransformer` and its subclasses: DINO, DINOv2, DeiT, MAE, CLIP, SigLIP."""

from typing import Any

from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from dino_dense.backbone.tokens import Projections, TokenReader, heads_of


class VitReader(TokenReader):
    """A vision transformer that adds positions to the tokens before the first block."""

    @staticmethod
    def reads(module: nn.Module) -> bool:
        """Whether the network is of this family."""
        return isinstance(module, VisionTransformer)

    @property
    def has_class_token(self) -> bool:
        """Whether the first token is a class token."""
        return bool(self.body.has_class_token)

    def can_project(self, attention: Any) -> bool:
        """Whether `project` and `compared` know this kind of attention."""
        return isinstance(attention, Attention)

    def embed(self, x: Tensor) -> tuple[Tensor, None]:
        """Images [B, 3, H, W] -> the tokens [B, P+N, C] that enter the first block."""
        vit = self.body
        return vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(x)))), None

    def call(self, index: int, tokens: Tensor, _: None) -> Tensor:
        """One block: [B, P+N, C] -> [B, P+N, C]."""
        return self.body.blocks[index](tokens)

    def project(self, attention: Any, x: Tensor) -> Projections:
        """Queries, keys and values of the tokens that enter an attention layer."""
        return Projections(*(heads_of(part, attention.num_heads) for part in attention.qkv(x).chunk(3, dim=-1)))

    def compared(self, attention: Any, queries: Tensor, keys: Tensor, _: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Queries and keys of the dot product: after their norms, if the network has them."""
        return attention.q_norm(queries), attention.k_norm(keys)


READER = VitReader
