"""LOST: the object around the patch with the fewest similar patches."""

import torch
from torch import Tensor

from dino_dense.objects.segment import Segment, check_finite, component

# --- LOST --------------------------------------------------------------------------------------------------


def lost(features: Tensor, k: int = 100) -> Segment:
    """The object around the patch with the fewest similar patches (Siméoni et al. 2021, object_discovery.py).

    Patches are adjacent if the product of their features is positive. The seed has the lowest degree. Of the k patches
    of lowest degree, the neighbors of the seed vote. The mask holds the patches with a positive sum of products with
    the voters, in the seed's 4-connected component. It is empty if the seed's feature is zero.

    Args:
        features: [C, h, w], not normalized.

    Returns:
        A segment with confidence: the share of the other patches that are not adjacent to the seed.
    """
    check_finite(features)
    height, width = features.shape[-2:]
    tokens = features.flatten(1).T.float()  # [N, C]
    products = tokens @ tokens.T
    degrees = ((products > 0).sum(1) - (products.diagonal() > 0).long()).cpu()
    # Many degrees are equal, and their order decides the result: sort as the reference does, on the same input.
    order = torch.argsort(-degrees.float(), descending=True)
    seed = int(order[0])
    foreground = (votes(products, order, seed, k) > 0).reshape(height, width).cpu().numpy()
    mask = component(foreground, seed)
    others = max(1, len(tokens) - 1)
    return Segment(mask, 1 - int(degrees[seed]) / others, seed) if mask.any() else Segment(mask, 0.0)


def votes(products: Tensor, order: Tensor, seed: int, k: int) -> Tensor:
    """Sum of products with the voters, [N]: the first k patches of `order` that are adjacent to the seed.

    Args:
        products: products of all pairs of patches, [N, N], on any device.
        order: patches by ascending degree, [N], on any device.
    """
    nearest = order[:k].to(products.device)
    return products[nearest[products[seed, nearest] > 0]].sum(0)
