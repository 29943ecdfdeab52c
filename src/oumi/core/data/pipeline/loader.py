# SPDX-License-Identifier: Apache-2.0
"""The micro-batches of each optimizer step; any step is found at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from oumi.core.batch import Batch, collate, empty_batch
from oumi.core.data.pipeline.mixture import permute
from oumi.core.plan.parts import StepsPlan
from oumi.core.types.example import Example

Item = TypeVar("Item")
Rows = TypeVar("Rows")
Collate = Callable[[Sequence[Example]], Batch]
"""Makes a batch of examples."""
_MOST_ORDERED = 1 << 20
"""Rows whose order is worked out to find the largest micro-batch."""
_STEPS_AHEAD = 2
"""Steps whose micro-batches are made while another one is trained."""


class Groups(Protocol):
    """The rows of an epoch, each of one example or several."""

    def __len__(self) -> int: ...

    def group(self, index: int) -> list[Example]:
        """Returns the examples of a row."""
        ...


class Loader:
    """Cuts the shuffled rows of each epoch into optimizer steps, and those into micro-batches.

    The last step of an epoch takes the rows that are left, so every row is trained once an epoch. Which rows a
    step trains does not depend on how many ranks there are; each takes its micro-batches of them in turn.
    """

    def __init__(self, rows: Groups, steps: StepsPlan, seed: int, rank: int = 0, collate: Collate = collate) -> None:
        """Takes the rows, how they are cut into steps, the seed of their order, whose part this is, and what joins."""
        assert steps.per_epoch is not None, "the plan knows the rows by now"
        self.rank = rank
        self.rows = rows
        self.steps = steps
        self.seed = seed
        self._per_epoch = steps.per_epoch
        self._collate = collate

    def from_step(self, step: int) -> Generator[list[Batch], None, None]:
        """Yields the micro-batches of step `step` (from 0), then of those after it, epoch after epoch."""
        steps = count(step)
        return read_ahead(lambda: self._batches_of(next(steps)))

    def _batches_of(self, step: int) -> list[Batch]:
        size, rows = self.steps.micro_batch_rows, self.rows_of(step)
        batches = [rows[a : a + size] for a in range(0, len(rows), size)]
        return [
            self._collate(_examples(self.rows, indices)) if indices else empty_batch()
            for indices in share_of(batches, self.rank, self.steps.world_size)
        ]

    def rows_of(self, step: int) -> list[int]:
        """Returns the rows that step `step` trains, in order."""
        epoch, step_of_epoch = divmod(step, self._per_epoch)
        first = step_of_epoch * self.steps.rows_per_step
        positions = np.arange(first, min(first + self.steps.rows_per_step, len(self.rows)))
        order: list[int] = permute(positions, len(self.rows), self.seed, epoch).tolist()
        return order

    def epoch(self, step: int) -> float:
        """Returns how many epochs lie behind after `step` steps."""
        return step / self._per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Returns True if an epoch is over after `step` steps."""
        return step % self._per_epoch == 0

    def state(self) -> dict[str, Any]:
        """Returns nothing: the number of the step tells its rows."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Does nothing: the number of the step tells its rows."""


def share_of(batches: Sequence[list[Rows]], rank: int, world_size: int) -> list[list[Rows]]:
    """Returns the batches of a rank, which takes them in turn with the others; each gets as many, the last empty."""
    num_missing = -len(batches) % world_size
    return [*batches, *([] for _ in range(num_missing))][rank::world_size]


def in_order(
    rows: Groups, batch_size: int, collate: Collate = collate, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Yields a rank's share of all rows once, in order, `batch_size` at a time."""
    places = range(len(rows))
    batches = [list(places[first : first + batch_size]) for first in range(0, len(rows), batch_size)]
    for indices in share_of(batches, rank, world_size):
        yield collate(_examples(rows, indices)) if indices else empty_batch()


def most_tokens(lengths: npt.NDArray[np.int64], steps: StepsPlan, seed: int) -> int:
    """Returns the tokens of the largest micro-batch of a run, or of the longest rows where its order is long.

    Args:
        lengths: Tokens of each row [R].
        steps: How the rows are cut.
        seed: Of their order.
    """
    num_rows, size = len(lengths), steps.micro_batch_rows
    assert steps.total is not None, "the plan knows the rows by now"
    places = steps.total * steps.rows_per_step
    if places > _MOST_ORDERED:
        return int(np.sort(lengths)[-size:].sum())
    most = 0
    for epoch in range(-(-steps.total // (steps.per_epoch or 1))):
        left = min(num_rows, places - epoch * (steps.per_epoch or 1) * steps.rows_per_step)
        order = permute(np.arange(left), num_rows, seed, epoch)
        most = max(most, int(np.add.reduceat(lengths[order], np.arange(0, left, size)).max()))
    return most


def read_ahead(make: Callable[[], Item]) -> Generator[Item, None, None]:
    """Yields what `make` returns, call after call; a thread makes the next ones meanwhile."""
    thread = ThreadPoolExecutor(1, "reads-ahead")
    waiting: deque[Future[Item]] = deque()
    try:
        while True:
            while len(waiting) < _STEPS_AHEAD:
                waiting.append(thread.submit(make))
            yield waiting.popleft().result()
    finally:
        thread.shutdown(wait=True, cancel_futures=True)


def _examples(rows: Groups, indices: Sequence[int]) -> list[Example]:
    return [example for i in indices for example in rows.group(i)]
