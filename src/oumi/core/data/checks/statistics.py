# SPDX-License-Identifier: Apache-2.0
"""Computes statistics of an epoch: rows, tokens, targets and lengths of a mixture, or of one of its data sets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from oumi.core.data.pipeline.mixture import Mixture, Part

_NUM_BINS = 12
_LONG_TAIL = 2.0
"""If the largest value is more than this many times the 99th percentile, the last bin is open."""


@dataclass(frozen=True)
class Statistics:
    """Lengths and targets of the rows of an epoch."""

    lengths: npt.NDArray[np.int64]
    """Tokens of each row [R]."""
    targets: npt.NDArray[np.int64]
    """Trained tokens of each row [R]."""

    @property
    def num_rows(self) -> int:
        """Returns the number of rows."""
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Returns the number of tokens."""
        return int(self.lengths.sum())

    @property
    def num_targets(self) -> int:
        """Returns the number of trained tokens."""
        return int(self.targets.sum())

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            "rows": self.num_rows,
            "tokens": self.num_tokens,
            "targets": self.num_targets,
            "lengths": percentiles(self.lengths),
            "targets_per_row": percentiles(self.targets),
        }


@dataclass(frozen=True)
class Bin:
    """The number of values from `low` to `high`, both included; without `high`, of all from `low` up."""

    low: int
    high: int | None
    count: int


def describe(parts: Sequence[Part]) -> Statistics:
    """Returns the statistics of the rows that an epoch draws from data sets."""
    mixture = Mixture(parts)
    return Statistics(mixture.lengths(), mixture.targets())


def percentiles(values: npt.NDArray[np.int64]) -> dict[str, int]:
    """Returns the smallest value, the median, some high percentiles and the largest value."""
    if not len(values):
        return {}
    shares = {"min": 0, "p50": 50, "p90": 90, "p99": 99, "max": 100}
    # "nearest" returns values that occur, not means of two.
    results = np.percentile(values, list(shares.values()), method="nearest")
    return {name: int(value) for name, value in zip(shares, results, strict=True)}


def histogram(values: npt.NDArray[np.int64]) -> list[Bin]:
    """Returns bins of equal width that begin at round numbers; a long tail shares the last bin."""
    if not len(values):
        return []
    low, high = int(values.min()), int(values.max())
    # One very long row would otherwise put all others into the first bin.
    usual = int(np.percentile(values, 99, method="nearest"))
    has_tail = high > _LONG_TAIL * max(usual, 1)
    span = (usual if has_tail else high) - low + 1
    # The smallest of 1, 2, 5, 10, 20, 50... that is wide enough. One bin less, since the first may begin below `low`.
    widths = (step * 10**exponent for exponent in itertools.count() for step in (1, 2, 5))
    width = next(width for width in widths if span <= width * (_NUM_BINS - 1))
    first = low // width
    indices = (values // width) - first
    # The open bin comes after the one that contains the 99th percentile.
    last = usual // width - first + 1 if has_tail else high // width - first
    counts = np.bincount(np.minimum(indices, last), minlength=last + 1).tolist()
    bins = [Bin((first + i) * width, (first + i + 1) * width - 1, count) for i, count in enumerate(counts)]
    if has_tail:
        bins[-1] = replace(bins[-1], high=None)
    return bins
