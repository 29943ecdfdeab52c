# SPDX-License-Identifier: Apache-2.0
"""In which order rows are trained: a pure function of (seed, epoch, position)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

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


class Table(Protocol):
    """Rows as tokens, of which any is found at once."""

    @property
    def highest_token(self) -> int:
        """Returns the largest token id, -1 if there are no rows."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def lengths(self) -> npt.NDArray[np.int64]:
        """Returns how many tokens each row has [R]."""
        ...

    def targets(self) -> npt.NDArray[np.int64]:
        """Returns how many tokens of each row are trained [R]."""
        ...


def draws_of(lengths: Sequence[int], proportions: Sequence[float] | None, strategy: str) -> list[int]:
    """Returns how many examples an epoch draws from each data set.

    Args:
        lengths: Examples of each.
        proportions: Their shares, which sum to 1; None takes all of each.
        strategy: `first_exhausted` ends the epoch when the first data set is used up; `all_exhausted` when the
            last one is, and repeats the others.
    """
    if proportions is None:
        return list(lengths)
    wanted = [(length, share) for length, share in zip(lengths, proportions, strict=True) if share > 0]
    sizes = [length / share for length, share in wanted]
    total = int(min(sizes) + 1e-9) if strategy == "first_exhausted" else int(np.ceil(max(sizes) - 1e-9))
    exact = [total * share for share in proportions]
    draws = [int(one + 1e-9) for one in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: (draws[i] - exact[i], i))
    for i in by_rest[: total - sum(draws)]:
        draws[i] += 1
    if strategy == "first_exhausted":
        return [min(draw, length) for draw, length in zip(draws, lengths, strict=True)]
    return [max(draw, length) if share else 0 for draw, length, share in zip(draws, lengths, proportions, strict=True)]


@dataclass(frozen=True)
class Part:
    """One data set of a mixture."""

    table: Table
    shuffle_seed: int | None
    """Not None: its rows are shuffled once, before they join the others."""
    draws: int | None = None
    """Examples of an epoch; more than there are repeat them, None takes each once."""

    def __len__(self) -> int:
        return len(self.table) if self.draws is None else self.draws

    def rows(self, draws: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Returns which row each draw takes; a data set that is used up begins anew, in another order if shuffled."""
        if self.shuffle_seed is None:
            return draws % len(self.table)
        rounds, places = np.divmod(draws, len(self.table))
        rows = np.empty_like(draws)
        for one in np.unique(rounds).tolist():
            rows[rounds == one] = permute(places[rounds == one], len(self.table), self.shuffle_seed, one)
        return rows


class Mixture:
    """Several tables of tokens as one, end to end: what an epoch draws."""

    def __init__(self, parts: Sequence[Part]) -> None:
        assert all(len(part.table) or not len(part) for part in parts), "nothing is drawn from nothing"
        self.parts = list(parts)
        self._ends = np.cumsum([len(part) for part in self.parts])

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.parts else 0

    def __getitem__(self, index: int) -> Example:
        which = int(np.searchsorted(self._ends, index, side="right"))
        part = self.parts[which]
        draw = index - (int(self._ends[which - 1]) if which else 0)
        return part.table[int(part.rows(np.array([draw]))[0])]

    def group(self, index: int) -> list[Example]:
        """Returns the examples that stand at one place of the epoch's order."""
        return [self[index]]

    def lengths(self) -> npt.NDArray[np.int64]:
        """Returns how many tokens each draw has."""
        return self._of_draws([part.table.lengths() for part in self.parts])

    def targets(self) -> npt.NDArray[np.int64]:
        """Returns how many tokens of each draw are trained."""
        return self._of_draws([part.table.targets() for part in self.parts])

    def _of_draws(self, facts: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
        drawn = [
            fact[part.rows(np.arange(len(part)))] for fact, part in zip(facts, self.parts, strict=True) if len(part)
        ]
        return np.concatenate([np.zeros(0, dtype=np.int64), *drawn])

    @property
    def highest_token(self) -> int:
        """Returns the largest token id, -1 if there are no rows."""
        return max((part.table.highest_token for part in self.parts if len(part)), default=-1)


class OneDocumentEach:
    """A mixture whose rows of several documents are taken apart, for trainers whose rows hold one each."""

    def __init__(self, mixture: Mixture) -> None:
        """Takes a mixture; each of its rows is looked at."""
        self.parts = mixture.parts
        self._mixture = mixture
        self._places = [(row, i) for row in range(len(mixture)) for i in range(len(mixture[row].starts))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Example:
        row, document = self._places[index]
        return self._mixture[row].documents()[document]

    def group(self, index: int) -> list[Example]:
        """Returns the one document that stands at a place."""
        return [self[index]]

    @property
    def highest_token(self) -> int:
        """Returns the largest token id, -1 if there are no rows."""
        return self._mixture.highest_token


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
