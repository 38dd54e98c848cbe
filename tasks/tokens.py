"""Look at patch tokens without any label: stability, artifacts, effective rank, positional leakage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from data.images import list_images, read_rgb
from data.sample import sample_data
from dino_dense import Metric, Picture, Score
from dino_dense.backbone.grid import fit
from dino_dense.config import command_line
from dino_dense.config.schema import path, runtime, selects
from dino_dense.versions import versions
from tasks.harness import figures
from tasks.harness.command import main
from tasks.harness.session import DataFacts, Session
from tasks.harness.task import Outcome, Task, file_list_hash

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from dino_dense import Backbone
    from dino_dense.arrays import Pixels

Arrays = npt.NDArray[np.float32]
COSINE = "CLS-patch cosine"
METRICS = (
    Metric("stability", low=-100.0),
    Metric("outliers", higher_is_better=False),
    Metric(COSINE, higher_is_better=False, low=-100.0),
    Metric("RankMe", unit="", high=1e6),
    Metric("LiDAR", unit="", high=1e6),
    Metric("position", higher_is_better=False),
    Metric("position on noise", higher_is_better=False),
)
PICTURES = 6
RANK_TOKENS = 25_600  # RankMe, arXiv 2210.02885
DINOV2_CUTOFF = 150.0  # Darcet et al., arXiv 2309.16588, for DINOv2 ViT-g alone
DEFINITIONS = (
    ("stability", "%", "mean cosine of a patch token with the token at its place when the image is larger", "ours"),
    ("outliers", "%", "tokens whose log-norm, before the final norm, is 5 robust deviations above the median", "ours"),
    (COSINE, "%", "mean cosine of class token and patch token", "DINOv3, arXiv 2508.10104, sec. 4.1"),
    ("RankMe", "", "exp of the entropy of the singular values of patch tokens", "arXiv 2210.02885"),
    ("LiDAR", "", "effective rank of class tokens between images, whitened by that within views", "arXiv 2312.04000"),
    ("position", "%", "variance of the mean token at each position over the total variance", "ours"),
    ("position on noise", "%", "the same on images of uniform noise", "ours"),
)


@dataclass(frozen=True)
class TokensProtocol:
    """Sizes and views of the images"""

    sizes: tuple[int, ...] = (224, 336, 448)
    """Sides of the square images, pixels, rounded to whole patches; all but stability is measured at the first."""
    views: int = 10
    """Views of each image for LiDAR: random crops (30 to 100 % of the area), half of them mirrored (paper: 10)."""

    def __post_init__(self) -> None:
        if len(self.sizes) < 2 or min(self.sizes) < 1:
            raise ValueError(f"sizes are {self.sizes}: expected two or more, each 1 or more")
        if self.views < 2:
            raise ValueError(f"views is {self.views}: expected 2 or more")


@dataclass(frozen=True)
class TokensConfig(TokensProtocol):
    """Which images, and every constant of the protocol"""

    data: str | None = path()
    """Any folder of images; without it, the embedded ones. No label is read."""
    max_images: int | None = selects(200)
    """Use at most this many images, evenly spaced. Position and LiDAR need 100 or more."""
    batch_size: int | None = runtime(None)
    """Images whose features are computed at once; without it, 1 on a CPU and 8 on a GPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_images is not None and self.max_images < 2:
            raise ValueError(f"max_images is {self.max_images}: expected 2 or more, or none for all")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}: expected 1 or more")


class Images(NamedTuple):
    """The images that a config names."""

    items: list[Path]
    root: Path
    facts: DataFacts


class _Looked(NamedTuple):
    """Measurements of one image."""

    patches: Arrays
    """[D, h, w] at the first size, after the final norm."""
    norms: Arrays
    """[L, h, w] of all layers, before the final norm."""
    cls_cosine: Arrays | None
    """[h, w] of the class token with each patch; None where they have different numbers of channels."""
    stability: list[float]
    """Mean cosine with the tokens at each further size."""
    views: Arrays
    """[q, D] class tokens of the views."""
    noise: Arrays
    """[D, h, w] patches of an image of noise."""


