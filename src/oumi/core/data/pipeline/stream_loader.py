# SPDX-License-Identifier: Apache-2.0
"""Several streams as one: mixed, packed, and cut into the micro-batches of each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from oumi.core.batch import Batch, collate
from oumi.core.data.pipeline.loader import Collate, read_ahead
from oumi.core.data.pipeline.mixture import permute
from oumi.core.data.pipeline.packing import best_fit
from oumi.core.data.pipeline.stream import Limited, State
from oumi.core.plan.parts import StepsPlan
from oumi.core.types.example import Example

_WINDOW = 1024
"""Examples that are packed together."""
_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: its multiples fill the circle more evenly than random numbers (Weyl 1916)."""


class MixedStream:
    """Examples of several data sets, epoch after epoch.

    Which of them gives an example is a function of (seed, epoch, number of the draw), so that shares come out
    exactly and do not depend on how many ranks there are.
    """

    def __init__(self, parts: Sequence[Limited], proportions: Sequence[float] | None, strategy: str, seed: int) -> None:
        """Takes the data sets and how they are mixed.

        Args:
            parts: The data sets.
            proportions: Their shares; None takes one after the other.
            strategy: `first_exhausted` ends an epoch when the first data set is used up; `all_exhausted` when the
                last one is, and repeats the others.
            seed: Of the draws.
        """
        self._parts = parts
        self._ends = None if proportions is None else np.cumsum(proportions)
        self._drawn = [i for i in range(len(parts)) if proportions is None or proportions[i] > 0]
        self._ends_with_first = strategy == "first_exhausted"
        self._seed = seed
        self.epoch = self._draw = 0
        self._used_up: set[int] = set()

    def next(self) -> Example:
        """Returns the next example; there is always one."""
        while True:
            which = self._which()
            example = self._parts[which].next()
            if example is not None:
                self._draw += 1
                return example
            self._end(which)

    def state(self) -> State:
        """Returns the epoch, the draw, and where each data set stands."""
        return {
            "epoch": self.epoch,
            "draw": self._draw,
            "used_up": sorted(self._used_up),
            "parts": [one.state() for one in self._parts],
        }

    def restore(self, state: State) -> None:
        """Goes to where `state` was taken."""
        self.epoch, self._draw, self._used_up = state["epoch"], state["draw"], set(state["used_up"])
        for part, one in zip(self._parts, state["parts"], strict=True):
            part.restore(one)

    def _which(self) -> int:
        if self._ends is None:
            return next(i for i in self._drawn if i not in self._used_up)
        start = int(np.random.SeedSequence([self._seed, self.epoch]).generate_state(1, np.uint64)[0])
        place = (start + self._draw * _GOLDEN) % (1 << 64) / (1 << 64)
        return min(int(np.searchsorted(self._ends, place, "right")), self._drawn[-1])

    def _end(self, which: int) -> None:
        self._used_up.add(which)
        is_over = len(self._used_up) == len(self._drawn) or (self._ends is not None and self._ends_with_first)
        if is_over:
            self.epoch, self._draw, self._used_up = self.epoch + 1, 0, set()
        if is_over or self._ends is not None:
            for i in self._drawn if is_over else [which]:
                self._parts[i].restart()


class GroupStream(Protocol):
    """Rows of a stream, each of one example or several."""

    def next_group(self) -> list[Example]:
        """Returns the examples of the next row."""
        ...

    def state(self) -> State:
        """Returns where the stream stands."""
        ...

    def restore(self, state: State) -> None:
        """Goes to where `state` was taken."""
        ...


class SingleExamples:
    """A mixture of which each example is a row."""

    def __init__(self, mixture: MixedStream) -> None:
        self._mixture = mixture

    def next_group(self) -> list[Example]:
        """Returns the next example."""
        return [self._mixture.next()]

    def state(self) -> State:
        """Returns where the mixture stands."""
        return self._mixture.state()

    def restore(self, state: State) -> None:
        """Goes to where `state` was taken."""
        self._mixture.restore(state)


