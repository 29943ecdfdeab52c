# SPDX-License-Identifier: Apache-2.0
"""Builds one record per step, the same for every trainer, and passes it to the sinks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from oumi.core.batch import Batch
from oumi.core.checkpoint.best import outcome
from oumi.core.monitoring.efficiency import Efficiency, MicroBatchSize, Record
from oumi.core.run import Callback, Progress, Run, Sample, StepReport
from oumi.core.system import host


class Sink:
    """A destination of records, such as the console or a file. All methods do nothing by default."""

    def start(self, run: Progress) -> None:
        """Called before the first step."""

    def step(self, run: Progress, record: Record, extra: Sequence[str]) -> None:
        """Called after an optimizer step; `extra` names the values that are specific to the method or trainer."""

    def measured(self, run: Progress, record: Record) -> None:
        """Called after another measurement, such as the validation loss."""

    def sampled(self, run: Progress, samples: Sequence[Sample]) -> None:
        """Called with what the model answered to rows of the validation set."""

    def note(self, text: str) -> None:
        """Called with a message for the user."""

    def close(self) -> None:
        """Called at the end, also after an error."""

    def wait(self) -> None:
        """Called last, after the model is written: waits, for a bounded time, for what is still being sent."""


class Reporting(Callback):
    """Builds the records of a run and passes them to its sinks."""

    def __init__(self, sinks: Sequence[Sink], efficiency: Efficiency) -> None:
        self._sinks = sinks
        self._efficiency = efficiency
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()
        """The clocks at the end of the last step."""

    def train_start(self, run: Progress) -> None:
        for sink in self._sinks:
            sink.start(run)
        self._restart()

    def step_start(self, run: Run) -> None:
        self._efficiency.step_start()

    def before_update(self, run: Run, report: StepReport, micro_batches: list[Batch]) -> None:
        sizes = []
        for batch in micro_batches:
            lengths = run.model.without_copies(batch)[0].lengths
            # A flat model has no padding; any other one pads every document to the longest of the micro-batch.
            num_positions = sum(lengths) if run.model.is_flat else len(lengths) * max(lengths, default=0)
            sizes.append(MicroBatchSize(lengths, batch.num_targets, num_positions))
        self._efficiency.before_update(sizes)

    def step_end(self, run: Progress, report: StepReport) -> None:
        # From the end of the last step to now, so including the time to fetch the rows.
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        step_time_s, cpu_time_s = wall_s - self._wall_s, cpu_s - self._cpu_s
        self._wall_s, self._cpu_s = wall_s, cpu_s
        has_gpu = torch.cuda.is_available()
        values = {
            "step": run.state.step,
            "epoch": run.state.epoch,
            "loss": report.loss,
            "grad_norm": report.grad_norm,
            "learning_rate": report.learning_rate,
            "num_tokens": report.num_tokens,
            "num_target_tokens": report.num_targets,
            "total_tokens": run.state.num_tokens,
            "step_time_s": step_time_s,
            "cpu_time_s": cpu_time_s,
            "tokens_per_second": report.num_tokens / max(step_time_s, 1e-9),
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if has_gpu else host.peak_memory_bytes(),
            **self._efficiency.step_end(),
        }
        record = {**report.extra, **values}  # our values take precedence over those of another trainer
        extra = tuple(name for name in report.extra if name not in values)
        run.metrics.update(record)
        for sink in self._sinks:
            sink.step(run, record, extra)
        self._efficiency.wait()  # time in the sinks does not count as waiting for data

    def measured(self, run: Progress, metrics: Mapping[str, float]) -> None:
        record = {"step": run.state.step, "epoch": run.state.epoch, **metrics}
        for sink in self._sinks:
            sink.measured(run, record)
        self._restart()  # the next step does not include the evaluation

    def sampled(self, run: Progress, samples: Sequence[Sample]) -> None:
        for sink in self._sinks:
            sink.sampled(run, samples)
        self._restart()

    def saved(self, run: Progress, checkpoint: Any) -> None:
        for sink in self._sinks:
            sink.note(f"step {run.state.step}: saved {checkpoint}")
        self._restart()  # nor the time to save

    def train_end(self, run: Progress) -> None:
        for text in filter(None, (outcome(run), self._efficiency.summary())):
            for sink in self._sinks:
                sink.note(text)

    def close(self) -> None:
        self._efficiency.close()
        for sink in self._sinks:
            sink.close()

    def wait(self) -> None:
        for sink in self._sinks:
            sink.wait()

    def _restart(self) -> None:
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()
        self._efficiency.restart()
