"""Unsupervised saliency: segment the object in an image from frozen features, without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import cv2
import numpy as np

from data import DataError
from data.known_sets import SALIENCY_SETS, VOC12_NAME, VOC12_SEGMENTATION_VAL, are_named, sizes_vary
from data.masks import VOID_ID
from data.rle import decode_mask, encode_mask
from data.saliency import Layout, MaskedImage, detect_layout, load_saliency, object_masks
from data.sample import sample_data
from dino_dense import Metric, Picture
from dino_dense.backbone.grid import fit
from dino_dense.config import command_line
from dino_dense.config.schema import path, runtime, selects
from dino_dense.objects.protocol import CONFIDENCE, SegmentProtocol
from dino_dense.versions import versions
from tasks.harness import figures
from tasks.harness.command import main
from tasks.harness.session import DataFacts, Session
from tasks.harness.task import Outcome, Task, file_list_hash, sized_by

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd
    from torch import Tensor

    from dino_dense import Backbone
    from dino_dense.arrays import Mask, Pixels
    from dino_dense.objects.segment import Segment

METRICS = tuple(Metric(name) for name in ("IoU", "Accuracy", "max-F", "Jaccard"))
PICTURES = 6


@dataclass(frozen=True)
class SaliencyProtocol(SegmentProtocol):
    """Method and scores"""

    method: Literal["attention", "tokencut", "lost"] = "tokencut"
    """attention (DINO, Fig. 4), tokencut (Wang et al. 2022) or lost (Siméoni et al. 2021)."""
    attention_heads: Literal["mean", "best"] | int = "mean"
    """For attention: the mean of the heads, one head (from 0), or best: the head with the highest IoU in each image (an
    upper bound, since it uses the ground truth). Jaccard always uses the best head for each object (DINO, Fig. 4)."""
    refine: Literal["none", "bilateral"] = "none"
    """bilateral: align the mask with the edges of the image by the bilateral solver (TokenCut + BS)."""
    void: Literal["background", "ignore", "object"] = "background"
    """Treatment of void (255) in VOC and DAVIS-2017 masks; background as in DINO's own code (dino#54), which scores all
    pixels."""


@dataclass(frozen=True)
class SaliencyConfig(SaliencyProtocol):
    """Images, and constants of the protocol"""

    data: str | None = path()
    """Folder of images and masks (ECSSD, DUTS-TE, DUT-OMRON, any), VOC2012 or a DAVIS tree; without it, the embedded
    pairs."""
    layout: Layout = selects("auto")
    """pairs (two folders with the same names), voc, davis, or auto to detect it."""
    split: str = selects("val")
    """List of a voc (ImageSets/Segmentation) or davis (ImageSets/YEAR) tree."""
    year: Literal[2016, 2017] = selects(2016)
    """For a davis tree: 2016 has one foreground, 2017 object ids."""
    sequences: tuple[str, ...] | None = selects(None)
    """For a davis tree: use only these, a,b,c."""
    max_images: int | None = selects(None)
    """Use only this many images, evenly spaced."""
    batch_size: int | None = runtime(None)
    """Images of one size in a batch; default: 1 on a CPU, 8 on a GPU."""
    save_masks: bool = runtime(False)
    """Write each mask as masks/NAME.png, 0 and 255, at native size; a refined mask is one component without holes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_images is not None and self.max_images < 1:
            raise ValueError(f"max_images is {self.max_images}: expected 1 or more, or none for all")


class SaliencyMap(NamedTuple):
    """A prediction for one image."""

    values: npt.NDArray[np.float64]
    """[H, W] at native size, 0 to 1."""
    mask: Mask
    """[H, W], the mask for display."""
    segment: Segment


class MaskedImages(NamedTuple):
    """The images of a config."""

    items: list[MaskedImage]
    facts: DataFacts


class _Measured(NamedTuple):
    """The results of an image: its row, F at each threshold [255], and the mask."""

    row: dict[str, Any]
    curve: npt.NDArray[np.float64]
    mask: dict[str, Any]


class _Segments(NamedTuple):
    """The segments of an image."""

    predicted: list[Segment]
    candidates: list[Segment]
    """For Jaccard."""


