# SPDX-License-Identifier: Apache-2.0
"""The micro-batches of each optimizer step; any step is found at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from oumi.core.batch import Batch, collate
from oumi.core.data.mixture import Mixture, permute
from oumi.core.plan.parts import StepsPlan


class Loader:
    """Cuts the shuffled rows of each epoch into optimizer steps, and those into micro-batches.

    The last step of an epoch takes the rows that are left, so every row is trained once an epoch.
    """

    def __init__(self, rows: Mixture, steps: StepsPlan, seed: int) -> None:
        assert steps.per_epoch is not None, "the plan knows the rows by now"
        self.rows = rows
        self.steps = steps
        self.seed = seed
        self.steps_per_epoch = steps.per_epoch

    def from_step(self, step: int) -> Iterator[list[Batch]]:
        """Yields the micro-batches of step `step` (from 0), then of those after it, epoch after epoch."""
        while True:
            size = self.steps.micro_batch_rows
            rows = self.rows_of(step)
            yield [collate([self.rows[i] for i in rows[a : a + size]]) for a in range(0, len(rows), size)]
            step += 1

    def rows_of(self, step: int) -> list[int]:
        """Returns the rows that step `step` trains, in order."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        first = step_of_epoch * self.steps.rows_per_step
        positions = np.arange(first, min(first + self.steps.rows_per_step, len(self.rows)))
        order: list[int] = permute(positions, len(self.rows), self.seed, epoch).tolist()
        return order


def in_order(rows: Mixture, batch_size: int) -> Iterator[Batch]:
    """Yields all rows once, in order, `batch_size` at a time."""
    for first in range(0, len(rows), batch_size):
        yield collate([rows[i] for i in range(first, min(first + batch_size, len(rows)))])
