"""dino_dense: train DINO vision transformers and measure what their frozen features can do."""

from dino_dense.backbone import Backbone, Features, load_backbone
from dino_dense.report import Metric, Picture, Report, Score

__all__ = ["Backbone", "Features", "Metric", "Picture", "Report", "Score", "load_backbone"]
__version__ = "0.1.0"
