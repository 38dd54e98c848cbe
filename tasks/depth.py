"""Depth from one image by a linear layer on frozen patch tokens (delta, RMSE, AbsRel)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.depth import KB_FRAME, Depth, DepthPair, Layout, check_unit, depth_set, layout_of, open_depth
from data.sample.depth import depth_root
from dino_dense import Metric, Picture
from dino_dense.arrays import Mask
from dino_dense.config import command_line
from dino_dense.config.schema import path, runtime, selects
from dino_dense.probes.protocol import DepthProbe
from dino_dense.versions import versions
from tasks.harness import figures
from tasks.harness.command import main
from tasks.harness.session import DataFacts, Session
from tasks.harness.task import Outcome, Task, file_list_hash
from tasks.scores.depth import depth_errors, eigen_mask, garg_mask, valid_pixels

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from dino_dense import Backbone

PICTURES = 6
COLUMNS = {
    "delta1": ("a1", 100),
    "delta2": ("a2", 100),
    "delta3": ("a3", 100),
    "RMSE": ("rmse", 1),
    "AbsRel": ("abs_rel", 1),
}
"""Metric -> the error that it is, and the factor to its unit."""
REGIONS = {"eigen": eigen_mask, "garg": garg_mask}


@dataclass(frozen=True)
class DepthConfig(DepthProbe):
    """Which images"""

    data: str | None = path()
    """Folder with BTS's lists of NYUv2 (nyu_train.txt, nyu_test.txt) or KITTI, or with images and depth maps; without
    it, the embedded rooms."""
    layout: Layout = selects("auto")
    """nyu, kitti, folder (images/SPLIT and depth/SPLIT, or SPLIT/images and SPLIT/depth); auto: by the lists."""
    train_split: str = selects("train")
    """List or folder to train on."""
    split: str = selects("test")
    """List or folder to score; val of the embedded rooms."""
    unit: float | None = selects(None)
    """Values of the files that make a meter; default 1000 (KITTI 256; of floats 1)."""
    workers: int = runtime(0)
    """Processes that read images beside the main one."""


@dataclass(frozen=True)
class DepthSplits:
    """The images to train on and to score."""

    train: list[DepthPair]
    val: list[DepthPair]
    facts: DataFacts


def open_data(config: DepthConfig) -> DepthSplits:
    """The two splits; some maps are looked into.

    Raises:
        DataError: a split cannot be used, or its unit is not the one that is expected.
    """
    root = Path(config.data) if config.data else depth_root()
    split = config.split if config.data else "val"
    layout = config.layout if config.layout != "auto" else layout_of(root)
    train, val = (open_depth(root, name, layout, config.unit) for name in (config.train_split, split))
    for pairs in (train, val):
        check_unit(pairs, config.max_depth)
    if config.frame == "kb":
        train, val = ([replace(pair, frame=KB_FRAME) for pair in pairs] for pairs in (train, val))
    files = [file for pair in (*train, *val) for file in (pair.image, pair.depth)]
    facts = DataFacts(
        name=f"{root.resolve().name} {split}" if config.data else "embedded rooms",
        root=str(root),
        n=len(val),
        unit="images",
        sha256=file_list_hash(root, files),
        dataset=depth_set(layout, train, val),
    )
    return DepthSplits(train, val, facts)


def region(config: DepthConfig, size: tuple[int, int]) -> Mask | None:
    """The pixels that are scored, bool [H, W]; None for all."""
    return REGIONS[config.region](size) if config.region in REGIONS else None


def measure(backbone: Backbone, splits: DepthSplits, config: DepthConfig, session: Session) -> Outcome:
    """Train the head or fill the memory, apply it to every image of the split, and score each by itself."""
    import pandas as pd

    from dino_dense.probes.depth_training import predict_depth

    head, tables, remark = head_of(backbone, splits, config, session)
    predict = partial(predict_depth, backbone, head, config=config)

    def errors(pair: DepthPair) -> dict[str, float]:
        picture, truth = pair.read()
        valid = valid_pixels(truth, config.min_depth, config.max_depth, region(config, truth.shape))  # type: ignore[arg-type]
        return depth_errors(predict(picture), truth, valid)  # type: ignore[arg-type]

    share = session.progress(session.share(splits.val), "measuring depth")
    rows = session.collect((index, errors(pair)) for index, pair in share)
    values = {name: [factor * row[key] for row in rows] for name, (key, factor) in COLUMNS.items()}
    samples = pd.DataFrame({"sample": [pair.name for pair in splits.val], **values})
    left_out = int(samples["RMSE"].isna().sum())
    note = f"{remark}Each image is scored by itself, and a score is the mean over images."
    note += f" {left_out} images without a pixel of depth in the region are left out." if left_out else ""
    if left_out == len(samples):
        raise ValueError(
            f"no image of {splits.facts.root} has depth between {config.min_depth} and {config.max_depth} m in region "
            f"{config.region}: take --region all, or another --max-depth."
        )
    return Outcome(tables=tables, note=note, samples=samples, to_draw=predict)


def head_of(
    backbone: Backbone, splits: DepthSplits, config: DepthConfig, session: Session
) -> tuple[Callable[[Tensor], Tensor], dict[str, pd.DataFrame], str]:
    """Tokens -> meters, the tables of how it came about, and a sentence on it."""
    from dino_dense.probes.depth_memory import read_memory
    from dino_dense.probes.depth_training import train_depth

    shared: Any = {"world": session.world, "seed": session.seed, "workers": config.workers}
    if config.head == "neighbors":
        memory = read_memory(backbone, config, splits.train, **shared)
        return memory, {}, f"Memory: {memory.size()}. "
    state = session.folder("head") / "last.safetensors"
    head, curve = train_depth(backbone, config, splits.train, state=state, **shared)
    return head, {"curve": curve}, ""


def draw(splits: DepthSplits, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """The images of largest and smallest RMSE: image, prediction, truth; and the curve of the loss, if there is one."""
    assert outcome.samples is not None
    errors = outcome.samples.set_index("sample")["RMSE"].dropna()
    pairs = {pair.name: pair for pair in splits.val}
    pictures = []
    for number, name in enumerate(map(str, figures.worst_and_best_first(-errors)[:PICTURES])):
        picture, truth = pairs[name].read()
        file = f"depth/{number:02d}.jpg"
        _draw_strip(folder / file, np.asarray(picture), outcome.to_draw(picture), truth)
        pictures.append(Picture(file, f"{name}: RMSE {errors[name]:.3f} m; image, prediction, truth"))
    if "curve" in outcome.tables:
        figures.curves(folder / "curve.png", outcome.tables["curve"].set_index("step")[["loss"]], "step")
        pictures.append(Picture("curve.png", "Loss of the depth head"))
    return tuple(pictures)


def _draw_strip(file: Path, rgb: np.ndarray, predicted: Depth, truth: Depth) -> None:
    """Image, prediction and truth side by side, near as dark and far as bright on one scale."""
    there = truth[truth > 0]
    low, high = (float(np.log(value)) for value in (there.min(), there.max())) if there.size else (0.0, 1.0)
    size = (rgb.shape[0], rgb.shape[1])
    maps = [figures.heat(np.log(np.maximum(depth, 1e-3)), size, low, high) for depth in (predicted, truth)]
    captions: Sequence[str] = ("image", "prediction", "truth")
    figures.save(file, figures.grid(list(zip(captions, [rgb, *maps], strict=True)), 3))


TASK = Task(
    name="depth",
    summary="Depth from one image by a linear layer on frozen patch tokens (delta, RMSE, AbsRel).",
    source="DINOv3, arXiv 2508.10104, eval/depth; DINOv2's linear heads and in-context depth by --preset.",
    config=DepthConfig,
    metrics=(
        Metric("delta1"),
        Metric("delta2"),
        Metric("delta3"),
        Metric("RMSE", unit="m", higher_is_better=False, high=1000.0),
        Metric("AbsRel", unit="", higher_is_better=False, high=1e6),
    ),
    open=open_data,
    measure=measure,
    draw=draw,
    upsamples=True,
    smoke=DepthConfig(
        steps=40,
        batch_size=4,
        lr=6e-2,
        crop=(160, 216),
        border=(0, 0, 640, 480),
        augment=False,
        flip=False,
        region="all",
    ),
    versions=versions("depth probe", "depth scores"),
)

if __name__ == "__main__":
    command_line.run(lambda: main("depth"))
