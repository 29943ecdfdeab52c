# SPDX-License-Identifier: Apache-2.0
"""Decides whether a run starts, resumes from a checkpoint or is already complete, and refuses to mix two runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from oumi.core.checkpoint.best import best_checkpoint
from oumi.core.checkpoint.export import finish_export, foreign_model_files, has_export
from oumi.core.checkpoint.identity import Identity, read_identity, write_identity
from oumi.core.checkpoint.state import load_state
from oumi.core.checkpoint.store import clear_unfinished, find_checkpoints, newest_good, read_facts
from oumi.core.errors import ConfigError, DataError, OutputError
from oumi.core.models.build import load_weights
from oumi.core.models.sharded import load_divided_weights
from oumi.core.plan.parts import Plan
from oumi.core.plan.trajectory import differences, trajectory
from oumi.core.run import Progress, Run
from oumi.core.system.filesystem import expanded

_MAX_LISTED = 3
"""Number of files that a message lists by name."""


@dataclass(frozen=True)
class ResumePoint:
    """The state of a run before the first step of this process."""

    identity: Identity
    checkpoint: Path | None = None
    step: int = 0
    data: str | None = None
    """Digest of the rows that the checkpoint was trained on."""

    @property
    def began(self) -> datetime:
        """Returns the start of the run's first process, whose date chat templates keep when the run is resumed."""
        return datetime.fromisoformat(self.identity.began)

    def is_finished(self, plan: Plan, data: str) -> bool:
        """Returns True if a run with this plan and these rows is already complete, and its model has not been deleted.

        Always False unless the plan resumes the last run.

        Args:
            plan: The plan of the run.
            data: Digest of the training rows.
        """
        if not plan.checkpoints.resume_last:
            return False
        # The trajectory is written only at the end of a run, so an unfinished run never compares equal.
        is_same = self.identity.data == data and not differences(self.identity.trajectory or {}, trajectory(plan))
        return is_same and (not plan.checkpoints.final_model or has_export(plan.output_dir))

    def check_rows(self, data: str) -> None:
        """Raises DataError if the checkpoint was trained on rows with another digest than `data`."""
        if self.data is not None and self.data != data:
            raise DataError(
                f"{self.checkpoint} was trained on other rows: expected digest {self.data[:12]}, got {data[:12]}. "
                "Restore the data, or start a new run in another training.output_dir."
            )

    def facts(self, plan: Plan, data: str) -> dict[str, Any]:
        """Returns the facts in the manifest of each checkpoint of the run."""
        return {
            "run_id": self.identity.run_id,
            "began": self.identity.began,
            "trajectory": trajectory(plan),
            "data": data,
        }


def find_resume_point(plan: Plan) -> ResumePoint:
    """Returns the point from which the plan's run resumes, or a new run if there is no checkpoint to resume from.

    Raises:
        ConfigError: The checkpoint is of a run with another trajectory; lists `key: old -> new`.
        OutputError: The checkpoints of a new run would mix with those of another run.
        StorageError: The checkpoint that the config names is not intact.
    """
    clear_unfinished(plan.output_dir)
    finish_export(plan.output_dir)
    identity = read_identity(plan.output_dir)
    checkpoint_and_facts = _checkpoint(plan, identity)
    if checkpoint_and_facts is None:
        _check_unoccupied(plan)
        # A run that was stopped before its first checkpoint keeps its id, and so does a complete one that is repeated.
        if identity is None or not plan.checkpoints.resume_last or _is_of_other_plan(identity, plan):
            identity = Identity(uuid4().hex, datetime.now().astimezone().isoformat())
        return ResumePoint(identity)
    checkpoint, facts = checkpoint_and_facts
    # Another setting that affects the weights would make a run that neither config can reproduce.
    if changed := differences(facts["trajectory"], trajectory(plan)):
        raise ConfigError(
            f"{checkpoint} is of a run with other settings:\n  "
            + "\n  ".join(changed)
            + "\nRestore them, or start a new run in another training.output_dir with model.model_name set to the "
            "checkpoint."
        )
    # A checkpoint of another directory has its own identity. Its run must not mix with a run in the output directory.
    if identity is None or identity.run_id != facts["run_id"]:
        identity = Identity(facts["run_id"], facts["began"])
        if checkpoint.resolve().parent != plan.output_dir.resolve():
            _check_unoccupied(plan)
    return ResumePoint(identity, checkpoint, facts["step"], facts["data"])


def claim(plan: Plan, resume_point: ResumePoint, data: str) -> ResumePoint:
    """Writes the run into the output directory as not complete, and returns its point to resume from.

    The run has a new id if the last one is complete with other training rows than those of digest `data`: a tracker
    would take its steps for those of the last one.

    Raises:
        OutputError: The model at the end of the run would mix with another one, or replace the one that is trained.
    """
    _check_export(plan)
    last = resume_point.identity
    # Without the result of a complete run.
    identity = Identity(last.run_id if last.data in (None, data) else uuid4().hex, last.began)
    write_identity(plan.output_dir, identity)
    return replace(resume_point, identity=identity)


