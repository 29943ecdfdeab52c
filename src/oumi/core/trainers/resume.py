# SPDX-License-Identifier: Apache-2.0
"""From which checkpoint a run goes on, and whether it may."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oumi.core.checkpoint.identity import Identity, new_run_id, read_identity, write_identity
from oumi.core.checkpoint.store import clear_unfinished, find_checkpoints, newest_good, read_facts
from oumi.core.errors import ConfigError, DataError
from oumi.core.log import logger
from oumi.core.plan.parts import Plan
from oumi.core.plan.trajectory import differences, trajectory

_FACTS = "oumi_run.json"


@dataclass(frozen=True)
class Resume:
    """Where a run stands before its first step."""

    run_id: str
    checkpoint: Path | None
    step: int


def find_resume(plan: Plan, data_fingerprint: str) -> Resume:
    """Returns the checkpoint from which the plan's run goes on, or a fresh run if there is none.

    Raises:
        ConfigError: The checkpoint is of a run with another trajectory; lists `key: old -> new`.
        DataError: The rows are not those that the checkpoint was trained on.
        StorageError: The checkpoint that the config names is not intact.
    """
    clear_unfinished(plan.output_dir)
    found = _checkpoint(plan)
    if found is None:
        run_id = new_run_id()
        write_identity(plan.output_dir, Identity(run_id))
        return Resume(run_id, None, 0)
    checkpoint, facts = found
    _check_same_run(checkpoint, facts, plan, data_fingerprint)
    write_identity(plan.output_dir, Identity(facts["run_id"]))
    return Resume(facts["run_id"], checkpoint, facts["step"])


def finished_step(plan: Plan) -> int | None:
    """Returns the last step if the very run of this plan is complete already and is to be resumed."""
    identity = read_identity(plan.output_dir) if plan.checkpoints.resume_last else None
    if identity is None or identity.finished_step is None:
        return None
    return identity.finished_step if identity.trajectory == trajectory(plan) else None


def mark_finished(plan: Plan, run_id: str, step: int) -> None:
    """Notes that the run is complete."""
    write_identity(plan.output_dir, Identity(run_id, step, trajectory(plan)))


def checkpoint_facts(plan: Plan, run_id: str, data_fingerprint: str) -> dict[str, Any]:
    """Returns what each checkpoint of a run says of itself."""
    return {"run_id": run_id, "trajectory": trajectory(plan), "data": data_fingerprint}


def mark_complete(checkpoint: Path, facts: Mapping[str, Any]) -> None:
    """Notes in a checkpoint that another trainer wrote that it is whole, and of which run."""
    unfinished = checkpoint / f"{_FACTS}.tmp"
    unfinished.write_text(json.dumps(facts, indent=1) + "\n")
    unfinished.replace(checkpoint / _FACTS)


def newest_complete(plan: Plan, data_fingerprint: str) -> Path | None:
    """Returns the newest checkpoint of another trainer that was written whole, None if there is none.

    Raises:
        ConfigError: It is of a run with another trajectory. DataError: It was trained on other rows.
    """
    for _, checkpoint in sorted(find_checkpoints(plan.output_dir), reverse=True):
        if (checkpoint / _FACTS).is_file():
            _check_same_run(checkpoint, json.loads((checkpoint / _FACTS).read_text()), plan, data_fingerprint)
            return checkpoint
        logger.warning("%s was not written whole; an older checkpoint is used", checkpoint)
    return None


def _checkpoint(plan: Plan) -> tuple[Path, dict[str, Any]] | None:
    named = plan.checkpoints.resume_from
    if named is not None:
        if not named.is_dir():
            raise ConfigError(f"training.resume_from_checkpoint: no directory {named}")
        return named, read_facts(named)
    identity = read_identity(plan.output_dir)
    if not plan.checkpoints.resume_last or identity is None:
        return None
    return newest_good(plan.output_dir, identity.run_id)


def _check_same_run(checkpoint: Path, facts: Mapping[str, Any], plan: Plan, data_fingerprint: str) -> None:
    changed = differences(facts["trajectory"], trajectory(plan))
    if changed:
        raise ConfigError(
            f"{checkpoint} is of a run with other settings, so going on from it would be neither run:\n  "
            + "\n  ".join(changed)
            + "\nSet them back, or start anew in another training.output_dir with model.model_name at the checkpoint."
        )
    if facts["data"] != data_fingerprint:
        raise DataError(
            f"{checkpoint} was trained on other rows: "
            f"their digest was {facts['data'][:12]}, it is {data_fingerprint[:12]}. "
            "Bring the data back, or start anew in another training.output_dir."
        )
