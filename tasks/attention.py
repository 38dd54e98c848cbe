"""Look at what a backbone sees: attention, principal components, correspondence, of images, folders and videos."""

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

SUMMARY = "Look: attention, principal components, correspondence, of images and videos."
FITTED = 32  # images or frames that colors are fitted on, at most
Look = Callable[[Pixels], dict[str, Pixels]]


@dataclass(frozen=True)
class AttentionConfig:
    """What to look at, and how"""

    input: str | None = schema.path()
    """An image, a folder of images, or a video."""
    kind: Literal["attention", "pca", "match"] = "attention"
    """attention: of the class token, each head's; pca: three leading components of the patch tokens as colors, shared
    by all images of a folder or frames of a video; match: how like each patch is to the one at --query."""
    query: tuple[int, int] | None = None
    """Of match: a pixel x,y of the input (of a video's first frame, of a folder's first image)."""
    target: str | None = schema.path()
    """Of match: the image, folder or video that is searched; without it, the input itself."""
    resolution: int = RESOLUTION
    """Short side that the network sees, pixels (DINO's visualize_attention.py: 480)."""
    mass: float = MASS
    """Share of a head's attention that its mask keeps (DINO: 0.6)."""
    every: int = 1
    """Of a video, only every n-th frame."""
    max_frames: int | None = None
    """Of a video, at most this many frames."""

    def __post_init__(self) -> None:
        if self.resolution < 1:
            raise ValueError(f"resolution is {self.resolution}: expected 1 pixel or more")
        if not 0 < self.mass <= 1:
            raise ValueError(f"mass is {self.mass}: expected a number above 0, up to 1")
        if (self.kind == "match") != (self.query is not None):
            raise ValueError("--kind match needs --query x,y, which no other kind takes")
        if self.target is not None and self.kind != "match":
            raise ValueError("--target is for --kind match")


def attention_look(backbone: Backbone, config: AttentionConfig) -> Look:
    """Of each head: heat map, over the image, mask; over all: mean, and a grid of everything."""

    def look(rgb: Pixels) -> dict[str, Pixels]:
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

    return look


def pca_look(backbone: Backbone, config: AttentionConfig, samples: Sequence[Pixels]) -> Look:
    """Colors of the three leading components, fitted on the samples; and beside the image."""
    fitted = PcaColors.fit(patch_maps(backbone, rgb, config.resolution) for rgb in samples)

    def look(rgb: Pixels) -> dict[str, Pixels]:
        colors = fitted.colors(patch_maps(backbone, rgb, config.resolution))
        pca = figures.enlarge(colors, (rgb.shape[0], rgb.shape[1]))
        return {"pca_grid": figures.grid([("image", rgb), ("components 1, 2, 3", pca)], 2), "pca": pca}

    return look


def match_look(backbone: Backbone, config: AttentionConfig, source: Pixels) -> Look:
    """How like each patch is to that of the source image under the query; beside it, the query."""
    assert config.query is not None
    features = patch_maps(backbone, source, config.resolution)
    grid = (features.shape[1], features.shape[2])
    row, column = patch_under(config.query, (source.shape[0], source.shape[1]), grid)
    query: Tensor = features[:, row, column]
    asked = figures.marked(source, config.query)

    def look(rgb: Pixels) -> dict[str, Pixels]:
        alike = similarity(patch_maps(backbone, rgb, config.resolution), query).numpy()
        best = np.unravel_index(alike.argmax(), alike.shape)
        place = tuple(int((k + 0.5) * side / n) for k, side, n in zip(best, rgb.shape[:2], alike.shape, strict=True))
        over = figures.marked(figures.heat_over(rgb, alike), (place[1], place[0]))
        tiles = [("query", _fitted(asked, rgb)), (f"cosine {alike.min():.2f} to {alike.max():.2f}", over)]
        heat = figures.heat(alike, (rgb.shape[0], rgb.shape[1]))
        return {"match_grid": figures.grid(tiles, 2), "match_over": over, "match_heat": heat}

    return look


def _fitted(rgb: Pixels, like: Pixels) -> Pixels:
    """An image on white at the size of another, for a grid of one size."""
    height, width = like.shape[:2]
    scale = min(height / rgb.shape[0], width / rgb.shape[1])
    inner = max(1, round(rgb.shape[0] * scale)), max(1, round(rgb.shape[1] * scale))
    out = np.full((height, width, 3), 255, np.uint8)
    out[: inner[0], : inner[1]] = figures.shrink(rgb, inner)
    return out


def run(backbone: Backbone, config: AttentionConfig, out: Path) -> list[Path]:
    """Make the pictures (OUT/NAME/KIND.png of an image, OUT/NAME_KIND.mp4 of a video); their paths.

    Raises:
        FileNotFoundError, ValueError: the input, the query or the backbone cannot be used.
    """
    if config.input is None:
        raise ValueError("which image, folder or video? Give --input.")
    source = Path(config.input)
    target = Path(config.target or config.input)
    if config.kind == "attention":
        look = attention_look(backbone, config)
    elif config.kind == "pca":
        look = pca_look(backbone, config, _samples(source, FITTED, config))
    else:
        look = match_look(backbone, config, _samples(source, 1, config)[0])
    if is_video(target):
        clip = open_clip(target, every=config.every, max_frames=config.max_frames)
        return _film(look, clip, out, _films(config.kind))
    written = []
    images = _images(target)
    shared = Counter(path.with_suffix("") for path in images)
    for path in tracked(images, unit="image", desc=config.kind):
        name = path.relative_to(target) if target.is_dir() else Path(path.name)
        if shared[path.with_suffix("")] == 1:  # a.jpg and a.png have each a folder of their own
            name = name.with_suffix("")
        written += [figures.save(out / name / f"{key}.png", rgb) for key, rgb in look(read_upright(path)).items()]
    return written


def _films(kind: str) -> tuple[str, ...]:
    """Which pictures become videos: a video a head would be too many."""
    return {"attention": ("mean",), "pca": ("pca",), "match": ("match_over",)}[kind] + (f"{kind}_grid",)


def _images(path: Path) -> list[Path]:
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such image, folder or video. Check the path.")
    return list_images(path) if path.is_dir() else [path]


def _samples(path: Path, count: int, config: AttentionConfig) -> list[Pixels]:
    """At most `count` images of a folder or frames of a video, evenly spaced, the first among them."""
    if is_video(path):
        whole = open_clip(path, every=config.every, max_frames=config.max_frames)
        step = -(-len(whole) // count)
        frames = open_clip(path, every=config.every * step, max_frames=-(-len(whole) // step))
        return [frame.rgb for frame in frames]
    images = _images(path)
    return [read_upright(images[place]) for place in sampled_frames(len(images), count=count)]


def _film(look: Look, clip: Clip, out: Path, keys: Sequence[str]) -> list[Path]:
    """A video of each of these pictures, frame after frame, with the times of the clip."""
    paths = {key: out / f"{clip.name}_{key}.mp4" for key in keys}
    writers: dict[str, VideoWriter] = {}
    with ExitStack() as stack:
        for frame in tracked(clip, unit="frame", desc=clip.name):
            pictures = look(frame.rgb)
            for key in keys:
                if key not in writers:
                    size = (pictures[key].shape[0], pictures[key].shape[1])
                    writers[key] = stack.enter_context(VideoWriter(paths[key], size, clip.shown_rate))
                writers[key].add(pictures[key], frame.seconds)
    for note in filter(None, (writer.note for writer in writers.values())):
        print(note)
    return list(paths.values())


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m tasks.attention`: parse, look, say where the pictures are. The exit status."""
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