def measure(backbone: Backbone, images: MaskedImages, config: SaliencyConfig, session: Session) -> Outcome:
    """Segment the object in every image, and compare it with the true mask."""
    import pandas as pd

    from dino_dense.objects.maps_ahead import default_batch, maps_ahead
    from dino_dense.objects.segment import compared_maps
    from tasks.scores.saliency import f_at_best_threshold

    own_share = session.share(images.items)
    maps = maps_ahead(
        own_share,
        lambda item: item[1].read(),
        lambda given: fitted(given[0], backbone.patch_size, config),
        lambda batch: _segments(compared_maps(backbone, batch, config, config.method), config),
        config.batch_size or default_batch(backbone),
    )
    shown = session.progress(maps, config.method, total=len(own_share))
    measured = session.collect(
        (index, _measure(segments, image, given, config)) for (index, image), given, segments in shown
    )
    table = pd.DataFrame([image.row for image in measured])
    best_f, threshold = f_at_best_threshold([image.curve for image in measured])
    table.insert(3, "max-F", 100 * best_f)
    masks = {image.row["sample"]: image.mask for image in measured}
    samples = table[["sample", "cluster", *(metric.name for metric in METRICS)]]
    if config.save_masks:
        session.once(_save, masks, session.folder("masks"))
    return Outcome(
        tables={"images": table},
        note=_note(backbone, config, table, threshold),
        samples=samples,
        to_draw=masks,
    )


def open_images(config: SaliencyConfig) -> MaskedImages:
    """Open the images of a config; DataError if they are unusable."""
    root = Path(config.data) if config.data else sample_data().saliency
    images = load_saliency(root, config.layout, split=config.split, year=config.year, sequences=config.sequences)
    total = len(images)
    if config.max_images is not None:
        images = [images[index] for index in figures.evenly_spaced(range(total), config.max_images)]
    name = root.resolve().name if config.data else "embedded saliency pairs"
    if len(images) < total:
        name += f" (part: {len(images)} of {total})"
    description = DataFacts(
        name=name,
        root=str(root),
        n=len(images),
        unit="images",
        sha256=file_list_hash(root, [file for image in images for file in (image.image, image.mask)]),
        dataset=_published_dataset(config, root, images),
    )
    return MaskedImages(images, description)


def saliency_maps(
    backbone: Backbone, rgb: Pixels, config: SaliencyProtocol
) -> tuple[list[SaliencyMap], list[SaliencyMap]]:
    """Predictions for an image RGB [H, W, 3], and the candidates for Jaccard (each head's map for attention).

    There is one prediction, except with `attention_heads="best"`.
    """
    from dino_dense.objects.segment import compared_maps

    image = fitted(rgb, backbone.patch_size, config)
    (segments,) = _segments(compared_maps(backbone, image[None], config, config.method), config)
    return maps_from(segments, rgb, config)


def fitted(rgb: Pixels, patch: int, config: SaliencyProtocol) -> Tensor:
    """RGB [H, W, 3] -> image uint8 [3, h, w] at the working size, rounded to the patch size."""
    from dino_dense.objects.segment import to_tensor, working_size

    return to_tensor(rgb, fit(working_size((rgb.shape[0], rgb.shape[1]), config), patch, "even").size)


def _segments(compared: Tensor, config: SaliencyProtocol) -> list[_Segments]:
    """The segments of each image, from the maps [B, ...] of images of one size."""
    from dino_dense.objects.attention import attention_segments
    from dino_dense.objects.cuts import tokencuts
    from dino_dense.objects.lost import lost

    if config.method == "tokencut":
        return [_Segments([segment], [segment]) for segment in tokencuts(compared, config.tau, config.eps)]
    if config.method == "lost":
        return [_Segments([segment], [segment]) for segment in (lost(maps, config.lost_k) for maps in compared)]
    segments = []
    for maps in compared:
        heads = attention_segments(maps, config.mass, "best")
        best = config.attention_heads == "best"
        chosen = heads if best else attention_segments(maps, config.mass, config.attention_heads)
        segments.append(_Segments(chosen, heads))
    return segments


def maps_from(
    segments: _Segments, rgb: Pixels, config: SaliencyProtocol
) -> tuple[list[SaliencyMap], list[SaliencyMap]]:
    """`saliency_maps`, from one image's segments."""
    candidates = [_at_native_size(segment, rgb, config) for segment in segments.candidates]
    if config.method != "attention" or config.attention_heads == "best":
        return candidates, candidates
    return [_at_native_size(segment, rgb, config) for segment in segments.predicted], candidates


