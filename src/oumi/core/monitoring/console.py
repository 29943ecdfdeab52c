# SPDX-License-Identifier: Apache-2.0
"""The output of a run on the console: one live line on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.console import Console as Terminal
from rich.progress import Progress as Bar
from rich.progress import TextColumn, TimeRemainingColumn

from oumi.core.log import logger
from oumi.core.monitoring.reporting import Record, Sink
from oumi.core.plan.parts import LogPlan
from oumi.core.run import Progress


class Console(Sink):
    """Shows each step on a terminal; prints the steps that the plan reports."""

    def __init__(self, plan: LogPlan) -> None:
        self._plan = plan
        self._bar: Bar | None = None
        self._task = 0
        self._started = 0.0
        self._first_step = 0
        # Complete epochs before the next step, which tell whether it ends one.
        self._epoch = 0

    def start(self, run: Progress) -> None:
        self._started = time.perf_counter()
        self._first_step = run.state.step
        self._epoch = int(run.state.epoch)
        if sys.stderr.isatty():
            # Only text and remaining time: 80 columns have no room for a bar.
            columns = (TextColumn("{task.description}", markup=False), TimeRemainingColumn(compact=True))
            self._bar = Bar(*columns, console=Terminal(stderr=True))
            self._task = self._bar.add_task("training", total=run.plan.num_steps, completed=run.state.step)
            self._bar.start()

    def step(self, run: Progress, record: Record, extra: Sequence[str]) -> None:
        text = step_line(record, run.plan.num_steps, extra)
        if self._bar is not None:
            self._bar.update(self._task, completed=run.state.step, description=text)
        if is_due(self._plan, run, self._epoch):
            logger.info("%s", text)
            if self._bar is None:
                # From the first step of this process: a resumed run did not spend time on earlier steps here.
                num_steps = run.state.step - self._first_step
                step_s = (time.perf_counter() - self._started) / max(num_steps, 1)
                left_s = int(step_s * (run.plan.num_steps - run.state.step))
                print(f"{text}  {left_s // 60}:{left_s % 60:02d} left", file=sys.stderr, flush=True)
        self._epoch = int(run.state.epoch)

    def measured(self, run: Progress, record: Record) -> None:
        named = [(name, value) for name, value in record.items() if name not in ("step", "epoch")]
        values = "  ".join(
            f"{name} {value}" if isinstance(value, int) else f"{name} {value:.4f}" for name, value in named
        )
        self.note(f"step {run.state.step}/{run.plan.num_steps}  {values}")

    def note(self, text: str) -> None:
        logger.info("%s", text)
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)  # above the live line, which a plain print would break
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


def step_line(record: Record, num_steps: int, extra: Sequence[str] = ()) -> str:
    """Returns a step as one line: step, loss, learning rate, speed, share of the machine's peak, memory.

    The values named `extra` come last, since a narrow terminal truncates the end. Of a method with rewards only those
    are shown; the files of the run have all values.
    """
    extra = [name for name in extra if name.startswith("rewards/")] or extra
    peak = f"  {record['fraction_of_peak']:.0%} peak" if "fraction_of_peak" in record else ""
    return (
        f"step {record['step']:.0f}/{num_steps}  loss {record['loss']:.4f}  lr {record['learning_rate']:.2e}  "
        f"{record['tokens_per_second']:,.0f} tok/s{peak}  {record['peak_memory_bytes'] / 1e9:.2f} GB"
    ) + "".join(f"  {name} {record[name]:.3g}" for name in extra)


def is_due(plan: LogPlan, run: Progress, epoch_before: int) -> bool:
    """Returns True if the plan reports this step: at its interval, at the end of an epoch, the first or the last one.

    Args:
        plan: When to report.
        run: The run after the step.
        epoch_before: The number of complete epochs before the step.
    """
    step = run.state.step
    if plan.every_steps and step % plan.every_steps == 0:
        return True
    if plan.first_step and step == 1:
        return True
    if plan.every_epoch and int(run.state.epoch) > epoch_before:
        return True
    # The last step is reported wherever steps are reported at all.
    return step == run.plan.num_steps and (plan.every_steps is not None or plan.every_epoch)
