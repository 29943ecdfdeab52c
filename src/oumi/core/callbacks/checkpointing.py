# SPDX-License-Identifier: Apache-2.0
"""Saves a run on its way, so that it can go on after anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from oumi.core.checkpoint.retention import keep_last
from oumi.core.checkpoint.state import random_state, save_state
from oumi.core.checkpoint.store import checkpoint_path, find_checkpoints, publish
from oumi.core.run import Callback, Run, StepReport


class Checkpointing(Callback):
    """Publishes a checkpoint when the plan says so, and when the run is asked to stop."""

    def __init__(self, write_model: Callable[[Path], None], facts: Mapping[str, Any], saved_until: int) -> None:
        """Takes what a checkpoint holds beside the training state.

        Args:
            write_model: Writes the model and its tokenizer as Hugging Face files.
            facts: What the manifest says of the run.
            saved_until: The step that the run goes on from; checkpoints up to it are its own.
        """
        self._write_model = write_model
        self._facts = facts
        self._saved_until = saved_until
        self._saved: list[Path] = []

    def train_start(self, run: Run) -> None:  # type: ignore[override]  # our own loop shows a whole Run
        checkpoints = find_checkpoints(run.plan.output_dir) if self._saved_until else []
        self._saved = [path for step, path in checkpoints if step <= self._saved_until]

    def step_end(self, run: Run, report: StepReport) -> None:  # type: ignore[override]
        if self._is_due(run):
            self.save(run)

    def save(self, run: Run) -> None:
        """Writes the checkpoint of the step that was just taken, on the main rank."""
        target = checkpoint_path(run.plan.output_dir, run.state.step)
        random_states = run.world.gather(random_state(run.world.device))

        def write(directory: Path) -> None:
            self._write_model(directory)
            save_state(run, directory, random_states)

        def publish_and_keep_last() -> None:
            # After a step back its checkpoints are written anew.
            publish(target, write, {**self._facts, "step": run.state.step})
            self._saved = keep_last([*self._saved, target], run.plan.checkpoints.keep)

        run.world.on_main(publish_and_keep_last)  # where the disk is full, all ranks stop
        run.callbacks.saved(run, target)

    def _is_due(self, run: Run) -> bool:
        plan, step = run.plan.checkpoints, run.state.step
        if plan.every_steps and step % plan.every_steps == 0:
            return True
        if plan.every_epoch and run.loader.ends_epoch(step):
            return True
        return run.stop_requested and step < run.plan.num_steps
