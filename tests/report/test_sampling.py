"""Clusters are what is drawn: standard errors, intervals and verdicts, and how often these are wrong."""

import math
from itertools import product

import numpy as np
import pytest
from scipy import stats

from dino_dense.report import IntervalConfig
from dino_dense.report.sampling import (
    SMALL,
    Numbers,
    bootstrap,
    cluster_sums,
    compare_pairs,
    compare_sums,
    exchange_p_value,
    mean_ratio_value,
    mean_sums,
    mean_value,
    standard_error,
)

QUICK = IntervalConfig(bootstrap=600)


def videos(count: int, generator: np.random.Generator, most: int = 40) -> tuple[list[str], Numbers]:
    """Names of the video of each frame, and the correlated part of the frames' differences (most of them)."""
    lengths = generator.integers(10, most, count)
    names = [f"v{number:03d}" for number in range(count) for _ in range(lengths[number])]
    return names, np.repeat(generator.normal(0, 3, count), lengths) + generator.normal(0, 1, len(names))


@pytest.mark.parametrize("count", [3, 5, 10, 20, 60])
@pytest.mark.parametrize("kind", ["frames", "answers"])
def test_networks_that_do_not_differ_are_told_apart_by_chance_alone(count: int, kind: str):
    """Calibration: at 95 % confidence a verdict falls in 5 % of the trials, also with correlated frames."""
    trials, decided = 400, 0
    for trial in range(trials):
        generator = np.random.default_rng([count, trial])
        names, difference = videos(count, generator)
        if kind == "answers":  # right or wrong, one image a cluster
            names = [f"{number}" for number in range(count)]
            difference = 100 * (generator.random(count) < 0.5) - 100.0 * (generator.random(count) < 0.5)
        baseline = generator.normal(60, 20, len(names))
        sums = [mean_sums(values, names) for values in (baseline, baseline + difference)]
        decided += compare_sums(*sums, mean_value, IntervalConfig(bootstrap=400, seed=trial)).decided
    error = 4 * math.sqrt(0.05 * 0.95 * trials)
    assert decided <= 0.05 * trials + error
    if count <= 5:
        assert decided == 0  # too few to tell
    if count >= 10 and kind == "frames":  # of few answers many ways to exchange tie: fewer verdicts, not more
        assert decided >= 0.05 * trials - error


def test_frames_taken_for_independent_would_be_told_apart_most_of_the_time():
    """The same trials, each frame its own cluster: the fault that clusters mend."""
    decided = 0
    for trial in range(60):
        names, difference = videos(10, np.random.default_rng(trial))
        frames = [f"{name} {number}" for number, name in enumerate(names)]
        sums = [mean_sums(values, frames) for values in (np.zeros(len(names)), difference)]
        decided += compare_sums(*sums, mean_value, QUICK).decided
    assert decided > 30


@pytest.mark.parametrize("count", [8, 30])
def test_a_real_difference_is_found(count: int):
    generator = np.random.default_rng(0)
    names, difference = videos(count, generator)
    sums = [mean_sums(values, names) for values in (np.zeros(len(names)), difference + 6)]
    interval = compare_sums(*sums, mean_value, QUICK)
    assert interval.decided
    assert interval.low > 0
    assert interval.clusters == count


def test_the_interval_holds_a_real_difference_as_often_as_it_says():
    held, trials = 0, 200
    for trial in range(trials):
        names, noise = videos(25, np.random.default_rng(trial))
        sums = [mean_sums(values, names) for values in (np.zeros(len(names)), noise + 2)]
        interval = compare_sums(*sums, mean_value, IntervalConfig(bootstrap=500, seed=trial))
        held += interval.low <= 2 <= interval.high
    assert abs(held - 0.95 * trials) < 4 * math.sqrt(trials * 0.95 * 0.05)


