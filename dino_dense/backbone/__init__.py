"""A frozen network behind one interface: `load_backbone` opens it, `Backbone.extract` gives its features."""

from typing import TYPE_CHECKING

from dino_dense.lazy import lazy_names

if TYPE_CHECKING:
    from dino_dense.backbone.backbone import Backbone, Features
    from dino_dense.backbone.load import load_backbone
else:
    __getattr__ = lazy_names(
        __name__,
        {"dino_dense.backbone.backbone": ("Backbone", "Features"), "dino_dense.backbone.load": ("load_backbone",)},
    )

__all__ = ["Backbone", "Features", "load_backbone"]