class _Drawn(NamedTuple):
    """Arrays for the pictures."""

    norms: Arrays
    """[n, h, w] of the last layer."""
    outliers: npt.NDArray[np.bool_]
    """[n, h, w]"""


def measure(backbone: Backbone, images: Images, config: TokensConfig, session: Session) -> Outcome:
    """Look at the tokens of every image, and at those of all together."""
    import torch

    from dino_dense.tokens import high_norm_tokens, lidar, position_share

    own_share = session.share(images.items)
    shown = session.progress(own_share, "tokens")
    looked = session.collect((index, _look(backbone, file, index, config, session.seed)) for index, file in shown)
    norms = np.stack([one.norms for one in looked], axis=1)  # [L, n, h, w]
    outliers = high_norm_tokens(torch.from_numpy(norms[-1])).numpy()
    patches = torch.from_numpy(np.stack([one.patches for one in looked]))
    samples = _samples(images, looked, outliers)
    further = {
        "RankMe": _patch_rank(patches, session.seed),
        "LiDAR": lidar(torch.from_numpy(np.stack([one.views for one in looked])).double()),
        "position": 100 * position_share(patches),
        "position on noise": 100 * position_share(torch.from_numpy(np.stack([one.noise for one in looked]))),
    }
    return Outcome(
        scores=_scores(samples, further),
        tables={
            "layers": _layers(norms, backbone),
            "sizes": _sizes(looked, config, backbone.patch_size),
            "definitions": _definitions(),
        },
        note=_note(backbone, config, patches, looked),
        samples=samples,
        to_draw=_Drawn(norms[-1], outliers),
    )


def open_images(config: TokensConfig) -> Images:
    """The images that a config names; DataError if there are none."""
    root = Path(config.data) if config.data else sample_data().saliency / "images"
    every = list_images(root)
    if len(every) < 2:
        raise ValueError(f"{root}: {len(every)} image; expected 2 or more, whose tokens are compared.")
    most = config.max_images or len(every)
    items = [every[rank] for rank in figures.evenly_spaced(range(len(every)), most)]
    name = root.resolve().name if config.data else "embedded pictures"
    if len(items) < len(every):
        name += f" (part: {len(items)} of {len(every)})"
    description = DataFacts(name=name, root=str(root), n=len(items), unit="images", sha256=file_list_hash(root, items))
    return Images(items, root, description)


# --- One image ---------------------------------------------------------------------------------------------


def _look(backbone: Backbone, file: Path, index: int, config: TokensConfig, seed: int) -> _Looked:
    import torch.nn.functional as F

    rgb = np.asarray(read_rgb(file))
    rng = np.random.default_rng([seed, index])
    sides = [fit((side, side), backbone.patch_size, "nearest").size[0] for side in config.sizes]
    features = backbone.extract(_tensor([_square(rgb, sides[0])]), {"patches", "cls"})
    patches, cls = features.patches[0], features.cls[0]
    unit = F.normalize(patches, dim=0)
    stability = []
    for side in sides[1:]:
        larger = backbone.extract(_tensor([_square(rgb, side)])).patches
        resized = F.normalize(F.interpolate(larger, unit.shape[1:], mode="bilinear", antialias=True)[0], dim=0)
        stability.append(float((unit * resized).sum(0).mean()))
    views = [_square(_view(rgb, rng), sides[0]) for _ in range(config.views)]
    noise = rng.integers(0, 256, (sides[0], sides[0], 3), np.uint8)
    return _Looked(
        patches=patches.cpu().numpy(),
        norms=_norms(backbone, _square(rgb, sides[0])),
        cls_cosine=_cosine(cls, unit),
        stability=stability,
        views=_class_tokens(backbone, views, config),
        noise=backbone.extract(_tensor([noise])).patches[0].cpu().numpy(),
    )


def _cosine(cls: Tensor, unit: Tensor) -> Arrays | None:
    """Of a feature [D] with normalized patches [C, h, w]; None unless D = C (some conv nets widen the pooled one)."""
    import torch.nn.functional as F

    if len(cls) != len(unit):
        return None
    return (F.normalize(cls, dim=0) @ unit.flatten(1)).view(unit.shape[1:]).cpu().numpy()


