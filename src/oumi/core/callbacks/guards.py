# SPDX-License-Identifier: Apache-2.0
"""Stops a run at losses or gradients that are not finite, and at signals of the system."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from itertools import chain
from types import FrameType
from typing import Any

import torch

from oumi.core.batch import Batch
from oumi.core.errors import NotFiniteError, PreemptedError
from oumi.core.log import logger
from oumi.core.run import Callback, Progress, Run, StepReport
from oumi.core.types.example import Source

_MAX_LISTED_ROWS = 20


class FiniteGuard(Callback):
    """Raises NotFiniteError with the rows of the step before an update with a loss or gradient that is not finite."""

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
        raise not_finite(run, " and ".join(broken), rows)


class SignalGuard(Callback):
    """Stops the run after the current step on SIGTERM or SIGINT; a second signal ends it immediately."""

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}

    def train_start(self, run: Progress) -> None:
        def request_stop(number: int, frame: FrameType | None) -> None:
            self.close()  # restores the handlers, so that the next signal ends the process
            # Only a request: the loop combines the flags of all ranks, so that all stop at the same step.
            run.stop_signaled = True
            logger.warning("%s: stopping after this step, with a checkpoint", signal.Signals(number).name)

        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, request_stop)
            except ValueError:  # Python allows handlers in the main thread only, which some notebooks do not use
                return

    def close(self) -> None:
        while self._previous:
            number, handler = self._previous.popitem()
            signal.signal(number, handler)


def stopped_early(run: Progress) -> PreemptedError:
    """Returns the error that ends a run after a signal to stop."""
    return PreemptedError(
        f"stopped after step {run.state.step} of {run.plan.num_steps}; a checkpoint is saved. To resume, run the same "
        "command with --training.try_resume_from_last_checkpoint true"
    )


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
    for batch in micro_batches:
        for i in range(batch.num_rows):
            row = batch.part(i, i + 1)  # computed again on its own, since the step has only the sum of the losses
            with torch.no_grad(), run.autocast():
                loss = run.method.loss(run.model, row.to(run.world.device))
            if not math.isfinite(loss.total):
                yield row.sources[0]
