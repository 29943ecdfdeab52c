# SPDX-License-Identifier: Apache-2.0
"""Mixes and shuffles data sets. The order of the rows is a pure function of (seed, epoch, position)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from oumi.core.types.example import Example

_NUM_ROUNDS = 6
"""Rounds of the permutation. It decides the order of every run, so no constant of it may change."""
_MIN_HALF_BITS = 4
"""With fewer bits in each half, the permutations of a small data set are not random enough."""


def permute(positions: npt.NDArray[np.int64], length: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Returns the row at each position of an epoch, by a permutation of `range(length)` that is not stored.

    A Feistel network permutes the numbers below the next power of four; a result that is not below `length` is permuted
    again until it is ("cycle walking", Black and Rogaway 2002). So any step of any epoch is computed in the same time.

    Args:
        positions: Positions in the epoch [P], each in `range(length)`.
        length: Rows of an epoch.
        seed: Seed of the data.
        epoch: From 0.
    """
    half_bits = max(_MIN_HALF_BITS, (max(length - 1, 1).bit_length() + 1) // 2)
    # Hashed together: with seed + epoch, the second epoch would have the order of the next seed's first.
    keys = np.random.SeedSequence([seed, epoch]).generate_state(_NUM_ROUNDS, np.uint64)
    rows = _feistel(positions.astype(np.uint64), keys, half_bits)
    while (outside := rows >= length).any():
        rows[outside] = _feistel(rows[outside], keys, half_bits)
    return rows.astype(np.int64)


class Table(Protocol):
    """Rows as tokens, with random access."""

    @property
    def highest_token(self) -> int:
        """Returns the largest token id, -1 if there are no rows."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def lengths(self) -> npt.NDArray[np.int64]:
        """Returns the number of tokens of each row [R]."""
        ...

    def targets(self) -> npt.NDArray[np.int64]:
        """Returns the number of trained tokens of each row [R]."""
        ...


def draws_of(lengths: Sequence[int], proportions: Sequence[float] | None, strategy: str) -> list[int]:
    """Returns the number of examples that an epoch draws from each data set.

    Args:
        lengths: Examples of each data set.
        proportions: Their shares, which sum to 1; None draws each example once.
        strategy: `first_exhausted` ends the epoch when the first data set is used up; `all_exhausted` when the
            last one is, and repeats the others.
    """
    if proportions is None:
        return list(lengths)
    # Length of the epoch at which each data set would be used up.
    sizes = [length / share for length, share in zip(lengths, proportions, strict=True) if share > 0]
    # Without 1e-9, here and below, a rounding error would add or lose an example.
    total = int(min(sizes) + 1e-9) if strategy == "first_exhausted" else int(np.ceil(max(sizes) - 1e-9))
    exact = [total * share for share in proportions]
    draws = [int(count + 1e-9) for count in exact]
    # What rounding down has left goes to the largest remainders.
    by_remainder = sorted(range(len(exact)), key=lambda i: (draws[i] - exact[i], i))
    for i in by_remainder[: total - sum(draws)]:
        draws[i] += 1
    # Rounding up must not draw more than there is, nor rounding down leave something out.
    if strategy == "first_exhausted":
        return [min(draw, length) for draw, length in zip(draws, lengths, strict=True)]
    return [max(draw, length) if share else 0 for draw, length, share in zip(draws, lengths, proportions, strict=True)]


@dataclass(frozen=True)
class Part:
    """A data set of a mixture."""

    table: Table
    shuffle_seed: int | None
    """Seed with which its rows are shuffled before they are mixed, None for the order in which they are stored."""
    draws: int | None = None
    """Examples of an epoch, repeated if there are fewer; None for each once."""

    def __len__(self) -> int:
        return len(self.table) if self.draws is None else self.draws

    def rows(self, draws: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns the row of each draw [D]; a data set that is used up starts again, in another order if shuffled."""
        if self.shuffle_seed is None:
            return draws % len(self.table)
        rounds, positions = np.divmod(draws, len(self.table))
        rows = np.empty_like(draws)
        for i in np.unique(rounds).tolist():
            rows[rounds == i] = permute(positions[rounds == i], len(self.table), self.shuffle_seed, i)
        return rows


class Mixture:
    """The examples of an epoch: the draws from several tables, one table after the other."""

    def __init__(self, parts: Sequence[Part]) -> None:
        assert all(len(part.table) or not len(part) for part in parts), "an empty table has no draws"
        self.parts = list(parts)
        # Shuffled as a whole by the loader, so the tables need not be interleaved here.
        self._ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.parts else 0

    def __getitem__(self, index: int) -> Example:
        # "right": the index at which a part ends is in the next part that has draws.
        i = int(np.searchsorted(self._ends, index, side="right"))
        part = self.parts[i]
        draw = index - (int(self._ends[i - 1]) if i else 0)
        return part.table[int(part.rows(np.array([draw]))[0])]

    def group(self, index: int) -> list[Example]:
        """Returns the examples of a row: one."""
        return [self[index]]

    def lengths(self) -> npt.NDArray[np.int64]:
        """Returns the number of tokens of each draw [D]."""
        return self._by_draw([part.table.lengths() for part in self.parts])

    def targets(self) -> npt.NDArray[np.int64]:
        """Returns the number of trained tokens of each draw [D]."""
        return self._by_draw([part.table.targets() for part in self.parts])

    def _by_draw(self, values: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
        draws = [
            part_values[part.rows(np.arange(len(part)))]
            for part_values, part in zip(values, self.parts, strict=True)
            if len(part)
        ]
        return np.concatenate([np.zeros(0, dtype=np.int64), *draws])  # it needs an array even without parts

    @property
    def highest_token(self) -> int:
        """Returns the largest token id, -1 if there are no rows."""
        return max((part.table.highest_token for part in self.parts if len(part)), default=-1)


def _feistel(values: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64], half_bits: int) -> npt.NDArray[np.uint64]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    # A round only adds a function of one half to the other, so it can be undone: the whole is a permutation.
    for key in keys:
        # The function is the finalizer of splitmix64 (Steele et al. 2014). Products wrap around at 64 bits.
        mixed = right ^ key
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(31))) & mask)
    return (left << shift) | right
