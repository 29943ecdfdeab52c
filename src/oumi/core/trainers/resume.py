# SPDX-License-Identifier: Apache-2.0
"""Whether a run begins, goes on from a checkpoint or is complete already, and whether it may."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from oumi.core.checkpoint.identity import Identity, new_run_id, read_identity, write_identity
from oumi.core.checkpoint.state import load_state
from oumi.core.checkpoint.store import clear_unfinished, find_checkpoints, newest_good, read_facts
from oumi.core.errors import ConfigError, DataError, OutputError
from oumi.core.models.build import load_weights
from oumi.core.plan.parts import Plan
from oumi.core.plan.trajectory import differences, trajectory
from oumi.core.run import Progress, Run


@dataclass(frozen=True)
class ResumePoint:
    """Where a run stands before its first step."""

    identity: Identity
    checkpoint: Path | None = None
    step: int = 0
    data: str | None = None
    """Digest of the rows that the checkpoint was trained on."""

    @property
    def began(self) -> datetime:
        """Returns when the run's first process began: the date of its chat templates, also when it is resumed."""
        return datetime.fromisoformat(self.identity.began)

    def is_finished(self, plan: Plan, data: str) -> bool:
        """Returns whether this very run is to go on, and is complete on these very rows, its model still there."""
        if not plan.checkpoints.resume_last:
            return False
        same = self.identity.data == data and not differences(self.identity.trajectory or {}, trajectory(plan))
        return same and (not plan.checkpoints.final_model or any(plan.output_dir.glob("*.safetensors")))

    def check_rows(self, data: str) -> None:
        """Raises DataError if the checkpoint was trained on other rows than those of the digest `data`."""
        if self.data is not None and self.data != data:
            raise DataError(
                f"{self.checkpoint} was trained on other rows: their digest was {self.data[:12]}, it is {data[:12]}. "
                "Bring the data back, or start anew in another training.output_dir."
            )

    def facts(self, plan: Plan, data: str) -> dict[str, Any]:
        """Returns what each checkpoint of the run says of itself."""
        return {
            "run_id": self.identity.run_id,
            "began": self.identity.began,
            "trajectory": trajectory(plan),
            "data": data,
        }


def find_resume_point(plan: Plan) -> ResumePoint:
    """Returns from where the plan's run goes on, or a new run if there is nothing to go on from.

    Raises:
        ConfigError: The checkpoint is of a run with another trajectory; lists `key: old -> new`.
        OutputError: The checkpoints of a new run would mix with those of another.
        StorageError: The checkpoint that the config names is not intact.
    """
    clear_unfinished(plan.output_dir)
    identity = read_identity(plan.output_dir)
    checkpoint_and_facts = _checkpoint(plan, identity)
    if checkpoint_and_facts is None:
        _check_unoccupied(plan)
        goes_on = identity is not None and plan.checkpoints.resume_last
        return ResumePoint(identity if identity and goes_on else _new_identity())
    checkpoint, facts = checkpoint_and_facts
    _check_same_run(checkpoint, facts, plan)
    if identity is None or identity.run_id != facts["run_id"]:
        identity = Identity(facts["run_id"], facts["began"])
        if checkpoint.resolve().parent != plan.output_dir.resolve():
            _check_unoccupied(plan)
    return ResumePoint(identity, checkpoint, facts["step"], facts["data"])


def claim(plan: Plan, resume_point: ResumePoint) -> None:
    """Makes the output directory belong to the run, which is not complete yet."""
    write_identity(plan.output_dir, Identity(resume_point.identity.run_id, resume_point.identity.began))


def mark_finished(progress: Progress, resume_point: ResumePoint, data: str) -> None:
    """Notes that the run is complete, and what it measured last."""
    plan, begun = progress.plan, resume_point.identity
    finished = Identity(
        begun.run_id, begun.began, progress.state.step, trajectory(plan), data, metrics=dict(progress.metrics)
    )
    write_identity(plan.output_dir, finished)


def restore(run: Run, checkpoint: Path) -> None:
    """Puts a run to where a checkpoint of it was saved, in place: weights, optimizer, schedule, random numbers, rows.

    The loop goes on from there.
    """
    load_weights(run.model.inner, run.plan, checkpoint)
    load_state(run, checkpoint)


def _new_identity() -> Identity:
    return Identity(new_run_id(), datetime.now().astimezone().isoformat())


def _checkpoint(plan: Plan, identity: Identity | None) -> tuple[Path, dict[str, Any]] | None:
    """Returns the checkpoint that the config names, or a later one of the run that went on from it."""
    run_id = identity.run_id if identity else None
    last = newest_good(plan.output_dir, run_id) if plan.checkpoints.resume_last else None
    named = plan.checkpoints.resume_from
    if named is None:
        return last
    if not named.is_dir():
        raise ConfigError(f"training.resume_from_checkpoint: no directory {named}")
    facts = read_facts(named)
    is_later = last is not None and last[1]["run_id"] == facts["run_id"] and last[1]["step"] > facts["step"]
    return last if is_later else (named, facts)


def _check_unoccupied(plan: Plan) -> None:
    checkpoints = find_checkpoints(plan.output_dir)
    if not checkpoints:
        return
    _, newest = checkpoints[-1]
    go_on = "" if plan.checkpoints.resume_last else "go on with it by training.try_resume_from_last_checkpoint: true, "
    raise OutputError(
        f"training.output_dir: {newest} is of another run, and the checkpoints of two would be mixed: "
        f"{go_on}name another training.output_dir, or delete what is no longer needed"
    )


def _check_same_run(checkpoint: Path, facts: Mapping[str, Any], plan: Plan) -> None:
    changed = differences(facts["trajectory"], trajectory(plan))
    if changed:
        raise ConfigError(
            f"{checkpoint} is of a run with other settings, so going on from it would be neither run:\n  "
            + "\n  ".join(changed)
            + "\nSet them back, or start anew in another training.output_dir with model.model_name at the checkpoint."
        )
