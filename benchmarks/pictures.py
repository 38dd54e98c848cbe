"""The picture of the README: `python -m benchmarks.pictures CHECKPOINT [--out FILE]`.

Principal components, a match, in-context segmentation and a carried mask of embedded data, with a network and with
random weights of its architecture.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from data.clips import open_clip
from data.davis import load_davis
from data.images import read_rgb
from data.sample import SampleData, sample_data
from dino_dense import Backbone, load_backbone
from dino_dense.maps import PcaColors, match_map, patch_maps
from dino_dense.neighbors.incontext import class_map, patch_histograms, soft_labels
from dino_dense.propagation.protocol import PropagationProtocol
from tasks.videos.clip_masks import carry_masks

DOCUMENT = Path(__file__).parents[1] / "docs" / "features.jpg"
SIDE = 224  # of the network's input, pixels; patches of 8, 14 and 16 divide it
LABELED = 40  # images in the memory
SHOWN = 2  # images of which the components are drawn
LATER = 20  # frame of the match and of the carried mask
Pixels = Any


def components(backbone: Backbone, sample: SampleData) -> list[Pixels]:
    """The three leading components of the tokens of some images, as colors."""
    images = [np.asarray(read_rgb(file)) for file in saliency_files(sample)[:SHOWN]]
    features = [patch_maps(backbone, image, resolution=SIDE) for image in images]
    colors = PcaColors.fit(features)
    return [part for image, feature in zip(images, features, strict=True) for part in (image, colors.colors(feature))]


def in_context(backbone: Backbone, sample: SampleData) -> list[Pixels]:
    """An image, and its object by the nearest patches of labeled images."""
    images, ids = map(torch.stack, zip(*(labeled(file) for file in saliency_files(sample)[: LABELED + 1]), strict=True))
    with torch.inference_mode():
        tokens = backbone.extract(images).patches.flatten(2).transpose(1, 2)  # [n, h*w, C]
    shares = patch_histograms(ids, backbone.patch_size, classes=2).flatten(1, 2)  # [n, h*w, 2]
    memory = F.normalize(tokens[:-1].flatten(0, 1), dim=1)
    labels = soft_labels(tokens[-1], memory, shares[:-1].flatten(0, 1), neighbors=30, temperature=0.02)
    grid = SIDE // backbone.patch_size
    predicted = class_map(labels.view(1, grid * grid, 2), (grid, grid), (SIDE, SIDE))[0]
    image = images[-1].permute(1, 2, 0).numpy()
    return [image, painted(image * 255, predicted.numpy())]


def match_and_mask(backbone: Backbone, sample: SampleData) -> list[Pixels]:
    """A frame with a point, the cosine of a later frame's patches with it, and the carried mask of the later frame."""
    video = load_davis(sample.davis)[0]
    later = min(LATER, len(video) - 1)
    first, last = video.read_frame(0), video.read_frame(later)
    rows, columns = np.nonzero(video.first_mask() == 1)
    point = int(columns[len(columns) // 2]), int(rows[len(rows) // 2])
    a, b = (patch_maps(backbone, frame, resolution=SIDE) for frame in (first, last))
    clip = open_clip(video.frames[0].parent, max_frames=later + 1)
    *_, (_, ids) = carry_masks(
        backbone, clip, {clip.frame_name(0): video.first_mask()}, PropagationProtocol(short_side=SIDE)
    )
    start = painted(first, video.first_mask())
    row, column = point[1], point[0]
    start[max(0, row - 6) : row + 7, max(0, column - 6) : column + 7] = (1, 0, 0)
    return [start, match_map(a, video.size, point, b).numpy(), painted(last, ids)]


def saliency_files(sample: SampleData) -> list[Path]:
    """The embedded images that have a mask."""
    return sorted((sample.saliency / "images").iterdir())


def labeled(file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Image [3, S, S] in [0, 1] and ids [S, S], 1 for the object."""
    mask_file = file.parents[1] / "masks" / f"{file.stem}.png"
    image = np.array(Image.open(file).convert("RGB").resize((SIDE, SIDE)))
    ids = np.array(Image.open(mask_file).convert("L").resize((SIDE, SIDE), Image.Resampling.NEAREST)) > 0
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255, torch.from_numpy(ids.astype(np.int64))


def painted(frame: Pixels, ids: Pixels) -> Pixels:
    """RGB [H, W, 3] in [0, 1], with each object in a color of its own."""
    colors = plt.get_cmap("tab10")(np.asarray(ids) % 10)[..., :3]
    picture = np.asarray(frame, np.float64) / 255
    return np.where(np.asarray(ids)[..., None] > 0, 0.4 * picture + 0.6 * colors, picture)


TITLES = (
    *(part for _ in range(SHOWN) for part in ("image", "components")),
    *("image", "in context", "first frame", "cosine to red point", "mask carried"),
)


def draw(backbones: dict[str, Backbone], out: Path) -> None:
    """Write the picture: a row for each network."""
    sample = sample_data()
    figure, axes = plt.subplots(len(backbones), len(TITLES), figsize=(1.6 * len(TITLES), 1.5 * len(backbones)))
    for row, (name, backbone) in zip(axes, backbones.items(), strict=True):
        parts = [*components(backbone, sample), *in_context(backbone, sample), *match_and_mask(backbone, sample)]
        for axis, part, title in zip(row, parts, TITLES, strict=True):
            axis.imshow(part)
            axis.set_title(title, fontsize=7)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(name, fontsize=8)
    figure.tight_layout(pad=0.4)
    figure.savefig(out, dpi=110, pil_kwargs={"quality": 82})


def main(words: Sequence[str]) -> int:
    """Draw. Returns the exit status."""
    if not words or words[0].startswith("-") or len(words) not in (1, 3):
        print(f"usage: {__doc__}", file=sys.stderr)
        return 2
    trained = load_backbone(words[0])
    architecture = trained.name.partition(".")[0]
    out = Path(words[2]) if len(words) == 3 else DOCUMENT
    draw({"trained": trained, "random": load_backbone(f"random:{architecture}")}, out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
