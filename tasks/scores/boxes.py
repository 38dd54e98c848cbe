"""CorLoc of single boxes, and its risk-coverage curve.

A box is (x0, y0, x1, y1) in pixels, ends not included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from dino_dense.arrays import Box

if TYPE_CHECKING:
    import pandas as pd

HIT = 0.5  # a box matches an object from this IoU on (LOST, main_lost.py: >=; the papers write >)
COVERAGES = tuple(range(10, 101, 10))  # percent of the images


def box_iou(box: Box | None, others: Sequence[Box]) -> npt.NDArray[np.float64]:
    """IoU [K] of a box with each of K others, in [0, 1]; 0 for no box."""
    if box is None or not others:
        return np.zeros(len(others))
    theirs = np.asarray(others, np.float64)
    low, high = np.maximum(theirs[:, :2], box[:2]), np.minimum(theirs[:, 2:], box[2:])
    common = (high - low).clip(0).prod(axis=1)
    own = (box[2] - box[0]) * (box[3] - box[1])
    union = own + (theirs[:, 2:] - theirs[:, :2]).prod(axis=1) - common
    return np.divide(common, union, out=np.zeros(len(theirs)), where=union > 0)


def objects_found(boxes: Sequence[Box], objects: Sequence[Box]) -> int:
    """Number of objects that match at least one box."""
    if not boxes:
        return 0
    return int((np.max([box_iou(box, objects) for box in boxes], axis=0) >= HIT).sum())


def risk_coverage(images: pd.DataFrame) -> pd.DataFrame:
    """CorLoc of the most confident images (El-Yaniv and Wiener 2010).

    Args:
        images: a row for each image, columns confidence and CorLoc (0 or 100).

    Returns:
        A row for each coverage (10, 20, ..., 100 percent of the images): coverage and CorLoc in percent, the number of
        images, and their lowest confidence (for `min_confidence`).
    """
    import pandas as pd

    ranked = images.sort_values("confidence", ascending=False, kind="stable")
    rows = []
    for coverage in COVERAGES:
        answered = ranked.head(max(1, round(len(ranked) * coverage / 100)))
        rows.append(
            {
                "coverage": coverage,
                "images": len(answered),
                "CorLoc": answered["CorLoc"].mean(),
                "confidence": answered["confidence"].min(),
            }
        )
    return pd.DataFrame(rows)