def test_of_single_samples_the_error_is_the_classical_one():
    values = np.random.default_rng(1).normal(10, 3, 37)
    sums = mean_sums(values, [str(number) for number in range(37)])
    assert standard_error(sums, mean_value) == pytest.approx(values.std(ddof=1) / 37**0.5)
    assert standard_error(sums[:1], mean_value) is None


def test_a_frame_seen_twice_is_no_new_frame():
    values = np.random.default_rng(2).normal(10, 3, 12)
    once = mean_sums(values, [str(number) for number in range(12)])
    tenfold = mean_sums(np.tile(values, 10), [str(number) for number in range(12)] * 10)
    assert standard_error(tenfold, mean_value) == pytest.approx(standard_error(once, mean_value))


def test_the_jackknife_is_that_of_a_plain_loop():
    generator = np.random.default_rng(3)
    hits = generator.integers(0, 50, (9, 4)).astype(float)
    sums = np.concatenate([hits, hits + generator.integers(1, 50, (9, 4))], axis=1)
    left_out = []
    for number in range(9):
        rest = np.delete(sums, number, axis=0).sum(axis=0)
        left_out.append(np.mean([100 * rest[k] / rest[4 + k] for k in range(4)]))
    expected = math.sqrt(8 / 9 * sum((value - np.mean(left_out)) ** 2 for value in left_out))
    assert standard_error(sums, mean_ratio_value) == pytest.approx(expected)


def test_the_jackknife_of_miou_is_near_the_spread_of_other_draws_of_images():
    """What the spread between classes is not: classes differ much here, images little."""
    generator = np.random.default_rng(4)

    def draw(images: int) -> Numbers:
        unions = generator.integers(500, 1000, (images, 6)).astype(float)
        share = np.clip(np.linspace(0.1, 0.9, 6) + generator.normal(0, 0.05, (images, 6)), 0, 1)
        return np.concatenate([share * unions, unions], axis=1)

    spread = np.std([float(mean_ratio_value(draw(50).sum(axis=0))) for _ in range(300)])
    assert standard_error(draw(50), mean_ratio_value) == pytest.approx(spread, rel=0.35)
    assert spread < 1


def test_a_class_that_no_image_shows_is_not_counted():
    assert mean_ratio_value(np.array([3.0, 0.0, 6.0, 0.0])) == 50
    assert np.isnan(mean_ratio_value(np.zeros(4)))
    assert np.isnan(mean_value(np.zeros(2)))


def test_bootstrap_is_that_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch):
    sums = mean_sums(np.random.default_rng(5).normal(size=60), [str(number % 17) for number in range(60)])
    generator = np.random.default_rng(11)
    loop = [float(mean_value(sums[generator.integers(17, size=17)].sum(axis=0))) for _ in range(50)]
    np.testing.assert_allclose(bootstrap(sums, mean_value, 50, 11), loop, rtol=1e-12)
    monkeypatch.setattr("dino_dense.report.sampling.DRAWS_AT_ONCE", 40)  # two resamples at once
    np.testing.assert_allclose(bootstrap(sums, mean_value, 50, 11), loop, rtol=1e-12)


def test_few_clusters_have_students_interval():
    generator = np.random.default_rng(6)
    difference = generator.normal(1, 2, 9)
    names = [str(number) for number in range(9)]
    interval = compare_sums(mean_sums(np.zeros(9), names), mean_sums(difference, names), mean_value, QUICK)
    expected = stats.t.interval(0.95, 8, difference.mean(), stats.sem(difference))
    assert (interval.low, interval.high) == pytest.approx(expected)


def test_all_exchanges_are_those_of_a_plain_loop():
    difference = np.random.default_rng(7).normal(0.5, 1, 7)
    names = [str(number) for number in range(7)]
    means = [abs(np.mean(difference * signs)) for signs in product([1, -1], repeat=7)]
    expected = np.mean(np.array(means) >= abs(difference.mean()) - 1e-12)
    sums = mean_sums(np.zeros(7), names), mean_sums(difference, names)
    assert exchange_p_value(*sums, mean_value, IntervalConfig(bootstrap=128)) == pytest.approx(expected)
    drawn = exchange_p_value(*sums, mean_value, IntervalConfig(bootstrap=100))
    assert drawn == pytest.approx(expected, abs=0.2)


