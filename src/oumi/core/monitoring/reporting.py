# SPDX-License-Identifier: Apache-2.0
"""Turns each step into one record, the same whichever trainer runs, and hands it to those who show or keep it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from oumi.core.batch import Batch
from oumi.core.monitoring.efficiency import Efficiency, MicroBatchSize, Record
from oumi.core.run import Callback, Progress, Run, StepReport
from oumi.core.system import host


class Sink:
    """Something that shows or keeps records. Override what you need."""

    def start(self, run: Progress) -> None:
        """Before the first step."""

    def step(self, run: Progress, record: Record) -> None:
        """One optimizer step."""

    def measured(self, run: Progress, record: Record) -> None:
        """Something other than a step, such as the validation loss."""

    def note(self, text: str) -> None:
        """Something to say."""

    def close(self) -> None:
        """At the end, also when training failed."""


class Reporting(Callback):
    """Makes the records and hands them round."""

    def __init__(self, sinks: Sequence[Sink], efficiency: Efficiency) -> None:
        self._sinks = sinks
        self._efficiency = efficiency
        self._last = _clocks()

    def train_start(self, run: Progress) -> None:
        for sink in self._sinks:
            sink.start(run)
        self._restart()

    def step_start(self, run: Run) -> None:
        self._efficiency.step_start()

    def before_update(self, run: Run, report: StepReport, micro_batches: list[Batch]) -> None:
        self._efficiency.before_update([_counted(batch, run.model.is_flat) for batch in micro_batches])

    def step_end(self, run: Progress, report: StepReport) -> None:
        record = self._record(run, report)
        run.metrics.update(record)
        for sink in self._sinks:
            sink.step(run, record)
        self._efficiency.wait()

    def measured(self, run: Progress, metrics: Mapping[str, float]) -> None:
        record = {"step": run.state.step, "epoch": run.state.epoch, **metrics}
        for sink in self._sinks:
            sink.measured(run, record)
        self._restart()  # measuring is not part of the next step

    def saved(self, run: Progress, checkpoint: Any) -> None:
        for sink in self._sinks:
            sink.note(f"step {run.state.step}: saved {checkpoint}")
        self._restart()

    def train_end(self, run: Progress) -> None:
        if text := self._efficiency.summary():
            for sink in self._sinks:
                sink.note(text)

    def close(self) -> None:
        self._efficiency.close()
        for sink in self._sinks:
            sink.close()

    def _restart(self) -> None:
        self._last = _clocks()
        self._efficiency.restart()

    def _record(self, run: Progress, report: StepReport) -> Record:
        before, self._last = self._last, _clocks()
        wall, cpu = (now - then for now, then in zip(self._last, before, strict=True))
        return {
            **report.extra,
            "step": run.state.step,
            "epoch": run.state.epoch,
            "loss": report.loss,
            "grad_norm": report.grad_norm,
            "learning_rate": report.learning_rate,
            "num_tokens": report.num_tokens,
            "num_target_tokens": report.num_targets,
            "total_tokens": run.state.num_tokens,
            "step_time_s": wall,
            "cpu_time_s": cpu,
            "tokens_per_second": report.num_tokens / max(wall, 1e-9),
            "peak_memory_bytes": peak_memory_bytes(),
            **self._efficiency.step_end(),
        }


def _clocks() -> tuple[float, float]:
    """Returns the seconds of the wall clock, and those that all threads of this process have worked."""
    return time.perf_counter(), time.process_time()


def _counted(batch: Batch, is_flat: bool) -> MicroBatchSize:
    lengths = batch.lengths
    return MicroBatchSize(lengths, batch.num_targets, sum(lengths) if is_flat else len(lengths) * max(lengths))


def peak_memory_bytes() -> int:
    """Returns the most memory that was held: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return host.peak_memory_bytes()