class PackedStream:
    """A mixture packed into rows of at most a fixed length: many examples at a time, so that they fit well."""

    def __init__(self, mixture: MixedStream, capacity: int, seed: int) -> None:
        """Takes the examples, the tokens of a row, and the seed of the order of the rows."""
        self._mixture = mixture
        self._capacity = capacity
        self._seed = seed
        self._number = -1
        self._rows: list[list[Example]] = []
        self._row = 0
        self._before: State = {}
        self.num_rows = self.num_tokens = 0
        """Rows that were filled, and their tokens."""

    @property
    def empty_share(self) -> float:
        """Returns the share of positions that would be padding if rows were of one length."""
        return 1 - self.num_tokens / (self.num_rows * self._capacity) if self.num_rows else 0.0

    def next_group(self) -> list[Example]:
        """Returns the examples of the next row."""
        if self._row == len(self._rows):
            self._fill(self._number + 1)
        self._row += 1
        return self._rows[self._row - 1]

    def state(self) -> State:
        """Returns where the examples begin that are packed together, and how many rows of them are used."""
        return {
            "epoch": self._mixture.epoch,
            "mixture": self._before or self._mixture.state(),
            "number": self._number,
            "row": self._row,
            "filled": [self.num_rows, self.num_tokens],
        }

    def restore(self, state: State) -> None:
        """Goes to where `state` was taken: packs the examples again in whose rows it stands."""
        self._mixture.restore(state["mixture"])
        self._number, self._before, self._rows, self._row = state["number"], {}, [], 0
        if self._number >= 0:
            self._fill(self._number)
            self._row = state["row"]
        self.num_rows, self.num_tokens = state["filled"]

    def _fill(self, number: int) -> None:
        self._before, self._number = self._mixture.state(), number
        examples = [self._mixture.next() for _ in range(_WINDOW)]
        rows = best_fit([len(one.tokens) for one in examples], self._capacity)
        order = permute(np.arange(len(rows)), len(rows), self._seed, number)
        self._rows = [[examples[i] for i in rows[place]] for place in order.tolist()]
        self._row = 0
        self.num_rows += len(rows)
        self.num_tokens += sum(len(one.tokens) for one in examples)


class StreamLoader:
    """Cuts the rows of a stream into optimizer steps, and those into micro-batches, while others are trained.

    Which rows a step trains does not depend on how many ranks there are: each reads all, and takes its
    micro-batches of them in turn.
    """

    def __init__(self, rows: GroupStream, steps: StepsPlan, rank: int = 0, collate: Collate = collate) -> None:
        """Takes the rows, how they are cut into steps, whose part this is, and what makes batches of examples."""
        self._rows = rows
        self._steps = steps
        self._rank = rank
        self._collate = collate
        self._state = rows.state()

    def from_step(self, step: int) -> Iterator[list[Batch]]:
        """Yields the micro-batches of each step from where the stream stands, which is before step `step`."""
        self._rows.restore(self._state)
        for batches, state in read_ahead(self._make):
            self._state = state
            yield batches

    def epoch(self, step: int) -> float:
        """Returns how many times all rows were read before where the stream stands."""
        return float(self._state["epoch"])

    def ends_epoch(self, step: int) -> bool:
        """Returns False: how long an epoch is is not known before it ends."""
        return False

    def state(self) -> State:
        """Returns where the stream stands after the step whose micro-batches were given last."""
        return self._state

    def restore(self, state: State) -> None:
        """Goes to where `state` was taken."""
        self._state = state

    def _make(self) -> tuple[list[Batch], State]:
        size = self._steps.micro_batch_rows
        rows = [self._rows.next_group() for _ in range(self._steps.rows_per_step)]
        parts = [rows[at : at + size] for at in range(0, len(rows), size)]
        mine = parts[self._rank :: self._steps.world_size]
        return [self._collate([one for row in part for one in row]) for part in mine], self._rows.state()
