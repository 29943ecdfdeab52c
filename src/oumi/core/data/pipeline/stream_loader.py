# SPDX-License-Identifier: Apache-2.0
"""Mixes streams, packs their examples, and cuts them into the micro-batches of each step.

`Mixture`, `Packed` and `Loader` do the same for tables: they permute a whole epoch, since they can read any row. A
stream reads only the next rows, so its order is another function of seed and position.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from torch import distributed

from oumi.core.batch import Batch, collate
from oumi.core.data.pipeline.balance import micro_batches_of_ranks
from oumi.core.data.pipeline.loader import Collate, batch_of, read_ahead
from oumi.core.data.pipeline.mismatch import rows_before
from oumi.core.data.pipeline.mixture import permute
from oumi.core.data.pipeline.packing import best_fit
from oumi.core.data.pipeline.stream import LimitedStream, State
from oumi.core.plan.parts import StepsPlan
from oumi.core.types.example import Example

_WINDOW = 1024
"""Examples that are packed together."""
_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: its multiples fill the circle more evenly than random numbers (Weyl 1916)."""


class MixedStream:
    """Examples of several data sets, epoch after epoch.

    The data set of a draw is a function of (seed, epoch, number of the draw), so that proportions are exact and do not
    depend on the number of ranks.
    """

    def __init__(
        self, parts: Sequence[LimitedStream], proportions: Sequence[float] | None, strategy: str, seed: int
    ) -> None:
        """Sets the data sets and how they are mixed.

        Args:
            parts: The data sets.
            proportions: Their shares, which sum to 1; None draws one data set after the other.
            strategy: `first_exhausted` ends an epoch when the first data set is used up; `all_exhausted` when the
                last one is, and repeats the others.
            seed: Seed of the draws.
        """
        self._parts = parts
        self._ends = None if proportions is None else np.cumsum(proportions)
        # Indices of the data sets that are drawn from.
        self._drawn = [i for i in range(len(parts)) if proportions is None or proportions[i] > 0]
        self._ends_with_first = strategy == "first_exhausted"
        self._seed = seed
        self.epoch = self._draw = 0
        self._used_up: set[int] = set()

    def next(self) -> Example:
        """Returns the next example; epochs follow each other without end."""
        while True:
            # Choose the data set of this draw.
            if self._ends is None:
                index = next(i for i in self._drawn if i not in self._used_up)
            else:
                # Each epoch starts at another place, so that the order of the draws differs.
                start = int(np.random.SeedSequence([self._seed, self.epoch]).generate_state(1, np.uint64)[0])
                place = (start + self._draw * _GOLDEN) % (1 << 64) / (1 << 64)
                # The shares may sum to a little less than 1.
                index = min(int(np.searchsorted(self._ends, place, "right")), self._drawn[-1])
            example = self._parts[index].next()
            if example is not None:
                self._draw += 1
                return example
            self._used_up.add(index)
            is_over = len(self._used_up) == len(self._drawn) or (self._ends is not None and self._ends_with_first)
            # The loop then repeats the draw, in the next epoch or after the data set has started again.
            if is_over:
                self.epoch, self._draw, self._used_up = self.epoch + 1, 0, set()
                for i in self._drawn:
                    self._parts[i].restart()
            # Without proportions, the next data set follows, and this one waits for the next epoch.
            elif self._ends is not None:
                self._parts[index].restart()

    def share(self, group: Any) -> None:
        """Tokenizes together with the other ranks of a process group from here on."""
        for part in self._parts:
            part.share(group)

    def next_group(self) -> list[Example]:
        """Returns the examples of the next row: one."""
        return [self.next()]

    def state(self) -> State:
        """Returns the epoch, the draw, and the state of each data set."""
        # Checkpoints contain these keys, so they must stay.
        return {
            "epoch": self.epoch,
            "draw": self._draw,
            "used_up": sorted(self._used_up),
            "parts": [part.state() for part in self._parts],
        }

    def restore(self, state: State) -> None:
        """Returns to the position of `state`."""
        self.epoch, self._draw, self._used_up = state["epoch"], state["draw"], set(state["used_up"])
        for part, part_state in zip(self._parts, state["parts"], strict=True):
            part.restore(part_state)


