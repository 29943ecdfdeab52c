# SPDX-License-Identifier: Apache-2.0
"""Finds the best evaluation of a run, and ends the run once evaluations no longer improve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from oumi.core.checkpoint.store import checkpoint_path, remove
from oumi.core.distributed.world import World
from oumi.core.errors import ConfigError, did_you_mean
from oumi.core.log import logger
from oumi.core.plan.parts import Plan
from oumi.core.run import Progress, TrainState


class Epochs(Protocol):
    """Knows the steps at which epochs end."""

    def ends_epoch(self, step: int) -> bool:
        """Returns True if an epoch is over after `step` steps."""
        ...


def track_best(run: Progress, metrics: Mapping[str, float]) -> dict[str, float]:
    """Counts an evaluation in the state of the run, and requests the end of the run if early stopping asks for it.

    As in transformers, any better value is the best one, and only one that is better by more than the threshold counts
    as an improvement.

    Returns:
        The best value so far, by the name of its metric after `best_`, and its step; nothing if the plan does not look
        for it.

    Raises:
        ConfigError: The evaluation has no such metric.
    """
    best, state = run.plan.checkpoints.best, run.state
    if best is None:
        return {}
    if best.metric not in metrics:
        hint = did_you_mean(best.metric, metrics) or f"; it reports {', '.join(metrics)}"
        raise ConfigError(f"training.metric_for_best_model: the evaluation reports no {best.metric}{hint}")
    value = metrics[best.metric]
    state.num_worse = 0 if best.is_better(value, state.best_value, best.threshold) else state.num_worse + 1
    if best.is_better(value, state.best_value):
        state.best_value, state.best_step = value, state.step
    if best.patience is not None and state.num_worse >= best.patience and state.step < run.plan.num_steps:
        state.has_converged = run.stop_requested = True
    return {} if state.best_value is None else {f"best_{best.metric}": state.best_value, "best_step": state.best_step}


def saves_best(run: Progress) -> bool:
    """Returns True if the evaluation of the last step is the best one so far, and its checkpoint is wanted."""
    best = run.plan.checkpoints.best
    return best is not None and best.restores and 0 < run.state.step == run.state.best_step


def best_checkpoint(plan: Plan, state: TrainState) -> Path | None:
    """Returns the checkpoint of the best evaluation, None if the plan does not keep it or there was none yet."""
    best = plan.checkpoints.best
    if best is None or not best.restores or not state.best_step:
        return None
    return checkpoint_path(plan.output_dir, state.best_step)


def forget_missing_best(run: Progress, world: World) -> None:
    """Looks for the best evaluation anew if its checkpoint is missing, with a warning; for runs that are resumed."""
    checkpoint = best_checkpoint(run.plan, run.state)
    if checkpoint is not None and not world.on_main(checkpoint.is_dir):
        if world.is_main:
            logger.warning("%s, of the best evaluation, is missing; a new best one is looked for", checkpoint)
        run.state.best_value, run.state.best_step, run.state.num_worse = None, 0, 0


def is_periodic(plan: Plan, step: int, epochs: Epochs) -> bool:
    """Returns True if a checkpoint is saved after a step by its number, whatever its evaluation says."""
    every_steps = plan.checkpoints.every_steps
    if every_steps is not None and step % every_steps == 0:
        return True
    return plan.checkpoints.every_epoch and epochs.ends_epoch(step)


def without_superseded(saved: Sequence[Path], run: Progress, old_step: int, epochs: Epochs) -> list[Path]:
    """Deletes the checkpoint of an earlier best evaluation if it was saved for that alone, and returns the other ones.

    Args:
        saved: The checkpoints of the run.
        run: The run, after the new best checkpoint is saved.
        old_step: The step of the earlier best evaluation, 0 if there was none.
        epochs: Knows the steps at which epochs end.
    """
    plan = run.plan
    if plan.checkpoints.best is None or not plan.checkpoints.best.restores or old_step in (0, run.state.best_step):
        return list(saved)
    old = checkpoint_path(plan.output_dir, old_step)
    if is_periodic(plan, old_step, epochs):
        return list(saved)
    if old.exists():
        remove(old)
    return [checkpoint for checkpoint in saved if checkpoint != old]


def outcome(run: Progress) -> str:
    """Returns a sentence about the best evaluation and the end of the run, an empty text if there was none."""
    best, state = run.plan.checkpoints.best, run.state
    if best is None:
        return ""
    if state.best_value is None:
        return f"no evaluation gave a number for {best.metric}: the final model is that of step {state.step}"
    text = f"best {best.metric} {state.best_value:.6g} at step {state.best_step}"
    if best.restores:
        text += ", whose model is saved"
    if state.has_converged:
        text = f"stopped early after step {state.step}: {state.num_worse} evaluations without an improvement; {text}"
    return text