def mark_finished(progress: Progress, resume_point: ResumePoint, data: str) -> None:
    """Writes the run into the output directory as complete, with its last metrics."""
    plan, identity = progress.plan, resume_point.identity
    metrics = {name: value for name, value in progress.metrics.items() if math.isfinite(value)}  # JSON has no others
    finished = Identity(identity.run_id, identity.began, progress.state.step, trajectory(plan), data, metrics=metrics)
    write_identity(plan.output_dir, finished)


def restore(run: Run, checkpoint: Path) -> None:
    """Restores a run in place from one of its checkpoints: weights, optimizer, schedule, random states, rows.

    The loop continues from there.
    """
    if run.plan.sharding is None:
        load_weights(run.model.inner, run.plan, checkpoint)
    else:
        load_divided_weights(run.model, run.plan, checkpoint)
    load_state(run, checkpoint)


def checkpoint_to_restore(run: Progress) -> Path | None:
    """Returns the intact checkpoint whose weights the final model has, None if they are those of the last step.

    Raises:
        StorageError: The checkpoint is no longer as it was saved.
    """
    checkpoint = best_checkpoint(run.plan, run.state)
    if checkpoint is None or run.state.best_step == run.state.step:
        return None
    read_facts(checkpoint)
    return checkpoint


def restore_best(run: Run) -> None:
    """Restores the weights of the best evaluation, if the plan saves its model. How far the run came is unchanged."""
    state = run.state
    if (checkpoint := checkpoint_to_restore(run)) is not None:
        restore(run, checkpoint)
        run.state = state


def _checkpoint(plan: Plan, identity: Identity | None) -> tuple[Path, dict[str, Any]] | None:
    """Returns the checkpoint to resume from with its facts: the named one, or a later one of the same run, or None.

    Raises:
        ConfigError: The config names a directory that does not exist.
    """
    run_id = identity.run_id if identity else None
    last = newest_good(plan.output_dir, run_id) if plan.checkpoints.resume_last else None
    named = plan.checkpoints.resume_from
    if named is None:
        return last
    if not named.is_dir():
        raise ConfigError(f"training.resume_from_checkpoint: no directory {named}")
    facts = read_facts(named)
    # A run that resumed from the named checkpoint and was stopped again continues where it was stopped.
    is_later = last is not None and last[1]["run_id"] == facts["run_id"] and last[1]["step"] > facts["step"]
    return last if is_later else (named, facts)


def _is_of_other_plan(identity: Identity, plan: Plan) -> bool:
    """Returns True if a run is complete, and its weights were determined by other settings than the plan's."""
    return identity.trajectory is not None and bool(differences(identity.trajectory, trajectory(plan)))


def _check_export(plan: Plan) -> None:
    """Raises OutputError if the final model would mix with another one in the output directory, or replace its base."""
    output_dir, elsewhere = plan.output_dir.resolve(), "; name another training.output_dir"
    for key, name in (("model.model_name", plan.model.name), ("model.adapter_model", plan.model.adapter)):
        source = expanded(name or "").resolve()
        if name and source in (output_dir, output_dir / "base", output_dir / "adapter"):
            raise OutputError(f"training.output_dir: {output_dir} holds {key}, which the run would replace{elsewhere}")
    if foreign := foreign_model_files(plan.output_dir):
        more = f" and {len(foreign) - _MAX_LISTED} more" if len(foreign) > _MAX_LISTED else ""
        raise OutputError(
            f"training.output_dir: {plan.output_dir} has files of a model that no run exported there, and they "
            f"would be mixed with the model of this run: {', '.join(foreign[:_MAX_LISTED])}{more}. Move them{elsewhere}"
        )
    if not plan.checkpoints.final_model and has_export(plan.output_dir):
        raise OutputError(
            f"training.output_dir: {plan.output_dir} has the model of an earlier run, which would stand beside the "
            "records of this one: set training.save_final_model: true, or name another training.output_dir"
        )


def _check_unoccupied(plan: Plan) -> None:
    """Raises OutputError if the output directory has a checkpoint, which would be of another run."""
    checkpoints = find_checkpoints(plan.output_dir)
    if not checkpoints:
        return
    _, newest = checkpoints[-1]
    resume = "" if plan.checkpoints.resume_last else "resume it with training.try_resume_from_last_checkpoint: true, "
    raise OutputError(
        f"training.output_dir: {newest} is of another run, whose checkpoints would be mixed with those of this one: "
        f"{resume}name another training.output_dir, or delete what is no longer needed"
    )
