# SPDX-License-Identifier: Apache-2.0
"""Steps, one after the other."""

from __future__ import annotations

from oumi.core.engine.step import take_step
from oumi.core.run import Run, StepReport, TrainState


def fit(run: Run) -> TrainState:
    """Trains until the plan's last step, or until asked to stop."""
    run.callbacks.train_start(run)
    if run.state.step < run.plan.num_steps:
        run.model.train()
        for micro_batches in run.loader.from_step(run.state.step):
            run.callbacks.step_start(run)
            report = take_step(run, micro_batches)
            advance(run, report)
            run.callbacks.step_end(run, report)  # logging, evaluation and checkpoints live here
            if run.state.step >= run.plan.num_steps or run.stop_requested:
                break
    run.callbacks.train_end(run)
    return run.state


def advance(run: Run, report: StepReport) -> None:
    """Counts a step that was taken."""
    state = run.state
    state.step += 1
    state.num_tokens += report.num_tokens
    state.num_targets += report.num_targets
    state.epoch = run.loader.epoch(state.step)