def _norms(backbone: Backbone, square: Pixels) -> Arrays:
    """Norms of patch tokens of all layers [L, h, w] before the final norm; of the last alone where widths differ."""
    layers = range(backbone.depth) if backbone.uniform_width else [-1]
    patches = backbone.extract(_tensor([square]), layers=list(layers), norm=False).patches[0]
    return np.stack([part.norm(dim=0).cpu().numpy() for part in patches.chunk(len(layers))])


def _class_tokens(backbone: Backbone, views: Sequence[Pixels], config: TokensConfig) -> Arrays:
    from dino_dense.objects.maps_ahead import default_batch

    size = config.batch_size or default_batch(backbone)
    batches = (views[start : start + size] for start in range(0, len(views), size))
    return np.concatenate([backbone.extract(_tensor(batch), {"cls"}).cls.cpu().numpy() for batch in batches])


def _view(rgb: Pixels, rng: np.random.Generator) -> Pixels:
    """A random crop, mirrored or not."""
    share = np.sqrt(rng.uniform(0.3, 1.0))
    height, width = (max(1, round(side * share)) for side in rgb.shape[:2])
    top, left = rng.integers(0, rgb.shape[0] - height + 1), rng.integers(0, rgb.shape[1] - width + 1)
    crop = rgb[top : top + height, left : left + width]
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def _square(rgb: Pixels, side: int) -> Pixels:
    """RGB [side, side, 3], stretched: each position of the grid is the same part of every image."""
    shrinks = side < min(rgb.shape[:2])
    return np.asarray(
        cv2.resize(rgb, (side, side), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC), np.uint8
    )


def _tensor(squares: Sequence[Pixels]) -> Tensor:
    import torch

    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2)


# --- All images --------------------------------------------------------------------------------------------


def _patch_rank(patches: Tensor, seed: int) -> float:
    """RankMe of at most 25,600 patch tokens, drawn at random."""
    import torch

    from dino_dense.tokens import rank_me

    tokens = patches.movedim(1, -1).flatten(0, 2)
    drawn = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))[:RANK_TOKENS]
    return rank_me(tokens[drawn])


def _samples(images: Images, looked: Sequence[_Looked], outliers: npt.NDArray[np.bool_]) -> pd.DataFrame:
    import pandas as pd

    samples = pd.DataFrame(
        {
            "sample": [file.relative_to(images.root).as_posix() for file in images.items],
            "stability": [100 * float(np.mean(one.stability)) for one in looked],
            "outliers": 100 * outliers.mean((1, 2)),
        }
    )
    cosines = [one.cls_cosine for one in looked if one.cls_cosine is not None]
    return samples.assign(**{COSINE: [100 * float(one.mean()) for one in cosines]}) if cosines else samples


def _scores(samples: pd.DataFrame, further: dict[str, float]) -> tuple[Score, ...]:
    from dino_dense.report.samples import score_samples

    return tuple(
        Score(metric.name, further[metric.name], len(samples))
        if metric.name in further
        else score_samples(samples, metric.name)
        for metric in METRICS
        if metric.name in further or metric.name in samples
    )


def _layers(norms: Arrays, backbone: Backbone) -> pd.DataFrame:
    """A row a layer: norms before the final norm, outliers, how many sit on the border."""
    import pandas as pd
    import torch

    from dino_dense.tokens import high_norm_tokens

    border = np.ones(norms.shape[2:], bool)
    border[1:-1, 1:-1] = False
    rows = []
    for number, layer in enumerate(norms):
        high = high_norm_tokens(torch.from_numpy(layer)).numpy()
        rows.append(
            {
                "layer": number if len(norms) > 1 else backbone.depth - 1,
                "median norm": float(np.median(layer)),
                "largest norm": float(layer.max()),
                "outliers %": 100 * float(high.mean()),
                "norm of outliers / median": float(layer[high].mean() / np.median(layer)) if high.any() else np.nan,
                "outliers on the border %": 100 * float(high[:, border].sum() / high.sum()) if high.any() else np.nan,
                f"norm above {DINOV2_CUTOFF:g} %": 100 * float((layer > DINOV2_CUTOFF).mean()),
            }
        )
    return pd.DataFrame(rows)