def _at_native_size(segment: Segment, rgb: Pixels, config: SaliencyProtocol) -> SaliencyMap:
    size = (rgb.shape[1], rgb.shape[0])
    coarse = cv2.resize(segment.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    if config.refine == "none":
        return SaliencyMap(coarse.astype(np.float64), coarse, segment)
    from dino_dense.objects.bilateral import binarise, refine

    values = refine(rgb, coarse.astype(np.float64))
    return SaliencyMap(values, binarise(values, coarse), segment)


def _measure(
    segments: _Segments, image: MaskedImage, given: tuple[Pixels, Pixels], config: SaliencyConfig
) -> _Measured:
    from tasks.scores.saliency import PREDICTED, accuracy, best_jaccard, f_curve, iou

    rgb, ids = given
    void = image.has_ids & (ids == VOID_ID)
    truth = (ids > 0) & ~(void & (config.void != "object"))
    scored = ~void if config.void == "ignore" else np.ones_like(truth)
    if not scored.any():
        raise DataError(f"{image.mask}: every pixel is void, so that nothing can be scored. Leave the image out")
    maps, candidates = maps_from(segments, rgb, config)
    overlaps = [iou(candidate.values[scored], truth[scored]) for candidate in maps]
    best = int(np.argmax(overlaps))
    values, segment = maps[best].values[scored], maps[best].segment
    objects = [wanted[scored] for wanted in object_masks(ids)]
    row = {
        "sample": image.name,
        "IoU": 100 * overlaps[best],
        "Accuracy": 100 * accuracy(values, truth[scored]),
        "Jaccard": 100 * best_jaccard([candidate.values[scored] > PREDICTED for candidate in candidates], objects),
        "confidence": segment.confidence,
        "ncut": segment.ncut,
        "objects": len(objects),
        "cluster": image.video or image.name,
    }
    return _Measured(row, f_curve(values, truth[scored]), encode_mask(maps[best].mask))


def _note(backbone: Backbone, config: SaliencyConfig, table: pd.DataFrame, threshold: float) -> str:
    from dino_dense.objects.segment import feature_note, uncut_note

    parts = [f"Confidence (images.csv) is the {CONFIDENCE[config.method]}."]
    if config.refine != "none":
        parts.append(f"max-F is at threshold {threshold:.3f}.")
    if config.method == "attention" and config.attention_heads == "best":
        parts.append("The head was chosen by the truth, image by image: an upper bound.")
    if config.method != "attention":
        parts += [uncut_note(list(table["ncut"]), config), feature_note(backbone, config)]
    return " ".join(filter(None, parts))


def _published_dataset(config: SaliencyConfig, root: Path, images: Sequence[MaskedImage]) -> str | None:
    """Name of the published set, if these images are all of it, in sizes of their own."""
    if config.data is None or not sizes_vary([image.image for image in images]):
        return None
    if images[0].has_ids:
        listed = detect_layout(root) == "voc" and config.split == "val" and len(images) == VOC12_SEGMENTATION_VAL
        named = listed and are_named([image.image for image in images], VOC12_NAME)
        return "VOC12 segmentation val" if named else None
    parts = {part.upper().removesuffix("-IMAGE") for part in images[0].image.resolve().parts}
    return next((name for name, count in SALIENCY_SETS.items() if name in parts and count == len(images)), None)


def _save(masks: dict[str, dict[str, Any]], folder: Path) -> None:
    for name, mask in masks.items():
        figures.save(folder / f"{name}.png", 255 * decode_mask(mask))


def draw(images: MaskedImages, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """Draw the worst and best images: the found mask next to the ground truth."""
    assert outcome.samples is not None
    masks, values = outcome.to_draw, outcome.samples.set_index("sample")["IoU"]
    by_name = {image.name: image for image in images.items}
    pictures = []
    for rank, label in enumerate(figures.worst_and_best_first(values)[:PICTURES]):
        name = str(label)
        case = {0: " (worst)", 1: " (best)"}.get(rank, "") if len(values) > 1 else ""
        rgb, ids = by_name[name].read()
        file = folder / "overlays" / f"{name.replace('/', '_')}.jpg"
        figures.mask_strip(file, [(rgb, decode_mask(masks[name])), (rgb, np.where(ids == VOID_ID, 0, ids))])
        pictures.append(Picture(f"overlays/{file.name}", f"{name}{case}: IoU {values[name]:.1f} (found, truth)"))
    return tuple(pictures)


TASK = Task(
    name="saliency",
    summary="Unsupervised saliency by attention, TokenCut or LOST (IoU, accuracy, max-F, Jaccard).",
    source="TokenCut, arXiv 2209.00383 (unsupervised_saliency_detection); DINO, arXiv 2104.14294, Fig. 4.",
    config=SaliencyConfig,
    metrics=METRICS,
    open=open_images,
    measure=measure,
    draw=draw,
    at_size=sized_by("short_side", "squash"),
    smoke=SaliencyConfig(max_images=12),
    versions=versions("objects", "saliency scores"),
)

if __name__ == "__main__":
    command_line.run(lambda: main("saliency"))
