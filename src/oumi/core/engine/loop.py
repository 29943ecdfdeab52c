# SPDX-License-Identifier: Apache-2.0
"""Steps, one after the other."""

from __future__ import annotations

from contextlib import closing

from oumi.core.engine.step import take_step
from oumi.core.run import Run, StepReport, TrainState


def fit(run: Run) -> TrainState:
    """Trains until the plan's last step, or until asked to stop. A callback may put the run back to an earlier step."""
    run.callbacks.train_start(run)
    run.model.train()
    while run.state.step < run.plan.num_steps and not run.stop_requested:
        with closing(run.loader.from_step(run.state.step)) as steps:
            for micro_batches in steps:
                run.callbacks.step_start(run)
                report = take_step(run, micro_batches)
                advance(run, report)
                step = run.state.step
                run.stop_requested = bool(run.world.agree(run.stop_requested or run.stop_signaled))
                run.callbacks.step_end(run, report)  # logging, evaluation and checkpoints live here
                is_restored = run.state.step != step
                if is_restored or step >= run.plan.num_steps or run.stop_requested:
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