def _sizes(looked: Sequence[_Looked], config: TokensConfig, patch: int) -> pd.DataFrame:
    """Stability against the first size, a row a further size."""
    import pandas as pd

    values = 100 * np.array([one.stability for one in looked])
    sides = [fit((side, side), patch, "nearest").size[0] for side in config.sizes]
    return pd.DataFrame({"size": sides[1:], "compared with": sides[0], "stability %": values.mean(0)})


def _definitions() -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(DEFINITIONS, columns=["metric", "unit", "definition", "source"])


def _note(backbone: Backbone, config: TokensConfig, patches: Tensor, looked: Sequence[_Looked]) -> str:
    count, _, height, width = patches.shape
    cosines = [one.cls_cosine for one in looked if one.cls_cosine is not None]
    spread = (
        f"{COSINE} has standard deviation {100 * float(np.stack(cosines).std()):.1f}"
        if cosines
        else f"No {COSINE}: the pooled feature and the patches have different numbers of channels"
    )
    few = " Position and LiDAR want 100 images or more." if count < 100 else ""
    return (
        f"{height}x{width} patches of {count} images; RankMe on {min(RANK_TOKENS, count * height * width)} patch "
        f"tokens, LiDAR on class tokens of {config.views} views an image. {spread}. "
        f"definitions.csv says what each is and where it is from.{few}"
    )


# --- Pictures ----------------------------------------------------------------------------------------------


def draw(images: Images, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """Norms by layer, where outliers sit over all images, and the images with most of them."""
    drawn: _Drawn = outcome.to_draw
    layers = outcome.tables["layers"].set_index("layer")
    figures.curves(folder / "norms.png", layers[["median norm", "largest norm", "outliers %"]], "layer")
    where = figures.heat(drawn.outliers.mean(0), (320, 320), low=0.0)
    figures.save(folder / "where.png", where)
    pictures = [
        Picture("norms.png", "Norms of patch tokens before the final norm, by layer, and the share of outliers"),
        Picture("where.png", "Where outliers sit: how often each position has one (dark: never)"),
    ]
    counts = drawn.outliers.sum((1, 2))
    for index in np.argsort(-counts, kind="stable")[:PICTURES].tolist():
        square = _square(np.asarray(read_rgb(images.items[index])), 320)
        over = figures.heat_over(square, drawn.norms[index])
        file = folder / "overlays" / f"{index:05d}.jpg"
        figures.save(file, np.hstack([square, over, _ringed(square, drawn.outliers[index])]))
        name = images.items[index].name
        pictures.append(Picture(f"overlays/{file.name}", f"{name}: norms, and its {counts[index]} outliers"))
    return tuple(pictures)


def _ringed(square: Pixels, outliers: npt.NDArray[np.bool_]) -> Pixels:
    """The image with a frame around each patch that is an outlier."""
    drawn = square.copy()
    cell = square.shape[0] / outliers.shape[0]
    for row, column in np.argwhere(outliers).tolist():
        start = (round(column * cell), round(row * cell))
        end = (round((column + 1) * cell) - 1, round((row + 1) * cell) - 1)
        cv2.rectangle(drawn, start, end, figures.WRONG, 2)
    return drawn


TASK = Task(
    name="tokens",
    summary="Patch tokens without labels: stability, outliers, effective rank, positional leakage.",
    source="RankMe, arXiv 2210.02885; LiDAR, arXiv 2312.04000; DINOv3, arXiv 2508.10104; the rest is ours.",
    config=TokensConfig,
    metrics=METRICS,
    open=open_images,
    measure=measure,
    draw=draw,
    smoke=TokensConfig(sizes=(96, 144), views=2, max_images=12),
    versions=versions("token measures"),
)

if __name__ == "__main__":
    command_line.run(lambda: main("tokens"))
