"""How often two networks that do not differ are called better or worse: `python -m benchmarks.calibration [--docs]`.

Each trial draws two networks without any difference. At 95 % confidence, 5 % of the verdicts may be wrong, or fewer if
the samples are few. With `--docs`, the table of docs/reliability.md is replaced.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.bench import write_between
from dino_dense.report import IntervalConfig
from dino_dense.report.sampling import (
    Numbers,
    cluster_sums,
    compare_pairs,
    compare_sums,
    mean_ratio_value,
    mean_sums,
    mean_value,
)

DOCUMENT = Path(__file__).parents[1] / "docs" / "reliability.md"
COUNTS = (3, 5, 10, 20, 60)
TRIALS = 1000
CLASSES = 6

Trial = Callable[[int, np.random.Generator, IntervalConfig], bool]
"""Clusters, random numbers and options -> whether there is a verdict."""


def frames(count: int, generator: np.random.Generator, *, by_video: bool) -> tuple[list[str], Numbers]:
    """Clusters of frames of `count` videos, 10 to 39 frames each, and the difference of each frame.

    Nine tenths of its variance are the video's.
    """
    lengths = generator.integers(10, 40, count)
    videos = np.repeat(np.arange(count), lengths)
    difference = np.repeat(generator.normal(0, 3, count), lengths) + generator.normal(0, 1, len(videos))
    names = videos if by_video else np.arange(len(videos))
    return [str(name) for name in names], difference


def by_video(count: int, generator: np.random.Generator, config: IntervalConfig) -> bool:
    """Correlated frames, resampled by video."""
    names, difference = frames(count, generator, by_video=True)
    return compare_sums(mean_sums(0 * difference, names), mean_sums(difference, names), mean_value, config).decided


def by_frame(count: int, generator: np.random.Generator, config: IntervalConfig) -> bool:
    """The same, as if frames were independent."""
    names, difference = frames(count, generator, by_video=False)
    return compare_sums(mean_sums(0 * difference, names), mean_sums(difference, names), mean_value, config).decided


def answers(count: int, generator: np.random.Generator, config: IntervalConfig) -> bool:
    """Right or wrong answers to independent images."""
    names = [str(number) for number in range(count)]
    first, second = (mean_sums(100.0 * (generator.random(count) < 0.5), names) for _ in range(2))
    return compare_sums(first, second, mean_value, config).decided


def mean_iou(count: int, generator: np.random.Generator, config: IntervalConfig) -> bool:
    """mIoU of a few classes, from hits and unions of each image."""
    unions = generator.integers(500, 1000, (count, CLASSES)).astype(float)
    first, second = (
        np.concatenate([np.clip(generator.normal(0.5, 0.1, unions.shape), 0, 1) * unions, unions], axis=1)
        for _ in range(2)
    )
    return compare_sums(first, second, mean_ratio_value, config).decided


def pairs(count: int, generator: np.random.Generator, config: IntervalConfig) -> bool:
    """All pairs of some images; a pair's difference is mostly that of its two images."""
    first, second = np.triu_indices(count, 1)
    image = generator.normal(0, 3, count)
    difference = image[first] + image[second] + generator.normal(0, 2, len(first))
    rows = [np.stack([values, np.ones(len(values))], axis=1) for values in (0 * difference, difference)]
    sums = [cluster_sums(part, [str(k) for k in first], [str(k) for k in second]) for part in rows]
    return compare_pairs(sums[0], sums[1], (rows[0].sum(axis=0), rows[1].sum(axis=0)), mean_value, config).decided


KINDS: dict[str, Trial] = {
    "frames of n videos, by video": by_video,
    "the same, by frame (wrong)": by_frame,
    "right or wrong, n images": answers,
    "mIoU of n images": mean_iou,
    "all pairs of n images": pairs,
}


def share(kind: str, count: int, trials: int = TRIALS) -> float:
    """Percent of the trials with a verdict."""
    verdicts = (
        KINDS[kind](count, np.random.default_rng([count, trial]), IntervalConfig(bootstrap=400, seed=trial))
        for trial in range(trials)
    )
    return 100 * sum(verdicts) / trials


def main() -> pd.DataFrame:
    """Percent of the verdicts, a row a kind of samples, a column a number of clusters."""
    rows = [{"samples": kind, **{f"n = {count}": round(share(kind, count), 1) for count in COUNTS}} for kind in KINDS]
    table = pd.DataFrame(rows)
    error = 100 * math.sqrt(0.05 * 0.95 / TRIALS)
    note = f"{TRIALS} trials for each number; the standard error of 5 % is {error:.1f}."
    text = f"{table.to_markdown(index=False)}\n\n{note}"
    print(text)
    if "--docs" in sys.argv[1:]:
        write_between(DOCUMENT, "calibration", text)
    return table


if __name__ == "__main__":
    main()
