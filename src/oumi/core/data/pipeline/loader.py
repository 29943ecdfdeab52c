# SPDX-License-Identifier: Apache-2.0
"""Cuts an epoch into optimizer steps and micro-batches, with random access to any step."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from itertools import count
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from oumi.core.batch import Batch, collate, empty_batch
from oumi.core.data.pipeline.balance import micro_batches_of_ranks
from oumi.core.data.pipeline.mismatch import MismatchCollator, rows_before
from oumi.core.data.pipeline.mixture import Mixture, permute
from oumi.core.data.pipeline.packing import Packed
from oumi.core.plan.parts import StepsPlan
from oumi.core.types.example import Example

Item = TypeVar("Item")
Rows = TypeVar("Rows")
Epoch = Mixture | Packed
"""The rows of an epoch, each with one or more examples."""
Collate = Callable[[Sequence[Example]], Batch]
"""Returns examples as one batch."""
_MAX_ORDERED = 1 << 20
"""Rows of a run up to which `most_tokens` computes their order."""
_MAX_ORDERED_EPOCHS = 100
"""Epochs up to which it does: the order of one takes milliseconds, however few rows it has."""
_STEPS_AHEAD = 2
"""Steps that are read while another one is trained."""


class Loader:
    """Cuts the shuffled rows of each epoch into optimizer steps, and those into micro-batches.

    The last step of an epoch takes the rows that are left, so every row is trained once per epoch. The rows of a step
    do not depend on the number of ranks, which divide them by their tokens.
    """

    def __init__(self, rows: Epoch, steps: StepsPlan, seed: int, rank: int = 0, collate: Collate = collate) -> None:
        """Sets the rows, how they are cut into steps, the seed of their order, the rank, and the collate function."""
        assert steps.per_epoch is not None, "the plan has the number of rows"
        self.rank = rank
        self.rows = rows
        self.steps = steps
        self.seed = seed
        self._per_epoch = steps.per_epoch
        self._collate = collate

    def from_step(self, step: int) -> Generator[list[Batch], None, None]:
        """Yields this rank's micro-batches of step `step` (from 0), then of those after it, epoch after epoch."""
        steps = count(step)

        def next_step() -> list[Batch]:
            size, rows = self.steps.micro_batch_rows, self.rows_of(next(steps))
            shares = micro_batches_of_ranks(rows, self._lengths[rows].tolist(), size, self.steps.world_size)
            before = rows_before(rows)
            return [batch_of(self.rows.group, indices, self._collate, before) for indices in shares[self.rank]]

        return read_ahead(next_step)

    @cached_property
    def _lengths(self) -> npt.NDArray[np.int64]:
        """Returns the tokens of each row [R]; a single rank does not read them, which may not be known yet."""
        return self.rows.lengths() if self.steps.world_size > 1 else np.zeros(len(self.rows), dtype=np.int64)

    def rows_of(self, step: int) -> list[int]:
        """Returns the indices of the rows that step `step` trains, in order."""
        epoch, step_of_epoch = divmod(step, self._per_epoch)
        first = step_of_epoch * self.steps.rows_per_step
        positions = np.arange(first, min(first + self.steps.rows_per_step, len(self.rows)))
        order: list[int] = permute(positions, len(self.rows), self.seed, epoch).tolist()
        return order

    def epoch(self, step: int) -> float:
        """Returns the number of epochs that are over after `step` steps, with a fraction."""
        return step / self._per_epoch

    def ends_epoch(self, step: int) -> bool:
        """Returns True if `step` steps are a whole number of epochs."""
        return step % self._per_epoch == 0

    def state(self) -> dict[str, Any]:
        """Returns an empty state: the rows of a step follow from its number."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Does nothing: the rows of a step follow from its number."""


def share_of(batches: Sequence[list[Rows]], rank: int, world_size: int) -> list[list[Rows]]:
    """Returns every `world_size`-th batch, beginning with that of index `rank`."""
    # Filled up with empty batches, since all ranks must run the same number of passes to meet in collective calls.
    num_missing = -len(batches) % world_size
    return [*batches, *([] for _ in range(num_missing))][rank::world_size]


