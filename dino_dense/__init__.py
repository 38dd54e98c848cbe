"""dino_dense: train DINO vision transformers and measure what their frozen features can do."""

from typing import TYPE_CHECKING

from dino_dense.lazy import lazy_names

if TYPE_CHECKING:
    from dino_dense.backbone import Backbone, Features, load_backbone
    from dino_dense.report import Metric, Picture, Report, Score
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "dino_dense.backbone": ("Backbone", "Features", "load_backbone"),
            "dino_dense.report": ("Metric", "Picture", "Report", "Score"),
        },
    )

__all__ = ["Backbone", "Features", "Metric", "Picture", "Report", "Score", "load_backbone"]
__version__ = "0.1.0"
