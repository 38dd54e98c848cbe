"""What a family of networks must offer to be measured: the protocol of `Backbone`'s readers.

A family is one file (vit.py, eva.py, stages.py), with one entry in `backbone.READERS`.

Shapes: B images, h x w patch grid, C channels, L layers that were asked for.
"""

from collections.abc import Sequence
from typing import Literal, Protocol, get_args

from torch import Tensor, nn

Kind = Literal["patches", "cls", "keys", "queries", "values", "attention"]
KINDS: frozenset[str] = frozenset(get_args(Kind))
"""All that a reader may offer; `Features` describes each."""


class Reader(Protocol):
    """Reads features out of one network.

    Attributes:
        version: goes up with every change of a number that `read` returns; caches compare it.
        patch_size: pixels a feature cell spans; image sides are multiples of it.
        embed_dim: channels C of the last layer.
        depth: number of layers that `layers` can name.
        num_heads: attention heads of the last layer; 0 where it has no attention.
        provides: the kinds of features that `read` can return.
        uniform_width: whether class tokens and patches of all layers have the same channels and meaning, so that
            those of several layers may be joined.
        nonnegative_maps: whether no value of the last map is negative (it ends with a ReLU), so that every product of
            two patches is positive.
    """

    version: int
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
            For each wanted kind its tensor, the layers joined along dimension 1 in the order asked.

        Raises:
            ValueError: the network does not take images of this size, or has no such feature at such a layer.
        """