class PackedStream:
    """A mixture packed into rows of at most a fixed length, `_WINDOW` examples at a time."""

    def __init__(self, mixture: MixedStream, capacity: int, seed: int) -> None:
        """Sets the examples, the tokens of a row, and the seed of the order of the rows."""
        self._mixture = mixture
        self._capacity = capacity
        self._seed = seed
        self._window = -1
        self._state_before: State = {}
        """State of the mixture before the current window; empty before the first."""
        self._rows: list[list[Example]] = []
        self._row = 0
        self.num_rows = self.num_tokens = 0
        """Rows that were packed, and their tokens."""

    def share(self, group: Any) -> None:
        """Tokenizes together with the other ranks of a process group from here on."""
        self._mixture.share(group)

    @property
    def empty_share(self) -> float:
        """Returns the share of positions that would be padding if rows were of one length."""
        return 1 - self.num_tokens / (self.num_rows * self._capacity) if self.num_rows else 0.0

    def next_group(self) -> list[Example]:
        """Returns the examples of the next row."""
        if self._row == len(self._rows):
            self._fill(self._window + 1)
        self._row += 1
        return self._rows[self._row - 1]

    def state(self) -> State:
        """Returns the state before the current window, and how many of its rows are used."""
        return {
            # For `StreamLoader.epoch`, which reads it from the state of either kind of rows.
            "epoch": self._mixture.epoch,
            "mixture": self._state_before or self._mixture.state(),
            "number": self._window,
            "row": self._row,
            "filled": [self.num_rows, self.num_tokens],
        }

    def restore(self, state: State) -> None:
        """Returns to the position of `state`; the examples of one window are packed again."""
        self._mixture.restore(state["mixture"])
        self._window, self._state_before, self._rows, self._row = state["number"], {}, [], 0
        if self._window >= 0:
            self._fill(self._window)
            self._row = state["row"]
        self.num_rows, self.num_tokens = state["filled"]

    def _fill(self, window: int) -> None:
        # A window is packed as a whole, so its state is that of the mixture before it, and a number of rows.
        self._state_before, self._window = self._mixture.state(), window
        examples = [self._mixture.next() for _ in range(_WINDOW)]
        rows = best_fit([len(example.tokens) for example in examples], self._capacity)
        # Packing fills rows with the longest examples first; a step should see all lengths.
        order = permute(np.arange(len(rows)), len(rows), self._seed, window)
        self._rows = [[examples[i] for i in rows[place]] for place in order.tolist()]
        self._row = 0
        self.num_rows += len(rows)
        self.num_tokens += sum(len(example.tokens) for example in examples)


class StreamLoader:
    """Cuts the rows of a stream into optimizer steps and micro-batches, some steps ahead of the training.

    The rows of a step do not depend on the number of ranks: each rank reads all of them, tokenizes some, and takes its
    share by tokens.
    """

    def __init__(
        self, rows: MixedStream | PackedStream, steps: StepsPlan, rank: int = 0, collate: Collate = collate
    ) -> None:
        """Sets the rows, how they are cut into steps, the rank, and the function that joins examples into a batch."""
        self._rows = rows
        self._steps = steps
        self._rank = rank
        self._collate = collate
        if steps.world_size > 1 and distributed.is_initialized():
            rows.share(distributed.new_group(backend="gloo"))
        # The position of the training; the stream itself is some steps ahead.
        self._state = rows.state()

    def from_step(self, step: int) -> Generator[list[Batch], None, None]:
        """Yields the micro-batches of each step from the position of the stream, which must be before `step`."""
        # A call before this one has read some steps ahead of the last that it yielded.
        self._rows.restore(self._state)
        # The steps that are read ahead are the same on all ranks, which read them together.
        for batches, state in read_ahead(self._next_step, completes=self._steps.world_size > 1):
            self._state = state
            yield batches

    def epoch(self, step: int) -> float:
        """Returns the number of complete epochs before the position of the stream."""
        return float(self._state["epoch"])

    def ends_epoch(self, step: int) -> bool:
        """Returns False: the end of an epoch is not known in advance."""
        return False

    def state(self) -> State:
        """Returns the position after the last step that was yielded."""
        return self._state

    def restore(self, state: State) -> None:
        """Returns to the position of `state`."""
        self._state = state

    def _next_step(self) -> tuple[list[Batch], State]:
        size = self._steps.micro_batch_rows
        # All rows, those of the other ranks too: a stream cannot skip any.
        rows = [self._rows.next_group() for _ in range(self._steps.rows_per_step)]
        lengths = [sum(len(example.tokens) for example in row) for row in rows]
        before = rows_before(range(len(rows)))
        shares = micro_batches_of_ranks(range(len(rows)), lengths, size, self._steps.world_size)
        batches = [batch_of(rows.__getitem__, indices, self._collate, before) for indices in shares[self._rank]]
        return batches, self._rows.state()
