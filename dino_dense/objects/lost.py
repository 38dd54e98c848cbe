"""LOST: the object around the patch that few others resemble."""

import torch
from torch import Tensor

from dino_dense.objects.segment import Segment, check_finite, component

# --- LOST --------------------------------------------------------------------------------------------------


def lost(features: Tensor, k: int = 100) -> Segment:
    """The object around the patch that few others resemble (Siméoni et al. 2021, object_discovery.py).

    Patches are joined where the product of their features is positive. The seed has the fewest joined; among the k
    patches with fewest, those joined to it vote; the mask is where the sum of their products is positive, in the
    seed's 4-connected component. Nothing is found where the seed's feature is zero.

    Args:
        features: [C, h, w], not normalized.

    Returns:
        Its confidence is the share of the other patches that are not joined to the seed.
    """
    check_finite(features)
    height, width = features.shape[-2:]
    tokens = features.flatten(1).T.float()  # [N, C]
    products = tokens @ tokens.T
    joined = ((products > 0).sum(1) - (products.diagonal() > 0).long()).cpu()
    # Many degrees are equal, and which of those comes first decides: the reference's call, on what it calls it with.
    order = torch.argsort(-joined.float(), descending=True)
    seed = int(order[0])
    foreground = (votes(products, order, seed, k) > 0).reshape(height, width).cpu().numpy()
    mask = component(foreground, seed)
    others = max(1, len(tokens) - 1)
    return Segment(mask, 1 - int(joined[seed]) / others, seed) if mask.any() else Segment(mask, 0.0)


def votes(products: Tensor, order: Tensor, seed: int, k: int) -> Tensor:
    """Sum of the products of the seed's voters, [N]: those of the first k of `order` that are joined to the seed.

    Args:
        products: of all pairs of patches, [N, N], on any device.
        order: patches with the fewest joined first, [N], on any device.
    """
    nearest = order[:k].to(products.device)
    return products[nearest[products[seed, nearest] > 0]].sum(0)
