# SPDX-License-Identifier: Apache-2.0
"""What is in an epoch: rows, tokens, targets and lengths, of a mixture and of each of its data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from oumi.core.data.pipeline.mixture import Mixture, Part

_NUM_BINS = 12
_LONG_TAIL = 2.0
"""Times the 99th percentile; where the largest value lies beyond that, the last bin takes all above."""


@dataclass(frozen=True)
class Statistics:
    """What is drawn in an epoch."""

    lengths: npt.NDArray[np.int64]
    """Tokens of each row."""
    targets: npt.NDArray[np.int64]
    """Trained tokens of each row."""

    @property
    def num_rows(self) -> int:
        """Returns how many rows there are."""
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        """Returns the tokens of all rows."""
        return int(self.lengths.sum())

    @property
    def num_targets(self) -> int:
        """Returns the trained tokens of all rows."""
        return int(self.targets.sum())

    def to_dict(self) -> dict[str, Any]:
        """Returns the numbers as JSON values."""
        return {
            "rows": self.num_rows,
            "tokens": self.num_tokens,
            "targets": self.num_targets,
            "lengths": percentiles(self.lengths),
            "targets_per_row": percentiles(self.targets),
        }


@dataclass(frozen=True)
class Bin:
    """How many values lie from `low` to `high`; without `high`, from `low` up."""

    low: int
    high: int | None
    count: int


def describe(parts: Sequence[Part]) -> Statistics:
    """Returns what an epoch draws of data sets."""
    mixture = Mixture(parts)
    return Statistics(mixture.lengths(), mixture.targets())


def percentiles(values: npt.NDArray[np.int64]) -> dict[str, int]:
    """Returns the smallest value, the median, some high percentiles and the largest value."""
    if not len(values):
        return {}
    shares = {"min": 0, "p50": 50, "p90": 90, "p99": 99, "max": 100}
    found = np.percentile(values, list(shares.values()), method="nearest")
    return {name: int(value) for name, value in zip(shares, found, strict=True)}


def histogram(values: npt.NDArray[np.int64]) -> list[Bin]:
    """Returns bins of one width, which begin at round numbers; what lies far beyond the others shares the last."""
    if not len(values):
        return []
    low, high = int(values.min()), int(values.max())
    usual = int(np.percentile(values, 99, method="nearest"))
    has_tail = high > _LONG_TAIL * max(usual, 1)
    width = _round_width((usual if has_tail else high) - low + 1)
    first = low // width
    places = (values // width) - first
    last = usual // width - first + 1 if has_tail else high // width - first
    counts = np.bincount(np.minimum(places, last), minlength=last + 1).tolist()
    bins = [Bin((first + i) * width, (first + i + 1) * width - 1, count) for i, count in enumerate(counts)]
    return [*bins[:-1], Bin(bins[-1].low, None, bins[-1].count)] if has_tail else bins


def _round_width(span: int) -> int:
    """Returns the least of 1, 2, 5, 10, 20, 50... of which so many bins cover a span."""
    scale = 1
    while True:
        for step in (1, 2, 5):
            if span <= step * scale * (_NUM_BINS - 1):
                return step * scale
        scale *= 10
