"""Draw a backbone's attention, principal components and correspondence for images, folders and videos."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from data.clips import Clip, is_video, named, open_clip
from data.images import list_images, read_upright
from data.video import sampled_frames
from data.video_writer import VideoWriter
from dino_dense import Backbone, distributed
from dino_dense.arrays import Pixels
from dino_dense.config import command_line, schema
from dino_dense.maps import (
    MASS,
    RESOLUTION,
    PcaColors,
    attention_maps,
    mass_masks,
    patch_maps,
    patch_under,
    similarity,
)
from dino_dense.progress import tracked
from tasks.harness import figures
from tasks.harness.options import RunOptions
from tasks.harness.runner import open_backbone, seed_everything
from tasks.harness.task import Command

SUMMARY = "Draw attention, principal components and correspondence of images and videos."
FITTED = 32  # largest number of images or frames to fit colors on
Draw = Callable[[Pixels], dict[str, Pixels]]


@dataclass(frozen=True)
class AttentionConfig:
    """Input and pictures"""

    input: str | None = schema.path()
    """An image, a folder of images, or a video."""
    kind: Literal["attention", "pca", "match"] = "attention"
    """attention: of each head's class token; pca: three leading components of the patch tokens as colors, shared by all
    images of a folder or frames of a video; match: similarity of each patch to the patch at --query."""
    query: tuple[int, int] | None = None
    """For match: a pixel x,y of the input (of a video's first frame, of a folder's first image)."""
    target: str | None = schema.path()
    """For match: the image, folder or video to search; default: the input."""
    resolution: int = RESOLUTION
    """Short side of the network's input, pixels (DINO's visualize_attention.py: 480)."""
    mass: float = MASS
    """Share of a head's attention that its mask keeps (DINO: 0.6)."""
    every: int = 1
    """For a video: use every n-th frame."""
    max_frames: int | None = None
    """For a video: use at most this many frames."""

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise ValueError(f"resolution is {self.resolution}: expected 1 pixel or more")
        if not 0 < self.mass <= 1:
            raise ValueError(f"mass is {self.mass}: expected a number above 0, up to 1")
        if (self.kind == "match") != (self.query is not None):
            raise ValueError("--kind match needs --query x,y; no other kind takes it")
        if self.target is not None and self.kind != "match":
            raise ValueError("--target is for --kind match")


def attention_pictures(backbone: Backbone, config: AttentionConfig) -> Draw:
    """For each head: heat map, overlay and mask; also the mean of the heads, and a grid of all."""

    def draw(rgb: Pixels) -> dict[str, Pixels]:
        attention = attention_maps(backbone, rgb, config.resolution)
        size = (rgb.shape[0], rgb.shape[1])
        mean = figures.heat_over(rgb, attention.mean(dim=0).numpy(), low=0)
        pictures, tiles = {"mean": mean}, [("image", rgb), ("mean of the heads", mean)]
        for head, (values, mask) in enumerate(zip(attention.numpy(), mass_masks(attention, config.mass), strict=True)):
            over = figures.heat_over(rgb, values, low=0)
            masked = figures.overlay(rgb, figures.enlarge(mask.astype(np.uint8), size))
            pictures |= {f"head{head}_heat": figures.heat(values, size, low=0)}
            pictures |= {f"head{head}_over": over, f"head{head}_mask": masked}
            tiles += [(f"head {head}", over), (f"head {head}: {config.mass:.0%} of it", masked)]
        columns = 2 * round((len(tiles) / 2) ** 0.5)
        return {"attention_grid": figures.grid(tiles, columns), **pictures}

    return draw


def pca_pictures(backbone: Backbone, config: AttentionConfig, samples: Sequence[Pixels]) -> Draw:
    """Colors of the three leading components, fitted on the samples; alone and next to the image."""
    fitted = PcaColors.fit(patch_maps(backbone, rgb, config.resolution) for rgb in samples)

    def draw(rgb: Pixels) -> dict[str, Pixels]:
        colors = fitted.colors(patch_maps(backbone, rgb, config.resolution))
        pca = figures.enlarge(colors, (rgb.shape[0], rgb.shape[1]))
        return {"pca_grid": figures.grid([("image", rgb), ("components 1, 2, 3", pca)], 2), "pca": pca}

    return draw


def match_pictures(backbone: Backbone, config: AttentionConfig, source: Pixels) -> Draw:
    """Similarity of each patch to the query patch of the source image, next to the query."""
    assert config.query is not None
    features = patch_maps(backbone, source, config.resolution)
    grid = (features.shape[1], features.shape[2])
    row, column = patch_under(config.query, (source.shape[0], source.shape[1]), grid)
    query: Tensor = features[:, row, column]
    asked = figures.with_cross(source, config.query)

    def draw(rgb: Pixels) -> dict[str, Pixels]:
        alike = similarity(patch_maps(backbone, rgb, config.resolution), query).numpy()
        best = np.unravel_index(alike.argmax(), alike.shape)
        center = tuple(int((k + 0.5) * side / n) for k, side, n in zip(best, rgb.shape[:2], alike.shape, strict=True))
        over = figures.with_cross(figures.heat_over(rgb, alike), (center[1], center[0]))
        tiles = [("query", _fitted(asked, rgb)), (f"cosine {alike.min():.2f} to {alike.max():.2f}", over)]
        heat = figures.heat(alike, (rgb.shape[0], rgb.shape[1]))
        return {"match_grid": figures.grid(tiles, 2), "match_over": over, "match_heat": heat}

    return draw


