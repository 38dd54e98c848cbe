"""Cost of points beyond the features: tracks through a video, and correspondences of pairs of images.

The features themselves are random, of the sizes that ViT-S gives: the time of a product does not depend on them. What
the network takes for the same frames or images is timed on a few of them, and multiplied.
"""

import itertools
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.bench import Row, device, in_new_process, publish, seconds_of
from dino_dense import load_backbone
from dino_dense.matching.protocol import Rules
from dino_dense.matching.rules import match
from dino_dense.matching.track_protocol import SIDE, TrackingProtocol
from dino_dense.matching.tracks import cycle_distance, query_features, track_points

FRAMES, POINTS, PAIRS, KEYPOINTS = 100, 100, 100, 10
WIDTH, GRID = 384, TrackingProtocol().grid
TIMED = 5  # images whose features are timed
REPEATS = 3
LINEAR = 0.8
"""Smallest ratio of the time of a frame, or of a point, in the small and in the large work; 1 is exactly linear."""
IMAGE = (375, 500)  # height and width of a stored image, pixels (VOC's, of which SPair-71k is made)
SIDES: dict[Rules, int] = {"probe3d": 800, "dift": 768, "geoaware": 960}
"""Network inputs of patches of 16: 50, 48 and 60 a side (GeoAware-SC has 60 of 14)."""
PATCH = 16


# --- Tracking -----------------------------------------------------------------------------------------------


def video(frames: int) -> Tensor:
    """[T, D, g, g]"""
    return torch.randn(frames, WIDTH, GRID, GRID, generator=torch.Generator().manual_seed(0))


def track(features: Tensor, points: int) -> float:
    """Track points of the first frame, and judge which are hidden. Returns their mean position."""
    places = SIDE * torch.rand(points, 2, generator=torch.Generator().manual_seed(1))
    queries = torch.cat([torch.zeros(points, 1), places], dim=1)
    tracks, _ = track_points(features, query_features(features, queries, (SIDE, SIDE)), (SIDE, SIDE))
    hidden = cycle_distance(features, queries, tracks, (SIDE, SIDE)) > TrackingProtocol().cycle_radius
    return float(tracks.mean()) + float(hidden.float().mean())


def track_new(frames: int, points: int) -> float:
    """`track` on features that are made first."""
    return track(video(frames), points)


# --- Correspondence -----------------------------------------------------------------------------------------


def images(rules: Rules) -> list[Tensor]:
    """Features [D, g, g] of a few images; pairs are made of them in turn."""
    generator, side = torch.Generator().manual_seed(0), SIDES[rules] // PATCH
    return [torch.randn(WIDTH, side, side, generator=generator) for _ in range(4)]


def find(rules: Rules, maps: list[Tensor], pairs: int) -> float:
    """Find the keypoints of pairs. Returns the mean position."""
    rng = np.random.default_rng(0)
    means = []
    for source, target in itertools.islice(itertools.cycle(itertools.permutations(maps, 2)), pairs):
        points = rng.uniform(0, IMAGE[::-1], (KEYPOINTS, 2))
        matches = match(rules, (source, target), (IMAGE, IMAGE), points, points, 100.0, patch=PATCH)
        means.append(matches.predicted.mean())
    return float(np.mean(means))


def find_new(rules: Rules, pairs: int) -> float:
    """`find` on features that are made first."""
    return find(rules, images(rules), pairs)


# --- Rows ---------------------------------------------------------------------------------------------------


def network_seconds(side: int) -> float:
    """Seconds of ViT-S/16 for an image of `side` pixels a side, one at a time, fp32."""
    backbone = load_backbone("random:vit_small_patch16_224").to(device())
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    backbone.extract(image)
    return seconds_of(lambda: [backbone.extract(image) for _ in range(TIMED)]) / TIMED


def median_seconds(call: Callable[[], Any], repeats: int = REPEATS) -> float:
    """Of some calls."""
    return statistics.median(seconds_of(call) for _ in range(repeats))


def tracking_rows() -> list[Row]:
    """Seconds beside the network's, memory beside the features', linear in frames and points."""
    features = video(FRAMES)
    track(features, POINTS)  # not counted
    whole = median_seconds(lambda: track(features, POINTS))
    few_frames = median_seconds(lambda: track(features[: FRAMES // 4], POINTS))
    few_points = median_seconds(lambda: track(features, POINTS // 4))
    work = f"{POINTS} points through {FRAMES} frames of {GRID}x{GRID} patches, with the rule of hidden points"
    network = FRAMES * network_seconds(GRID * PATCH)
    note = f"plain: ViT-S/16 fp32 on the frames, {TIMED} timed"
    alone, tracked = in_new_process(video, FRAMES).mib, in_new_process(track_new, FRAMES, POINTS).mib
    return [
        Row("points", f"features (plain) and tracks (ours): {work}", network, whole, "s", note=note),
        Row("points", f"features (plain) and both (ours): {work}", alone, tracked, "MiB"),
        linear_row(f"a frame's time in {FRAMES // 4} and in {FRAMES} frames", few_frames, whole, FRAMES),
        linear_row(f"a point's time of {POINTS // 4} and of {POINTS} points", few_points, whole, POINTS),
    ]


def linear_row(work: str, few: float, whole: float, count: int) -> Row:
    """Seconds of one item, in a quarter of `count` items that take `few` seconds, and in all, that take `whole`."""
    return Row("points", work, 4 * few / count, whole / count, "s", LINEAR)


def correspondence_rows(rules: Rules) -> list[Row]:
    """Seconds beside the network's, memory, linear in pairs."""
    maps = images(rules)
    find(rules, maps, 1)  # not counted
    whole = median_seconds(lambda: find(rules, maps, PAIRS), repeats=1)  # the pixels of dift take a minute or more
    few = median_seconds(lambda: find(rules, maps, PAIRS // 4), repeats=1)
    work = f"{PAIRS} pairs, {KEYPOINTS} points each, {rules} at {SIDES[rules]} pixels"
    network = 2 * PAIRS * network_seconds(SIDES[rules])
    note = f"plain: ViT-S/16 fp32 on both images of each pair, {TIMED} timed"
    alone, with_rules = in_new_process(images, rules).mib, in_new_process(find_new, rules, PAIRS).mib
    return [
        Row("points", f"features (plain) and matches (ours): {work}", network, whole, "s", note=note),
        Row("points", f"features of 4 images (plain) and both (ours): {work}", alone, with_rules, "MiB"),
        linear_row(f"a pair's time of {PAIRS // 4} and of {PAIRS} pairs, {rules}", few, whole, PAIRS),
    ]


def main() -> list[Row]:
    rows = tracking_rows()
    for rules in SIDES:
        rows += correspondence_rows(rules)
    publish(rows)
    return rows


if __name__ == "__main__":
    main()
