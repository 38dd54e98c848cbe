"""Queries of one landmark are one draw."""

import numpy as np
import pytest

from tasks.scores.retrieval import first_relatives


@pytest.mark.parametrize(
    ("positives", "expected"),
    [
        ([[1, 2], [3], [2, 5]], [0, 1, 0]),
        ([[1], [2], [1, 2]], [0, 0, 0]),  # the third joins the first two
        ([[4], [], [], [4]], [0, 1, 2, 0]),  # no positive: a landmark of its own
        ([[1], [2], [3]], [0, 1, 2]),
        ([], []),
    ],
)
def test_queries_that_share_a_positive_are_of_one_group(positives: list[list[int]], expected: list[int]):
    assert first_relatives([np.array(found, np.int64) for found in positives], 6) == expected


def test_groups_are_those_of_a_plain_search():
    generator = np.random.default_rng(0)
    positives = [generator.choice(60, size=generator.integers(0, 4), replace=False) for _ in range(40)]
    groups = list(range(40))
    for _ in range(40):
        for a in range(40):
            for b in range(40):
                if set(positives[a]) & set(positives[b]):
                    groups[a] = groups[b] = min(groups[a], groups[b])
    assert first_relatives(positives, 60) == groups
