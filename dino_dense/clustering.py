"""k-means of patch features as Leopart and NeCo prepare them: standardized, 50 principal components.

Shapes: N patches, D features, P components, K clusters.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

COMPONENTS = 50
ITERATIONS = 100
STARTS = 5
CHUNK = 100_000  # rows in float64 at once; changes no result beyond rounding


class Scaling(NamedTuple):
    """Mean and standard deviation of each feature over all patches."""

    mean: Tensor
    """[D], float64."""
    scale: Tensor
    """[D], float64; 1 where a feature is constant."""

    def apply(self, features: Tensor) -> Tensor:
        """[N, D] -> [N, D] of mean 0 and standard deviation 1, float32."""
        parts = features.split(CHUNK)
        return torch.cat([((part.double() - self.mean) / self.scale).float() for part in parts])


class Components(NamedTuple):
    """The leading principal components of standardized features."""

    mean: Tensor
    """[D]"""
    axes: Tensor
    """[D, P], of length 1, by falling variance; the largest loading of each is positive."""
    variances: Tensor
    """[P]"""

    def apply(self, features: Tensor) -> Tensor:
        """[N, D] -> [N, P], centered, not whitened."""
        return (features - self.mean) @ self.axes


class Clusters(NamedTuple):
    """The best of several starts of k-means."""

    labels: Tensor
    """[N], 0 to K - 1."""
    centers: Tensor
    """[K, D]"""
    objective: float
    """Sum of squared distances to the nearest center."""


def fit_scaling(features: Tensor) -> Scaling:
    """The scaling of features [N, D] (scikit-learn's StandardScaler: the biased standard deviation).

    Raises:
        ValueError: there is no feature, or a value is not finite.
    """
    if not len(features) or not bool(features.isfinite().all()):
        raise ValueError(f"features {tuple(features.shape)}: expected one row or more, all finite.")
    mean = _mean(features)
    squares = sum((part.double() - mean).square().sum(0) for part in features.split(CHUNK))
    scale = (torch.as_tensor(squares) / len(features)).sqrt()
    return Scaling(mean, torch.where(scale > 0, scale, 1.0))


def fit_components(features: Tensor, count: int = COMPONENTS) -> Components:
    """The leading `count` principal components of features [N, D] (`faiss.PCAMatrix`: centered, not whitened).

    Raises:
        ValueError: there are fewer features or rows than components.
    """
    if min(features.shape) < count:
        raise ValueError(f"{count} components of features {tuple(features.shape)}: expected at least as many of both.")
    mean = _mean(features)
    products = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for part in features.split(CHUNK):
        centered = part.double() - mean
        products += centered.T @ centered
    variances, axes = torch.linalg.eigh(products / len(features))
    leading = axes[:, -count:].flip(1)
    signs = leading.gather(0, leading.abs().argmax(0, keepdim=True)).sign()
    return Components(mean.float(), (leading * signs).float(), variances[-count:].flip(0).float())


def _mean(features: Tensor) -> Tensor:
    """Mean of rows [N, D], float64 [D]."""
    total = torch.zeros(features.shape[1], dtype=torch.float64)
    for part in features.split(CHUNK):
        total += part.double().sum(0)
    return total / len(features)


def cluster(features: Tensor, count: int, seed: int, *, starts: int = STARTS, iterations: int = ITERATIONS) -> Clusters:
    """Lloyd's k-means from several k-means++ starts, by scikit-learn.

    Args:
        features: [N, D].
        count: K, 1 to N.

    Raises:
        ValueError: there are fewer rows than clusters.
    """
    from sklearn.cluster import KMeans

    if not 1 <= count <= len(features):
        raise ValueError(f"{count} clusters of {len(features)} patches: expected 1 to {len(features)}.")
    rows = np.ascontiguousarray(features.cpu().numpy(), np.float32)
    fitted = KMeans(count, n_init=starts, max_iter=iterations, random_state=seed).fit(rows)
    labels, centers = torch.from_numpy(fitted.labels_.astype(np.int64)), torch.from_numpy(fitted.cluster_centers_)
    return Clusters(labels, centers, float(fitted.inertia_))


def assign(features: Tensor, centers: Tensor) -> Tensor:
    """The nearest of centers [K, P] to each row of features [N, P], the first of equal ones, int64 [N]."""
    return torch.cat([torch.cdist(part, centers).argmin(1) for part in features.split(CHUNK)])
