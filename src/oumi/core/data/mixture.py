# SPDX-License-Identifier: Apache-2.0
"""In which order rows are trained: a pure function of (seed, epoch, position)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oumi.core.data.tokens import TokenTable
from oumi.core.types.example import Example

_NUM_ROUNDS = 6
_MIN_HALF_BITS = 4
"""Halves of fewer bits would shuffle a small set badly."""


def permute(positions: npt.NDArray[np.int64], length: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Returns the row at each position of an epoch: a permutation of `range(length)`, found without a table.

    A Feistel network shuffles the next power of four; what falls outside is shuffled again until it falls
    inside ("cycle walking", Black and Rogaway 2002). So any step of any epoch is found in the same time.

    Args:
        positions: Places in the epoch [P], each in `range(length)`.
        length: Rows of an epoch.
        seed: Of the run's data.
        epoch: From 0.
    """
    half_bits = max(_MIN_HALF_BITS, (max(length - 1, 1).bit_length() + 1) // 2)
    keys = np.random.SeedSequence([seed, epoch]).generate_state(_NUM_ROUNDS, np.uint64)
    found = _feistel(positions.astype(np.uint64), keys, half_bits)
    while (outside := found >= length).any():
        found[outside] = _feistel(found[outside], keys, half_bits)
    return found.astype(np.int64)


@dataclass(frozen=True)
class Part:
    """One data set of a mixture."""

    table: TokenTable
    shuffle_seed: int | None
    """Not None: its rows are shuffled once, before they join the others."""


class Mixture:
    """Several tables of tokens as one, end to end."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        self._ends = np.cumsum([len(part.table) for part in self.parts])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.parts else 0

    def __getitem__(self, index: int) -> Example:
        which = int(np.searchsorted(self._ends, index, side="right"))
        part = self.parts[which]
        row = index - (int(self._ends[which - 1]) if which else 0)
        if part.shuffle_seed is not None:
            row = int(permute(np.array([row]), len(part.table), part.shuffle_seed, 0)[0])
        return part.table[row]

    def fingerprint(self) -> str:
        """Returns a digest of all rows and of the order in which they are joined."""
        parts = "".join(f"{part.table.fingerprint()} {part.shuffle_seed}\n" for part in self.parts)
        return hashlib.sha256(parts.encode()).hexdigest()


def _feistel(values: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64], half_bits: int) -> npt.NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_scramble(right ^ key) & mask)
    return (left << shift) | right


def _scramble(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Returns each value with its bits well mixed: the finaliser of splitmix64 (Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
