"""Errors of depth maps, for each image (dinov3 `eval/depth/metrics.py`; Eigen et al. 2014).

Shapes: H x W pixels; depths in meters.
"""

from collections.abc import Callable

import numpy as np

from dino_dense.arrays import Floats, Mask

EIGEN_CROP = (45, 471, 41, 601)
"""Scored rows y1 to y2 and columns x1 to x2 of a 480 x 640 image (NYUv2)."""
NYU_SIZE = (480, 640)
GARG_CROP = (0.40810811, 0.99189189, 0.03594771, 0.96405229)
"""Shares of the height y1, y2 and of the width x1, x2 that are scored (KITTI; Garg et al. 2016)."""

Metric = Callable[[Floats, Floats], float]


def _ratio_below(limit: float) -> Metric:
    def share(predicted: Floats, truth: Floats) -> float:
        return float((np.maximum(truth / predicted, predicted / truth) < limit).mean())

    return share


def _silog(predicted: Floats, truth: Floats) -> float:
    error = np.log(predicted) - np.log(truth)
    return 100 * float(np.sqrt((error**2).mean() - error.mean() ** 2))


METRICS: dict[str, Metric] = {
    "a1": _ratio_below(1.25),
    "a2": _ratio_below(1.25**2),
    "a3": _ratio_below(1.25**3),
    "abs_rel": lambda predicted, truth: float((np.abs(truth - predicted) / truth).mean()),
    "rmse": lambda predicted, truth: float(np.sqrt(((truth - predicted) ** 2).mean())),
    "log_10": lambda predicted, truth: float(np.abs(np.log10(truth) - np.log10(predicted)).mean()),
    "rmse_log": lambda predicted, truth: float(np.sqrt(((np.log(truth) - np.log(predicted)) ** 2).mean())),
    "silog": _silog,
    "sq_rel": lambda predicted, truth: float(((truth - predicted) ** 2 / truth).mean()),
    "mae": lambda predicted, truth: float(np.abs(truth - predicted).mean()),
}
"""Metrics of the valid pixels of one image: predicted [n], truth [n] -> a number. A score is the mean over images."""


def eigen_mask(size: tuple[int, int]) -> Mask:
    """Eigen's crop as bool [H, W] for an image of `size` (H, W); the crop scales with the image."""
    height, width = size
    top, bottom = (int(row / NYU_SIZE[0] * height) for row in EIGEN_CROP[:2])
    left, right = (int(column / NYU_SIZE[1] * width) for column in EIGEN_CROP[2:])
    mask = np.zeros(size, bool)
    mask[top:bottom, left:right] = True
    return mask


def garg_mask(size: tuple[int, int]) -> Mask:
    """The pixels of an image of `size` (H, W) that Garg's crop scores, bool [H, W]."""
    height, width = size
    mask = np.zeros(size, bool)
    top, bottom, left, right = GARG_CROP
    mask[int(top * height) : int(bottom * height), int(left * width) : int(right * width)] = True
    return mask


def valid_pixels(truth: Floats, low: float, high: float, crop: Mask | None = None) -> Mask:
    """Scored pixels: low < truth < high (meters), inside the crop if given."""
    valid: Mask = (truth > low) & (truth < high)
    return valid if crop is None else valid & crop


def depth_errors(predicted: Floats, truth: Floats, valid: Mask) -> dict[str, float]:
    """All metrics of one image over its valid pixels; NaN without valid pixels.

    Raises:
        ValueError: the shapes differ, or a predicted depth is not above 0.
    """
    if not predicted.shape == truth.shape == valid.shape:
        raise ValueError(
            f"prediction {predicted.shape}, truth {truth.shape} and mask {valid.shape}: expected one shape."
        )
    if not valid.any():
        return dict.fromkeys(METRICS, float("nan"))
    ours, theirs = predicted[valid].astype(np.float64), truth[valid].astype(np.float64)
    if not (ours > 0).all():
        raise ValueError(f"a predicted depth is {ours.min()} m: expected depths above 0.")
    return {name: metric(ours, theirs) for name, metric in METRICS.items()}
