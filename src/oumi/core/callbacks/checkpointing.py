# SPDX-License-Identifier: Apache-2.0
"""Saves checkpoints during a run, from which it can resume."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Protocol

from oumi.core.checkpoint.best import (
    best_checkpoint,
    forget_missing_best,
    is_periodic,
    saves_best,
    without_superseded,
)
from oumi.core.checkpoint.retention import keep_last
from oumi.core.checkpoint.state import FOLDER, random_state, save_slices, save_state
from oumi.core.checkpoint.store import UNFINISHED, checkpoint_path, find_checkpoints, publish, recreate
from oumi.core.distributed.world import World
from oumi.core.run import Callback, Run, StepReport
from oumi.core.system.filesystem import storage_errors
from oumi.core.system.signals import signals_held


class ModelExporter(Protocol):
    """Writes the model of a run."""

    def gathered(self, world: World, mode: str = ...) -> AbstractContextManager[None]:
        """Makes a divided model whole on the main rank; on all ranks."""
        ...

    def write(self, directory: Path, mode: str = ...) -> None:
        """Writes the model and its tokenizer as Hugging Face files; on the main rank."""
        ...


class Checkpointing(Callback):
    """Saves a checkpoint at the steps and epochs of the plan, and when the run is stopped by a signal."""

    def __init__(self, exporter: ModelExporter, facts: Mapping[str, Any], saved_until: int) -> None:
        """Initializes the callback.

        Args:
            exporter: Writes the model and its tokenizer as Hugging Face files.
            facts: The facts of the run for the manifest.
            saved_until: The step from which the run resumes, 0 for a new run; checkpoints up to it belong to the run.
        """
        self._exporter = exporter
        self._facts = facts
        self._saved_until = saved_until
        self._saved: list[Path] = []
        self._best_step = 0
        """The step of the best evaluation whose checkpoint is saved."""
        self._after_step: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        """The random states of this rank and the position in the rows, after the last complete step."""

    def train_start(self, run: Run) -> None:  # type: ignore[override]  # the native loop passes a Run
        # Later checkpoints are left alone: they are not on the way to the one from which the run resumes.
        checkpoints = find_checkpoints(run.plan.output_dir) if self._saved_until else []
        self._saved = [path for step, path in checkpoints if step <= self._saved_until]
        forget_missing_best(run, run.world)
        self._best_step = run.state.best_step
        self._keep_position(run)

    def step_end(self, run: Run, report: StepReport) -> None:  # type: ignore[override]
        self._keep_position(run)
        is_due = is_periodic(run.plan, run.state.step, run.loader) or saves_best(run)
        # A signal during the last step needs no checkpoint: the run is complete, once it is evaluated.
        if is_due or (run.stop_requested and not run.is_complete):
            self.save(run)

    def save_last_step(self, run: Run) -> None:
        """Writes the checkpoint of the last complete step, unless there is one; the step after it may be half done."""
        if run.state.step and checkpoint_path(run.plan.output_dir, run.state.step) not in self._saved:
            self.save(run)

    def save(self, run: Run) -> None:
        """Writes the checkpoint of the last complete step: each rank what it alone has, the main rank the rest."""
        plan = run.plan
        target = checkpoint_path(plan.output_dir, run.state.step)
        own_state, position = self._after_step
        # On all ranks, since gather is a collective operation: each rank has random states of its own.
        random_states = run.world.gather(own_state)
        slices = plan.output_dir / f"{UNFINISHED}{target.name}-slices" if run.parameters.divided else None
        saves_model = plan.sharding is None or plan.sharding.saves_whole_model

        def write(directory: Path) -> None:
            if saves_model:
                self._exporter.write(directory)
            if slices is not None:
                slices.rename(directory / FOLDER)
            save_state(run, directory, random_states, position)

        def publish_and_keep_last() -> None:
            # A run that resumed from an older checkpoint replaces the later ones.
            publish(target, write, {**self._facts, "step": run.state.step})
            best = best_checkpoint(plan, run.state)
            saved = without_superseded(self._saved, run, self._best_step, run.loader)
            self._saved = keep_last([*saved, target], plan.checkpoints.keep, best)

        with signals_held(), ExitStack() as stack:
            if saves_model:
                stack.enter_context(self._exporter.gathered(run.world))
            if slices is not None:
                if run.world.is_main:  # after a failure, of any rank, a full disk needs the space
                    stack.callback(shutil.rmtree, slices, ignore_errors=True)
                with storage_errors(target):
                    run.world.on_main(lambda: recreate(slices))
                    save_slices(run, slices)
            run.world.on_main(publish_and_keep_last)  # raises on all ranks if it fails, so that none waits
        self._best_step = run.state.best_step
        run.callbacks.saved(run, target)
        # A signal that came meanwhile finds its checkpoint already saved.
        run.stop_requested = bool(run.world.agree(run.stop_requested or run.stop_signaled))

    def _keep_position(self, run: Run) -> None:
        self._after_step = (random_state(run.world.device), run.loader.state())
