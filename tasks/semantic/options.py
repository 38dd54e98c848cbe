"""Options of every task on images with a class for every pixel."""

from __future__ import annotations

from dataclasses import dataclass

from data.segmentation_layouts import CocoClasses, Layout
from dino_dense.config.schema import path, runtime, selects


@dataclass(frozen=True)
class LabeledImages:
    """Which images"""

    data: str | None = path()
    """Folder of images with a class for every pixel (see --layout); without it, the embedded pairs (classes ground and
    object)."""
    layout: Layout = selects("auto")
    """voc: JPEGImages, SegmentationClass (255 is void), ImageSets/Segmentation; ade20k; cityscapes; coco: its
    stuffthingmaps; camvid: train, trainannot; folder: images/SPLIT and masks/SPLIT, or SPLIT/images and SPLIT/masks, of
    class ids; auto: by the names in the folder."""
    coco_classes: CocoClasses = selects("fine", layout="coco")
    """Classes with layout coco: fine (the 182 ids of its maps), coarse (27 supercategories), things (12 of these) or
    stuff (15 of these)."""
    train_split: str = selects("train")
    """List or folder to learn from."""
    split: str = selects("val")
    """List or folder to score."""
    workers: int | None = runtime(None)
    """Worker processes that read images. None: 0 on a CPU; on CUDA one for each processor, 16 at most."""
