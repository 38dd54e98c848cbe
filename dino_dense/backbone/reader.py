"""The protocol of readers: a family of networks implements it to be measured.

A family is one file of `families/`.

Shapes: B images, h x w patch grid, C channels, L requested layers.
"""

from collections.abc import Sequence
from typing import Literal, Protocol, get_args

from torch import Tensor, nn

FeatureKind = Literal["patches", "cls", "keys", "queries", "values", "attention"]
KINDS: frozenset[str] = frozenset(get_args(FeatureKind))
"""All kinds of features; `Features` describes each."""


class Reader(Protocol):
    """Reads features out of one network.

    Attributes:
        version: raised with every change of a value that `read` returns; caches compare it.
        last_resort: whether it reads what no other family does.
        patch_size: pixels a feature cell spans; image sides are multiples of it.
        embed_dim: channels C of the last layer.
        depth: number of layers; `layers` are numbers below it.
        num_heads: attention heads of the last layer; 0 without attention.
        provides: the kinds of features that `read` can return.
        uniform_width: whether class tokens and patches have the same channels and meaning in all layers, so that
            several layers may be joined.
        nonnegative_maps: whether the last map has no negative value (it ends with a ReLU), so that the product of any
            two patches is not negative.
    """

    version: int
    last_resort: bool
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    provides: frozenset[str]
    uniform_width: bool
    nonnegative_maps: bool

    def __init__(self, module: nn.Module) -> None:
        """Take over a network that `reads` accepts."""

    @staticmethod
    def reads(module: nn.Module) -> bool:
        """Whether the network is of this family."""

    def read(self, x: Tensor, want: frozenset[str], layers: Sequence[int], norm: bool) -> dict[str, Tensor]:
        """Features of normalized images.

        Args:
            x: [B, 3, H, W], sides multiples of `patch_size`, pixels normalized as the network expects.
            want: kinds among `provides`.
            layers: numbers from 0 to `depth` - 1; L of them.
            norm: whether the final norm is applied to patches and class tokens.

        Returns:
            A tensor for each wanted kind, the layers joined along dimension 1 in the requested order.

        Raises:
            ValueError: the network does not take images of this size, or has no such feature at such a layer.
        """
