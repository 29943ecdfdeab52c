# SPDX-License-Identifier: Apache-2.0
"""Bins hold every value once, and begin at round numbers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from oumi.core.data.checks.statistics import histogram, percentiles


@given(st.lists(st.integers(0, 100_000), max_size=60))
def test_every_value_is_in_one_bin(values: list[int]) -> None:
    bins = histogram(np.array(values, dtype=np.int64))
    assert len(bins) <= 14
    for each in bins:
        assert each.count == sum(each.low <= value and (each.high is None or value <= each.high) for value in values)
    assert sum(each.count for each in bins) == len(values)
    assert all(a.high is not None and a.high + 1 == b.low for a, b in pairwise(bins))


def test_bins_are_of_a_round_width() -> None:
    assert [(each.low, each.high) for each in histogram(np.array([13, 97]))][:2] == [(10, 19), (20, 29)]


def test_a_far_value_shares_the_last_bin() -> None:
    bins = histogram(np.array([*range(1000), 1_000_000]))
    assert bins[-1].high is None
    assert bins[-1].count < 101
    assert len(bins) > 8


def test_percentiles_are_values_that_there_are() -> None:
    assert percentiles(np.array([1, 2, 3, 4, 100])) == {"min": 1, "p50": 3, "p90": 100, "p99": 100, "max": 100}
    assert percentiles(np.zeros(0, dtype=np.int64)) == {}
