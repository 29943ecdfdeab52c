# SPDX-License-Identifier: Apache-2.0
"""Stops a run at losses or gradients that are not finite, and at signals to stop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import torch

from oumi.core.batch import Batch, empty_batch
from oumi.core.distributed.sharding import free_gathered
from oumi.core.errors import NotFiniteError, PreemptedError, StorageError
from oumi.core.log import logger
from oumi.core.run import Callback, Progress, Run, StepReport
from oumi.core.system.signals import hold_signals, request_stops
from oumi.core.types.example import Source

_MAX_LISTED_ROWS = 20


class FiniteGuard(Callback):
    """Raises NotFiniteError with the rows of the step before an update with a loss or gradient that is not finite."""

    def __init__(self, save_last_step: Callable[[Run], None]) -> None:
        """Sets the function that saves a checkpoint of the last complete step."""
        self._save_last_step = save_last_step

    def before_update(self, run: Run, report: StepReport, micro_batches: list[Batch]) -> None:
        values = {"loss": report.loss}
        # Above 1, an overflow of float16 gradients is normal: the scaler skips the step and reduces its scale.
        if run.scaler.get_scale() <= 1:
            values["gradient norm"] = report.grad_norm
        broken = [f"the {name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        if not broken:
            return
        # The loss is a sum over all ranks, so the cause may be in the rows of another rank.
        broken_rows = run.world.gather(list(_broken_rows(run, micro_batches)))
        # Both documents of a pair have the same source.
        sources = dict.fromkeys(source for batch in micro_batches if batch.num_rows for source in batch.sources)
        all_rows = run.world.gather(list(sources))
        # A gradient can overflow although each loss is finite. Then any row of the step may be the cause.
        rows = list(chain.from_iterable(broken_rows)) or list(chain.from_iterable(all_rows))
        save_if_possible(lambda: self._save_last_step(run))
        raise not_finite(run, " and ".join(broken), rows)


class SignalGuard(Callback):
    """Makes signals stop the run after the current step, as long as there are steps."""

    def train_start(self, run: Progress) -> None:
        request_stops()

    def close(self) -> None:
        hold_signals()


def stopped_early(run: Progress) -> PreemptedError:
    """Returns the error that ends a run after a signal to stop."""
    return PreemptedError(
        f"stopped after step {run.state.step} of {run.plan.num_steps}; a checkpoint is saved. To resume, run the same "
        "command with --training.try_resume_from_last_checkpoint true"
    )


def save_if_possible(save_last_step: Callable[[], None]) -> None:
    """Saves the last complete step of a run that is not finite; if that fails, it is only logged."""
    try:
        save_last_step()
    except StorageError as error:
        logger.warning("%s", error)  # the loss is what the user has to know


def not_finite(run: Progress, broken: str, rows: Sequence[Source]) -> NotFiniteError:
    """Returns the error that stops a run before the update of the step after `run.state.step`."""
    names = "\n".join(f"  {source}" for source in rows[:_MAX_LISTED_ROWS])
    more = f"\n  ... and {len(rows) - _MAX_LISTED_ROWS} more" if len(rows) > _MAX_LISTED_ROWS else ""
    return NotFiniteError(
        f"step {run.state.step + 1}: {broken}. The weights are as they were after step {run.state.step}. "
        f"Check these rows of the step:\n{names}{more}\n"
        "If the rows are valid, lower training.learning_rate or raise training.warmup_steps."
    )


def _broken_rows(run: Run, micro_batches: list[Batch]) -> Iterator[Source]:
    """Yields the rows whose own loss is not finite."""
    # Computed again one by one, since the step has only the sum of their losses.
    rows = [batch.part(i, i + 1) for batch in micro_batches for i in range(batch.num_rows)]
    # Ranks with a divided model take as many passes.
    for row in [*rows, *(empty_batch() for _ in range(run.world.agree(len(rows)) - len(rows)))]:
        with torch.no_grad(), run.autocast():
            batch = row.to(run.world.device)
            loss = run.method.loss(run.model, batch, run.method.step_sums(run.model, batch))
        if row.num_rows and not math.isfinite(loss.total):
            yield row.sources[0]
    free_gathered(run.model)
