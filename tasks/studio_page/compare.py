"""Two checkpoints side by side, on the same frame, click and marks."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.masks import read_ids
from dino_dense.arrays import Pixels
from dino_dense.maps import grow
from tasks.harness import figures
from tasks.studio_page.live import Live
from tasks.studio_page.opened import OpenClip
from tasks.studio_page.scene import Studio

NAMES = ("A", "B")


@dataclass(frozen=True)
class Comparison:
    """Pictures RGB with the result of A on the left, of B on the right."""

    regions: Pixels
    components: Pixels
    matches: Pixels | None
    """None without another image."""
    said: str


def compare(
    studio: Studio, scene: OpenClip, other: OpenClip | None, point: tuple[int, int], likeness: float
) -> Comparison:
    """Both checkpoints on the frame on view: the region of a clicked pixel (x, y), leading components, its match.

    Args:
        other: the image of the match, if there is one.
        likeness: threshold of the region.

    Raises:
        ValueError: the pixel is not in the image.
    """
    regions, components, matches, said = [], [], [], []
    for number, name in enumerate(NAMES):
        features = studio.features(scene, number)
        region = grow(features, scene.clip.size, point, likeness)
        overlay = figures.overlay(scene.frame, np.asarray(region, np.uint8))
        regions.append((f"{name}: region", figures.with_cross(overlay, point)))
        components.append((f"{name}: PCA", studio.pca(scene, number)))
        words = (
            f"{name}: {features.shape[1]}x{features.shape[2]} patches, region {100 * region.mean():.1f} % of the frame"
        )
        if other is not None:
            _, there, cosine = studio.match(scene, other, point, number)
            matches.append((f"{name}: match", there))
            words += f", match with cosine {cosine:.2f}"
        said.append(words)
    return Comparison(
        figures.grid(regions, 2),
        figures.grid(components, 2),
        figures.grid(matches, 2) if matches else None,
        ". ".join(said) + ".",
    )


def run_both(studio: Studio, scene: OpenClip, every: int, live: Live) -> tuple[Path, Path, str]:
    """Propagate the marks through both checkpoints. Returns both overlays (mp4), and their agreement in words.

    Raises:
        ValueError, StoppedError: as `Studio.run`.
    """
    films = []
    for number in range(len(NAMES)):
        films.append(studio.run(scene, every, live, number)[0])
    share = agreement(films[0].parent / "masks", films[1].parent / "masks")
    return (
        films[0],
        films[1],
        f"Mean IoU between the masks of A and of B: {100 * share:.1f} %. It says nothing of quality.",
    )


def agreement(one: Path, two: Path) -> float:
    """Mean IoU of the objects of two folders of masks with the same names, over frames and objects; 1 without objects.

    An object that is in neither mask of a frame is not counted there.
    """
    shares = []
    for path in sorted(one.glob("*.png")):
        first, second = read_ids(path), read_ids(two / path.name)
        for identity in sorted(set(np.unique(first)) | set(np.unique(second))):
            if identity > 0:
                a, b = first == identity, second == identity
                shares.append(float((a & b).sum() / (a | b).sum()))
    return float(np.mean(shares)) if shares else 1.0
