"""Classes of a picture from reference pictures with painted or uploaded class masks, nothing trained.

The method of tasks.incontext (Hummingbird, arXiv 2306.01667): each patch takes the classes of the most similar patches
of all reference pictures. Pictures keep their aspect ratio here, every patch is in the memory, nothing is augmented.

Shapes: H x W pixels, h x w patches of p x p pixels, D features, C classes (0 is background), M rows of the memory.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from data.masks import write_mask
from data.own_masks import OwnMasks
from dino_dense.arrays import Pixels
from dino_dense.neighbors.incontext import class_map, patch_histograms, soft_labels
from tasks.harness import figures
from tasks.studio_page.opened import OpenClip
from tasks.studio_page.scene import Studio

NEIGHBORS, TEMPERATURE = 30, 0.02  # open-hummingbird-eval's


@dataclass
class References:
    """A visitor's reference pictures; the marks of each are its classes."""

    pictures: list[OpenClip] = field(default_factory=list)
    chosen: int = 0

    @property
    def picture(self) -> OpenClip:
        """The chosen picture; ValueError if there is none."""
        if not self.pictures:
            raise ValueError("first choose reference images")
        return self.pictures[min(self.chosen, len(self.pictures) - 1)]

    def close(self) -> None:
        """Remove the files."""
        for picture in self.pictures:
            picture.close()


def open_references(studio: Studio, images: Sequence[str], masks: Sequence[str] = ()) -> References:
    """Open reference pictures, with class masks for some of them (`put_masks`).

    Raises:
        DataError, ValueError: a file is unusable, or two images have one name.
    """
    references = References()
    try:
        for image in images:
            references.pictures.append(studio.open(image))
        if len({picture.clip.name for picture in references.pictures}) < len(images):
            raise ValueError("two reference images have the same name: rename one")
        put_masks(references, masks)
    except BaseException:
        references.close()
        raise
    return references


def put_masks(references: References, masks: Sequence[str]) -> None:
    """Mark references with class masks, each of the image of its name (without suffix).

    Values of all masks are read by one rule (`data.own_masks`), so that a class has the same number in all.

    Raises:
        DataError, ValueError: a mask is unusable, or has the name of no image.
    """
    by_name = {picture.clip.name: picture for picture in references.pictures}
    files = {Path(mask).stem: Path(mask) for mask in masks}
    if strange := sorted(set(files) - set(by_name)):
        raise ValueError(
            f"a class mask named {strange[0]}: expected the name of a reference image, {', '.join(by_name)}"
        )
    if files:
        for name, ids in OwnMasks(files, {name: by_name[name].clip.size for name in files}).items():
            by_name[name].put(ids)


def label(studio: Studio, references: Sequence[OpenClip], query: OpenClip) -> Pixels:
    """Class ids [H, W] of the frame on view of `query`.

    Pixels of a reference without a class are background. A reference without any class is not used.

    Raises:
        ValueError: no reference has a class.
    """
    references = [picture for picture in references if picture.ids.any()]
    if not references:
        raise ValueError("no reference image has a class yet: click or paint one, or choose class masks")
    classes = 1 + max(int(picture.ids.max()) for picture in references)
    patch = studio.backbones[0].patch_size
    features = [studio.features(picture) for picture in references]
    memory = torch.cat([F.normalize(rows(values), dim=1) for values in features])  # [M, D]
    shares = torch.cat(
        [_shares(picture.ids, values, patch, classes) for picture, values in zip(references, features, strict=True)]
    )  # [M, C]
    wanted = studio.features(query)
    grid = wanted.shape[1], wanted.shape[2]
    soft = soft_labels(rows(wanted), memory, shares, neighbors=min(NEIGHBORS, len(memory)), temperature=TEMPERATURE)
    ids: Pixels = class_map(soft[None], grid, query.clip.size)[0].numpy()
    return ids


def rows(features: Tensor) -> Tensor:
    """Features [D, h, w] -> [h*w, D], float32."""
    return features.flatten(1).T.float()


def _shares(ids: Pixels, features: Tensor, patch: int, classes: int) -> Tensor:
    """Shares of the classes in each patch [h*w, C] of ids [H, W], resized to the nearest pixel of whole patches."""
    height, width = (patch * side for side in features.shape[1:])
    resized = cv2.resize(ids, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    return patch_histograms(torch.from_numpy(np.asarray(resized, np.uint8))[None], patch, classes)[0].flatten(0, 1)


def label_and_write(studio: Studio, references: References, query: OpenClip) -> tuple[Pixels, Path]:
    """`label`, as an overlay and as a file of ids (PNG)."""
    ids = label(studio, references.pictures, query)
    path = query.folder / "classes" / f"{query.clip.name}_{query.clip.frame_name(query.index)}_classes.png"
    write_mask(path, ids)
    return figures.overlay(query.frame, ids), path
