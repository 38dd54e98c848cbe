"""Unsupervised object discovery: boxes around objects from frozen features, without training (CorLoc)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import cv2
import numpy as np

from data import DataError, coco
from data.images import read_rgb
from data.known_sets import discovery_set, sizes_vary
from data.rle import decode_mask, encode_mask
from data.saliency import load_saliency
from data.sample import sample_data
from dino_dense import Metric, Picture
from dino_dense.backbone.grid import fit
from dino_dense.config import command_line
from dino_dense.config.schema import path, runtime, selects
from dino_dense.files import write_text
from dino_dense.objects.protocol import CONFIDENCE, SegmentProtocol
from dino_dense.versions import versions
from tasks.harness import figures
from tasks.harness.command import main
from tasks.harness.session import DataFacts, Session
from tasks.harness.task import Outcome, Task, file_list_hash, sized_by
from tasks.scores.boxes import HIT, box_iou, objects_found, risk_coverage

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from data.boxes import BoxedImage
    from dino_dense import Backbone
    from dino_dense.arrays import Box, Mask, Pixels
    from dino_dense.objects.segment import Segment

METRICS = (Metric("CorLoc"), Metric("Box-IoU"))
PICTURES = 6
FOUND, WANTED = (255, 60, 60), (60, 220, 60)  # RGB of boxes in pictures


@dataclass(frozen=True)
class DiscoveryProtocol(SegmentProtocol):
    """Method and scores"""

    method: Literal["attention", "tokencut", "lost", "maskcut"] = "tokencut"
    """attention (DINO-seg of the LOST paper: largest component), tokencut, lost, or maskcut (several objects; the box
    is the first mask's)."""
    head: Literal["mean"] | int = 4
    """For attention: the head, from 0 (LOST, main_lost.py: 4), or the mean of all heads."""
    masks: int = 3
    """For maskcut: largest number of masks (maskcut.py --N)."""
    no_hard: bool = False
    """Ignore VOC objects flagged difficult or truncated (main_lost.py --no_hard)."""
    min_confidence: float | None = None
    """Skip images with a lower confidence, 0 to 1; risk_coverage.csv shows the effect."""


@dataclass(frozen=True)
class DiscoveryConfig(DiscoveryProtocol):
    """Images, and constants of the protocol"""

    data: str | None = path()
    """Folder VOC2007 or VOC2012, a COCO folder, or images with masks (boxes are then computed from the masks); default:
    the embedded saliency pairs."""
    layout: Literal["auto", "voc", "coco", "masks"] = selects("auto")
    """Layout of `data`; auto: voc if there is ImageSets/Main, coco if there are annotations, else masks."""
    split: str = selects("trainval")
    """List of a VOC tree, under ImageSets/Main."""
    annotations: str = selects("annotations/instances_train2014.json")
    """For coco: the annotation file, below `data`; if missing, the only file of an export (Roboflow, CVAT)."""
    images: str = selects("train2014")
    """For coco: the folder of images, below `data`; if missing, the folder by the annotation file's paths."""
    only: str | None = path()
    """For coco: file with the names or ids of the images to use, one on each line (COCO-20k's list)."""
    max_images: int | None = selects(None)
    """Use only this many images, evenly spaced."""
    batch_size: int | None = runtime(None)
    """Images of one size in a batch; default: 1 on a CPU, 8 on a GPU."""
    export_coco: bool = runtime(False)
    """Write boxes and masks as coco.json for pycocotools."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_images", "masks"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}: expected 1 or more")
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence is {self.min_confidence}: expected a number from 0 to 1")


class Found(NamedTuple):
    """An object in an image, at its native size."""

    box: Box | None
    """(x0, y0, x1, y1), pixels, ends not included; None if no object was found."""
    mask: Mask
    """[H, W]."""
    segment: Segment


class BoxedImages(NamedTuple):
    """The images of a config that have objects."""

    items: list[BoxedImage]
    facts: DataFacts
    without_objects: int
    """Number of skipped images without objects."""


class _Measured(NamedTuple):
    """The results of an image: its row, boxes, masks (run lengths) and confidences."""

    row: dict[str, Any]
    boxes: list[Box]
    masks: list[dict[str, Any]]
    confidences: list[float]


def measure(backbone: Backbone, images: BoxedImages, config: DiscoveryConfig, session: Session) -> Outcome:
    """Find a box in every image, and test whether it matches an object."""
    import pandas as pd

    from dino_dense.objects.maps_ahead import default_batch, maps_ahead
    from dino_dense.objects.segment import compared_maps

    own_share = session.share(images.items)
    maps = maps_ahead(
        own_share,
        lambda item: np.asarray(read_rgb(item[1].image)),
        lambda rgb: resized(rgb, config),
        lambda batch: _segments(compared_maps(backbone, batch, config, config.method), config),
        config.batch_size or default_batch(backbone),
        size=lambda image: _whole(image, backbone),
        join=lambda images: padded(images, backbone),
    )
    shown = session.progress(maps, config.method, total=len(own_share))
    measured = session.collect(
        (index, _measure(segments, image, rgb, backbone.patch_size, config)) for (index, image), rgb, segments in shown
    )
    table = pd.DataFrame([image.row for image in measured])
    answered = table[table["confidence"] >= (config.min_confidence or 0)]
    if answered.empty:
        raise ValueError(
            f"min_confidence {config.min_confidence} leaves out every image; their highest confidence is "
            f"{table['confidence'].max():.3f}"
        )
    samples = answered[["sample", "cluster", *(metric.name for metric in METRICS)]].reset_index(drop=True)
    chosen = [(images.items[index], measured[index]) for index in answered.index]
    if config.export_coco:
        session.once(write_text, session.folder() / "coco.json", json.dumps(to_coco(chosen)))
    return Outcome(
        tables={"images": table, "risk_coverage": risk_coverage(table)},
        note=_note(backbone, config, table, len(table) - len(answered), images.without_objects),
        samples=samples,
        to_draw=chosen,
    )


def open_images(config: DiscoveryConfig) -> BoxedImages:
    """Open the images of a config that have objects; DataError if they are unusable."""
    root = Path(config.data) if config.data else sample_data().saliency
    layout = _layout(config, root) if config.data else "masks"
    listed, files = _read_boxes(config, root, layout)
    images = [image for image in listed if image.boxes]
    if not images:
        raise DataError(
            f"{root}: none of its {len(listed)} images has an object to find (crowds are none). Check the annotations"
        )
    total = len(images)
    if config.max_images is not None:
        images = [images[index] for index in figures.evenly_spaced(range(total), config.max_images)]
    name = root.resolve().name if config.data else "embedded saliency pairs"
    if len(images) < total:
        name += f" (part: {len(images)} of {total})"
    paths = [image.image for image in images]
    known = discovery_set(layout, bool(config.only), paths) if config.data and sizes_vary(paths) else None
    description = DataFacts(
        name=name,
        root=str(root),
        n=len(images),
        unit="images",
        sha256=file_list_hash(root, [*paths, *files]),
        dataset=known,
    )
    return BoxedImages(images, description, len(listed) - total)


def find_objects(backbone: Backbone, rgb: Pixels, config: DiscoveryProtocol) -> list[Found]:
    """Objects in an image RGB [H, W, 3]; one, except with maskcut."""
    from dino_dense.objects.segment import compared_maps

    image = padded([resized(rgb, config)], backbone)
    (segments,) = _segments(compared_maps(backbone, image, config, config.method), config)
    return objects_from(segments, rgb, backbone.patch_size, config)


def objects_from(segments: Sequence[Segment], rgb: Pixels, patch: int, config: DiscoveryProtocol) -> list[Found]:
    """`find_objects`, from one image's segments."""
    from dino_dense.objects.segment import box_of, working_size

    height, width = size = working_size((rgb.shape[0], rgb.shape[1]), config)
    objects = []
    for segment in segments:
        box = box_of(segment.mask, patch, size)
        if box is not None:
            across, down = rgb.shape[1] / width, rgb.shape[0] / height
            box = (box[0] * across, box[1] * down, box[2] * across, box[3] * down)
        pixels = segment.mask.repeat(patch, axis=0).repeat(patch, axis=1)[:height, :width]
        mask = cv2.resize(pixels.astype(np.uint8), rgb.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
        objects.append(Found(box, mask, segment))
    return objects


def to_coco(chosen: Sequence[tuple[BoxedImage, _Measured]]) -> dict[str, Any]:
    """The found objects as a COCO data set (its annotations are also COCO results): bbox is [x, y, width, height]."""
    pictures: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image, measured in chosen:
        height, width = measured.row["height"], measured.row["width"]
        pictures.append({"id": image.number, "file_name": image.image.name, "height": height, "width": width})
        for (x0, y0, x1, y1), mask, score in zip(*measured[1:], strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.number,
                    "category_id": 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "segmentation": mask,
                    "area": int(decode_mask(mask).sum()),
                    "iscrowd": 0,
                    "score": score,
                }
            )
    return {"images": pictures, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


def _segments(compared: Tensor, config: DiscoveryProtocol) -> list[list[Segment]]:
    """The segments that the method finds in each image, from the maps [B, ...] of images of one size."""
    from dino_dense.objects.attention import attention_segments
    from dino_dense.objects.cuts import maskcuts, tokencuts
    from dino_dense.objects.lost import lost
    from dino_dense.objects.segment import largest_component

    if config.method == "attention":
        chosen = [attention_segments(maps, config.mass, config.head)[0] for maps in compared]
        return [[segment._replace(mask=largest_component(segment.mask))] for segment in chosen]
    if config.method == "maskcut":
        return maskcuts(compared, config.tau, config.eps, config.masks)
    if config.method == "lost":
        return [[lost(maps, config.lost_k)] for maps in compared]
    return [[segment] for segment in tokencuts(compared, config.tau, config.eps)]


def resized(rgb: Pixels, config: DiscoveryProtocol) -> Tensor:
    """RGB [H, W, 3] -> image uint8 [3, h, w] at the working size."""
    from dino_dense.objects.segment import to_tensor, working_size

    return to_tensor(rgb, working_size((rgb.shape[0], rgb.shape[1]), config))


def padded(images: Sequence[Tensor], backbone: Backbone) -> Tensor:
    """Images uint8 [3, h, w] -> float [B, 3, H, W] in [0, 1] on the device, H and W multiples of the patch size.

    The padding is below and right, and 0 after normalization. All images become one size.
    """
    import torch

    from dino_dense.backbone.bytes import filled

    whole = torch.zeros(len(images), 3, *_whole(images[0], backbone), dtype=torch.uint8)
    for padded_image, image in zip(whole, images, strict=True):
        padded_image[:, : image.shape[1], : image.shape[2]] = image
    sizes = torch.tensor([image.shape[1:] for image in images])
    return filled(whole, sizes, backbone.mean, backbone.device)


def _whole(image: Tensor, backbone: Backbone) -> tuple[int, int]:
    """The size (H, W) of an image [3, h, w] with its padding."""
    return fit((image.shape[1], image.shape[2]), backbone.patch_size, "ceil").size


def _measure(
    segments: Sequence[Segment], image: BoxedImage, rgb: Pixels, patch: int, config: DiscoveryConfig
) -> _Measured:
    objects = objects_from(segments, rgb, patch, config)
    boxes = [item.box for item in objects if item.box is not None]
    overlap = float(box_iou(objects[0].box, image.boxes).max())
    row = {
        "sample": image.name,
        "CorLoc": 100.0 * (overlap >= HIT),
        "Box-IoU": 100 * overlap,
        "confidence": objects[0].segment.confidence,
        "ncut": objects[0].segment.ncut,
        "objects": len(image.boxes),
        "boxes": len(boxes),
        "objects_found": objects_found(boxes, image.boxes),
        "cluster": image.video or image.name,
        "height": rgb.shape[0],
        "width": rgb.shape[1],
    }
    with_box = [item for item in objects if item.box is not None]
    masks = [encode_mask(item.mask) for item in with_box]
    return _Measured(row, boxes, masks, [item.segment.confidence for item in with_box])


def _layout(config: DiscoveryConfig, root: Path) -> str:
    if config.layout != "auto":
        return config.layout
    if (root / "ImageSets" / "Main").is_dir():
        return "voc"
    return "coco" if (root / config.annotations).is_file() or coco.find_annotations(root) else "masks"


def _annotations(config: DiscoveryConfig, root: Path) -> Path:
    """The annotation file: as named, or the only file at the usual paths; DataError if there are several."""
    path = root / config.annotations
    there = [] if path.is_file() else coco.find_annotations(root)
    if len(there) == 1 and config.annotations == DiscoveryConfig.annotations:
        return there[0]
    if there:
        choices = [f"--layout coco --annotations {file.relative_to(root).as_posix()}" for file in there]
        raise DataError(f"{path}: no such file. Choose one of: {' or '.join(choices)}")
    return path


def _read_boxes(config: DiscoveryConfig, root: Path, layout: str) -> tuple[list[BoxedImage], list[Path]]:
    """The images, and their annotation files."""
    from data.boxes import boxes_of_masks, load_coco_boxes, load_voc_boxes

    if layout == "voc":
        voc = load_voc_boxes(root, config.split, hard=not config.no_hard)
        return voc, [image.annotation for image in voc if image.annotation]
    if layout == "coco":
        annotations = _annotations(config, root)
        return load_coco_boxes(annotations, coco.find_images(annotations, root / config.images), config.only), [
            annotations
        ]
    pairs = load_saliency(root)
    return boxes_of_masks(pairs), [pair.mask for pair in pairs]


def _note(backbone: Backbone, config: DiscoveryConfig, table: pd.DataFrame, unanswered: int, without: int) -> str:
    from dino_dense.objects.segment import feature_note, uncut_note

    parts = [f"Confidence is the {CONFIDENCE[config.method]}."]
    if config.method == "maskcut":
        n_found, total = int(table["objects_found"].sum()), int(table["objects"].sum())
        parts.append(f"All masks together find {n_found} of {total} objects. No dense CRF refines them.")
    if unanswered:
        parts.append(f"{unanswered} of {len(table)} images are left out (confidence below {config.min_confidence}).")
    if without:
        parts.append(f"Images without an object, which are left out: {without}.")
    if config.method != "attention":
        parts += [uncut_note(list(table["ncut"]), config), feature_note(backbone, config)]
    return " ".join(filter(None, parts))


def draw(images: BoxedImages, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """Draw the worst and best images: found masks and boxes (red) next to the true boxes (green)."""
    pictures = []
    assert outcome.samples is not None
    for label in figures.worst_and_best_first(outcome.samples["Box-IoU"])[:PICTURES]:
        image, measured = outcome.to_draw[int(str(label))]
        rgb = np.asarray(read_rgb(image.image))
        ids = np.zeros(rgb.shape[:2], np.uint8)
        for number, mask in enumerate(measured.masks, start=1):
            ids[decode_mask(mask) > 0] = number
        file = folder / "overlays" / f"{image.name.replace('/', '_')}.jpg"
        left, right = _with_boxes(rgb, measured.boxes, FOUND), _with_boxes(rgb, image.boxes, WANTED)
        figures.mask_strip(file, [(left, ids), (right, np.zeros_like(ids))])
        caption = f"{image.name}: IoU {measured.row['Box-IoU']:.1f} (found, truth)"
        pictures.append(Picture(f"overlays/{file.name}", caption))
    return tuple(pictures)


def _with_boxes(rgb: Pixels, boxes: Sequence[Box], color: tuple[int, int, int]) -> Pixels:
    drawn = rgb.copy()
    for box in boxes:
        x0, y0, x1, y1 = (round(side) for side in box)
        cv2.rectangle(drawn, (x0, y0), (x1 - 1, y1 - 1), color, 2)
    return drawn


TASK = Task(
    name="discovery",
    summary="Unsupervised object discovery by TokenCut, LOST, MaskCut or attention (CorLoc).",
    source="LOST, arXiv 2109.14279; TokenCut, arXiv 2209.00383; MaskCut of CutLER, arXiv 2301.11320.",
    config=DiscoveryConfig,
    metrics=METRICS,
    open=open_images,
    measure=measure,
    draw=draw,
    at_size=sized_by("short_side", "squash"),
    smoke=DiscoveryConfig(max_images=12),
    versions=versions("objects", "box scores"),
)

if __name__ == "__main__":
    command_line.run(lambda: main("discovery"))
