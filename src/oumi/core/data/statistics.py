# SPDX-License-Identifier: Apache-2.0
"""What is in a table of tokens: lengths, targets, repeated rows, and rows that two splits share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from oumi.core.data.mixture import Mixture

_NUM_BINS = 12
_MOST_NAMED = 10


@dataclass(frozen=True)
class Repeats:
    """Rows that are the same, token by token."""

    num_rows: int
    """Rows beyond the first of each kind."""
    named: tuple[str, ...]
    """The first of them, each with the row that it repeats."""


@dataclass(frozen=True)
class Statistics:
    """What a split holds."""

    num_rows: int
    num_tokens: int
    num_targets: int
    lengths: npt.NDArray[np.int64]
    """Tokens of each row."""
    targets: npt.NDArray[np.int64]
    """Trained tokens of each row."""
    repeats: Repeats
    digests: Mapping[bytes, str] = field(repr=False)
    """Where each different row stands first, by the digest of its tokens."""

    def to_dict(self) -> dict[str, Any]:
        """Returns the numbers as JSON values."""
        return {
            "rows": self.num_rows,
            "tokens": self.num_tokens,
            "targets": self.num_targets,
            "lengths": percentiles(self.lengths),
            "targets_per_row": percentiles(self.targets),
            "duplicates": {"rows": self.repeats.num_rows, "first": list(self.repeats.named)},
        }


def describe(mixture: Mixture) -> Statistics:
    """Returns what is in an epoch of a mixture; reads every row once."""
    lengths, targets = (np.zeros(len(mixture), dtype=np.int64) for _ in range(2))
    digests: dict[bytes, str] = {}
    named: list[str] = []
    num_repeats = 0
    for i in range(len(mixture)):
        example = mixture[i]
        lengths[i], targets[i] = len(example.tokens), int(example.is_target.sum())
        digest = hashlib.blake2b(example.tokens.tobytes(), digest_size=16).digest()
        if digest in digests:
            num_repeats += 1
            if len(named) < _MOST_NAMED:
                named.append(f"{example.source} repeats {digests[digest]}")
        else:
            digests[digest] = str(example.source)
    repeats = Repeats(num_repeats, tuple(named))
    return Statistics(len(mixture), int(lengths.sum()), int(targets.sum()), lengths, targets, repeats, digests)


def overlap(first: Statistics, second: Statistics) -> Repeats:
    """Returns the rows of the second split that are in the first one, too."""
    shared = [(place, first.digests[digest]) for digest, place in second.digests.items() if digest in first.digests]
    return Repeats(len(shared), tuple(f"{b} is also {a}" for b, a in shared[:_MOST_NAMED]))


def percentiles(values: npt.NDArray[np.int64]) -> dict[str, int]:
    """Returns the smallest value, the median, some high percentiles and the largest value."""
    if not len(values):
        return {}
    shares = {"min": 0, "p50": 50, "p90": 90, "p99": 99, "max": 100}
    return {name: int(np.percentile(values, share, method="nearest")) for name, share in shares.items()}


def histogram(values: npt.NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Returns bins of equal width as (first value, last value, how many)."""
    if not len(values):
        return []
    low, high = int(values.min()), int(values.max())
    width = max(1, -(-(high - low + 1) // _NUM_BINS))
    counts = np.bincount((values - low) // width)
    return [(low + i * width, min(low + (i + 1) * width - 1, high), int(count)) for i, count in enumerate(counts)]
