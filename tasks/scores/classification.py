"""Top-1 and top-5 accuracy of rankings, for each image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dino_dense import Metric

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

TOPS = (1, 5)
METRICS = tuple(Metric(f"top-{top}") for top in TOPS)


def hits(ranking: Tensor, labels: Tensor, names: Sequence[str], places: int | None = None) -> pd.DataFrame:
    """Whether each image's class is among the first predictions, 0 or 100.

    Args:
        ranking: class ids [N, classes] (or fewer columns), most likely first.
        labels: [N].
        names: names of the images.
        places: largest number of predictions that count, if later ranks are arbitrary.

    Returns:
        Columns sample, top-1, top-5: an `Outcome.samples`.
    """
    import pandas as pd

    frame = pd.DataFrame({"sample": list(names)})
    for top in TOPS:
        first = ranking[:, : min(top, places or top)]
        frame[f"top-{top}"] = 100.0 * (first == labels[:, None]).any(dim=1).double().numpy()
    return frame
