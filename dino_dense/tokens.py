"""Quality of a backbone's tokens without any label: effective rank, artifacts, positional leakage.

Shapes: N embeddings, D features, n samples with q views, B images, h x w patch grid.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

RANKME_EPS = 1e-7  # RankMe, arXiv 2210.02885, for float32
OUTLIER_SPREADS = 5.0  # ours: robust standard deviations of the log-norm above the median
MAD_TO_STD = 1.4826  # of a normal distribution


def rank_me(embeddings: Tensor, eps: float = RANKME_EPS) -> float:
    """Effective rank of embeddings [N, D]: the exponential of the entropy of their singular values (arXiv 2210.02885).

    p = s / sum(s) + eps; RankMe = exp(-sum p log p). Embeddings are neither centered nor normalized. 1 to min(N, D).

    Raises:
        ValueError: embeddings are not finite, or all zero.
    """
    singular = torch.linalg.svdvals(embeddings)
    if not bool(singular.isfinite().all()) or not float(singular.sum()) > 0:
        raise ValueError(f"embeddings {tuple(embeddings.shape)}: expected finite values, not all zero.")
    shares = singular / singular.sum() + eps
    return math.exp(-float((shares * shares.log()).sum()))


def lidar(views: Tensor, delta: float = 1e-4, eps: float = 1e-8) -> float:
    """LiDAR (arXiv 2312.04000): effective rank of the between-sample scatter, whitened by the within-sample scatter.

    Args:
        views: [n, q, D], q augmented views of each of n samples.
        delta: added to the diagonal of the within-sample covariance.
        eps: added to the eigenvalues.

    Returns:
        1 to min(D, n - 1).

    Raises:
        ValueError: fewer than two samples or views.
    """
    samples, count, _ = views.shape
    if samples < 2 or count < 2:
        raise ValueError(f"{samples} samples with {count} views: expected two or more of both.")
    means = views.mean(1)
    between = (means - means.mean(0)).T @ (means - means.mean(0)) / (samples - 1)
    inner = (views - means[:, None]).flatten(0, 1)
    within = inner.T @ inner / (samples * (count - 1)) + delta * torch.eye(views.shape[2]).to(views)
    values, vectors = torch.linalg.eigh(within)
    whitening = vectors @ torch.diag(values.clamp(min=0).rsqrt()) @ vectors.T
    eigenvalues = torch.linalg.eigvalsh(whitening @ between @ whitening).clamp(min=0)
    shares = (eigenvalues + eps) / (eigenvalues + eps).sum()
    return math.exp(-float((shares * shares.log()).sum()))


def high_norm_tokens(norms: Tensor, spreads: float = OUTLIER_SPREADS) -> Tensor:
    """Tokens with an outlying norm, bool in the shape of `norms` (ours: no source gives a rule without a scale).

    The log-norm is above the median by `spreads` robust standard deviations (1.4826 times the median deviation).

    Args:
        norms: L2 norms of patch tokens before the final norm layer, over many images (50 or more), any shape.
    """
    logs = norms.log()
    middle = logs.median()
    return logs > middle + spreads * MAD_TO_STD * (logs - middle).abs().median()


def cls_patch_cosine(cls: Tensor, patches: Tensor) -> tuple[float, float]:
    """Mean and standard deviation, over images and patches, of the cosine of class token and patch token.

    DINOv3, arXiv 2508.10104, section 4.1, on tokens after the final norm.

    Args:
        cls: [B, D].
        patches: [B, D, h, w].
    """
    cosine = torch.einsum("bd,bdhw->bhw", F.normalize(cls, dim=1), F.normalize(patches, dim=1))
    return float(cosine.mean()), float(cosine.std(correction=0))


def position_components(blank: Tensor, count: int) -> Tensor:
    """Leading directions of the features of a blank image, [D, count] (INSID3 `models/insid3.py`).

    Args:
        blank: patch tokens [D, h, w] of an image of one color.
    """
    unit = F.normalize(blank.flatten(1), dim=0)
    centered = unit - unit.mean(1, keepdim=True)
    return torch.linalg.svd(centered, full_matrices=False).U[:, :count]


def without_components(features: Tensor, components: Tensor) -> Tensor:
    """Unit features [..., D, h, w] minus their projection onto `components` [D, r], normalized again."""
    unit = F.normalize(features, dim=-3)
    inside = torch.einsum("dr,er,...ehw->...dhw", components, components, unit)
    return F.normalize(unit - inside, dim=-3)


def position_share(features: Tensor) -> float:
    """Share of the variance of patch tokens [B, D, h, w] that their position explains, 0 to 1 (ours).

    The variance of the mean over images at each position, over the total variance. B = 100 images or more.
    """
    total = features.var(dim=(0, 2, 3), correction=0).sum()
    share = float(features.mean(0).var(dim=(1, 2), correction=0).sum() / total)
    return min(share, 1.0)  # equal images give 1, and rounding a little more