def in_order(
    rows: Epoch, batch_size: int, collate: Collate = collate, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Yields a rank's share of all rows once, in order, `batch_size` at a time."""
    indices = range(len(rows))
    batches = [list(indices[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
    before = rows_before(indices)
    for batch in share_of(batches, rank, world_size):
        yield batch_of(rows.group, batch, collate, before)


def most_tokens(lengths: npt.NDArray[np.int64], steps: StepsPlan, seed: int) -> int:
    """Returns the number of tokens of the largest micro-batch of a run, or an upper bound for a long run.

    Args:
        lengths: Number of tokens of each row [R].
        steps: How the rows are cut into steps.
        seed: Seed of their order.
    """
    num_rows, size = len(lengths), steps.micro_batch_rows
    assert steps.total is not None, "the plan has the number of rows"
    num_positions = steps.total * steps.rows_per_step
    num_epochs = -(-steps.total // (steps.per_epoch or 1))
    bound = int(np.sort(lengths)[-size:].sum())  # the longest rows of all in one micro-batch
    if num_positions > _MAX_ORDERED or num_epochs > _MAX_ORDERED_EPOCHS:
        return bound
    most = 0
    if steps.world_size > 1:
        return _most_of_ranks(lengths, steps, seed)
    for epoch in range(num_epochs):
        # The last epoch may end early.
        num_left = min(num_rows, num_positions - epoch * (steps.per_epoch or 1) * steps.rows_per_step)
        order = permute(np.arange(num_left), num_rows, seed, epoch)
        most = max(most, int(np.add.reduceat(lengths[order], np.arange(0, num_left, size)).max()))
    return most


def _most_of_ranks(lengths: npt.NDArray[np.int64], steps: StepsPlan, seed: int) -> int:
    most, num_rows, size = 0, len(lengths), steps.rows_per_step
    for epoch in range(-(-(steps.total or 0) // (steps.per_epoch or 1))):
        num_steps = min(steps.per_epoch or 1, (steps.total or 0) - epoch * (steps.per_epoch or 1))
        in_order = lengths[permute(np.arange(min(num_rows, num_steps * size)), num_rows, seed, epoch)]
        for first in range(0, len(in_order), size):
            tokens = in_order[first : first + size].tolist()
            shares = micro_batches_of_ranks(tokens, tokens, steps.micro_batch_rows, steps.world_size)
            most = max(most, *(sum(batch) for share in shares for batch in share))
    return most


def read_ahead(make: Callable[[], Item], completes: bool = False) -> Generator[Item, None, None]:
    """Yields the results of calls of `make`, which a thread calls ahead of the caller.

    Args:
        make: Returns an item.
        completes: Make the calls that were planned also where the caller has no use for them any more.
    """
    # One thread, so that the calls stay in order.
    thread = ThreadPoolExecutor(1, "reads-ahead")
    waiting: deque[Future[Item]] = deque()
    try:
        while True:
            while len(waiting) < _STEPS_AHEAD:
                waiting.append(thread.submit(make))
            yield waiting.popleft().result()
    # When the caller closes the generator, or a call raises.
    finally:
        thread.shutdown(wait=True, cancel_futures=not completes)


def batch_of(
    group: Callable[[int], list[Example]], indices: Sequence[int], collate: Collate, before: Mapping[int, int]
) -> Batch:
    """Returns rows as a batch.

    Args:
        group: Returns the examples of a row.
        indices: The rows.
        collate: Joins examples; a `MismatchCollator` also takes the rows before them.
        before: The row before each row of the step, empty if there is none.
    """
    if not indices:
        return empty_batch()
    examples = [example for i in indices for example in group(i)]
    if before and isinstance(collate, MismatchCollator):
        return collate.beside(examples, [group(before[i])[0] for i in indices])
    return collate(examples)