def test_equal_differences_of_a_few_samples_decide_nothing():
    """Three of three images right against wrong: no spread, and yet chance."""
    names = ["a", "b", "c"]
    sums = mean_sums(np.zeros(3), names), mean_sums(np.full(3, 100.0), names)
    interval = compare_sums(*sums, mean_value, QUICK)
    assert (interval.low, interval.high) == (100, 100)
    assert not interval.decided


def test_order_and_names_of_the_clusters_do_not_matter():
    generator = np.random.default_rng(8)
    names, difference = videos(SMALL + 5, generator)
    order = generator.permutation(len(names))
    there = cluster_sums(difference[:, None], names)
    back = cluster_sums(difference[order][:, None], [names[number] for number in order])
    np.testing.assert_allclose(there, back, rtol=1e-12)


def pairs_of_images(count: int, generator: np.random.Generator) -> tuple[list[str], list[str], Numbers]:
    """Both images of every pair of `count` images, and the pairs' differences: most of them are the images'."""
    first, second = np.triu_indices(count, 1)
    image = generator.normal(0, 3, count)
    names = [f"i{number:03d}" for number in range(count)]
    difference = image[first] + image[second] + generator.normal(0, 2, len(first))
    return [names[number] for number in first], [names[number] for number in second], difference


def verdict_of_pairs(count: int, trial: int, gain: float = 0.0) -> tuple[bool, bool]:
    """Whether networks are told apart by pairs: with both images as clusters, and with the first image alone."""
    first, second, difference = pairs_of_images(count, np.random.default_rng([count, trial]))
    rows = [np.stack([values, np.ones(len(values))], axis=1) for values in (0 * difference, difference + gain)]
    both = [cluster_sums(part, first, second) for part in rows]
    totals = rows[0].sum(axis=0), rows[1].sum(axis=0)
    config = IntervalConfig(bootstrap=200, seed=trial)
    one = [cluster_sums(part, first) for part in rows]
    return (
        compare_pairs(both[0], both[1], totals, mean_value, config).decided,
        compare_sums(one[0], one[1], mean_value, config).decided,
    )


@pytest.mark.parametrize("count", [5, 20, 40])
def test_pairs_that_share_images_are_not_independent(count: int):
    """Calibration: pairs depend on each other through both of their images."""
    trials = 300
    decided = np.array([verdict_of_pairs(count, trial) for trial in range(trials)]).sum(axis=0)
    error = 4 * math.sqrt(0.05 * 0.95 * trials)
    assert decided[0] <= 0.05 * trials + error
    assert decided[0] == 0 or count >= SMALL
    if count >= SMALL:
        assert decided[1] > 0.1 * trials, "the first image alone: the fault that the second cluster mends"
        assert verdict_of_pairs(count, 0, gain=10)[0]


def test_the_jackknife_of_pairs_is_that_of_a_plain_loop():
    first, second, difference = pairs_of_images(7, np.random.default_rng(9))
    first.append("i000")  # an image paired with itself counts once
    second.append("i000")
    values = np.append(difference, 4.0)
    names = sorted({*first, *second})
    left_out = [
        np.mean([v for v, a, b in zip(values, first, second, strict=True) if name not in (a, b)]) for name in names
    ]
    expected = math.sqrt(6 / 7 * sum((value - np.mean(left_out)) ** 2 for value in left_out))
    rows = np.stack([values, np.ones(len(values))], axis=1)
    error = standard_error(cluster_sums(rows, first, second), mean_value, rows.sum(axis=0))
    assert error == pytest.approx(expected)
