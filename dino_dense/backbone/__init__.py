"""A frozen network behind one interface: `load_backbone` opens it, `Backbone.extract` gives its features."""

from dino_dense.backbone.backbone import Backbone, Features
from dino_dense.backbone.load import load_backbone

__all__ = ["Backbone", "Features", "load_backbone"]