def _fitted(rgb: Pixels, like: Pixels) -> Pixels:
    """An image scaled to fit the size of another, on white."""
    height, width = like.shape[:2]
    scale = min(height / rgb.shape[0], width / rgb.shape[1])
    inner = max(1, round(rgb.shape[0] * scale)), max(1, round(rgb.shape[1] * scale))
    out = np.full((height, width, 3), 255, np.uint8)
    out[: inner[0], : inner[1]] = figures.shrink(rgb, inner)
    return out


def run(backbone: Backbone, config: AttentionConfig, out: Path) -> list[Path]:
    """Write the pictures: OUT/NAME/KIND.png for an image, OUT/NAME_KIND.mp4 for a video. Returns their paths.

    Raises:
        FileNotFoundError, ValueError: the input, the query or the backbone cannot be used.
    """
    if config.input is None:
        raise ValueError("which image, folder or video? Give --input.")
    source = Path(config.input)
    target = Path(config.target or config.input)
    if config.kind == "attention":
        draw = attention_pictures(backbone, config)
    elif config.kind == "pca":
        draw = pca_pictures(backbone, config, _samples(source, FITTED, config))
    else:
        draw = match_pictures(backbone, config, _samples(source, 1, config)[0])
    if is_video(target):
        clip = open_clip(target, every=config.every, max_frames=config.max_frames)
        return _film(draw, clip, out, _films(config.kind))
    written = []
    images = _images(target)
    shared = Counter(path.with_suffix("") for path in images)
    for path in tracked(images, unit="image", desc=config.kind):
        name = path.relative_to(target) if target.is_dir() else Path(path.name)
        if shared[path.with_suffix("")] == 1:  # a.jpg and a.png get separate folders
            name = name.with_suffix("")
        written += [figures.save(out / name / f"{key}.png", rgb) for key, rgb in draw(read_upright(path)).items()]
    return written


def _films(kind: str) -> tuple[str, ...]:
    """The pictures that become videos; a video for each head would be too many."""
    return {"attention": ("mean",), "pca": ("pca",), "match": ("match_over",)}[kind] + (f"{kind}_grid",)


def _images(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such image, folder or video. Check the path.")
    return list_images(path) if path.is_dir() else [path]


def _samples(path: Path, count: int, config: AttentionConfig) -> list[Pixels]:
    """At most `count` evenly spaced images of a folder or frames of a video, including the first."""
    if is_video(path):
        whole = open_clip(path, every=config.every, max_frames=config.max_frames)
        step = -(-len(whole) // count)
        frames = open_clip(path, every=config.every * step, max_frames=-(-len(whole) // step))
        return [frame.rgb for frame in frames]
    images = _images(path)
    return [read_upright(images[index]) for index in sampled_frames(len(images), count=count)]


def _film(draw: Draw, clip: Clip, out: Path, keys: Sequence[str]) -> list[Path]:
    """Write a video for each of these pictures, with the frame times of the clip."""
    paths = {key: out / f"{clip.name}_{key}.mp4" for key in keys}
    writers: dict[str, VideoWriter] = {}
    with ExitStack() as stack:
        for frame in tracked(clip, unit="frame", desc=clip.name):
            pictures = draw(frame.rgb)
            for key in keys:
                if key not in writers:
                    size = (pictures[key].shape[0], pictures[key].shape[1])
                    writers[key] = stack.enter_context(VideoWriter(paths[key], size, clip.shown_rate))
                writers[key].add(pictures[key], frame.seconds)
    for note in filter(None, (writer.note for writer in writers.values())):
        print(note)
    return list(paths.values())


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m tasks.attention`: parse, draw, print the paths of the pictures. Returns the exit status."""
    options, config = command_line.parse(
        RunOptions, AttentionConfig, prog="python -m tasks.attention", description=SUMMARY, argv=argv
    )
    seed_everything(options.seed)
    out = Path(options.out) if options.out else Path("runs") / "attention" / named(config.input or ".").stem
    backbone = open_backbone(options, distributed.resolve_device(options.device))
    written = run(backbone, config, out)
    print(f"{len(written)} files in {out}, {written[0].relative_to(out)} the first of them")
    return 0


COMMAND = Command(name="attention", summary=SUMMARY, main=main)

if __name__ == "__main__":
    command_line.run(main)
