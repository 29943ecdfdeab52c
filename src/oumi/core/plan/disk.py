# SPDX-License-Identifier: Apache-2.0
"""Disk that a run needs, before it starts."""

from __future__ import annotations

from oumi.core.plan.parts import CheckpointPlan, DiskPlan, Facts, StepsPlan

_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_ADAM_BYTES = 8
"""Two float32 moments a trained parameter."""


def plan_disk(steps: StepsPlan, checkpoints: CheckpointPlan, facts: Facts, keeps_one: bool) -> DiskPlan:
    """Returns the bytes of a checkpoint and of all that stand together.

    Args:
        steps: How many optimizer steps there are, when that is known.
        checkpoints: How often is saved, and how many are kept.
        facts: Size of the model, free space.
        keeps_one: While a new checkpoint is published the oldest still stands.
    """
    trained = facts.model.num_trainable or facts.model.num_parameters
    weight_bytes = _BYTES["float32"] if facts.device == "cpu" else _BYTES.get(facts.model.stored_dtype or "", 4)
    model_bytes = None if trained is None else trained * weight_bytes
    return DiskPlan(
        checkpoint_bytes=None if model_bytes is None or trained is None else model_bytes + _ADAM_BYTES * trained,
        num_checkpoints=_count(steps, checkpoints, keeps_one),
        final_bytes=model_bytes if checkpoints.final_model else 0,
        free_bytes=facts.free_bytes,
    )


def _count(steps: StepsPlan, checkpoints: CheckpointPlan, keeps_one: bool) -> int:
    """Returns how many checkpoints stand at the same time, at most."""
    every = checkpoints.every_steps or (steps.per_epoch if checkpoints.every_epoch else None)
    if not every:
        return 0
    if steps.total is None:
        return checkpoints.keep + keeps_one if checkpoints.keep is not None else 1
    saved = steps.total // every
    return saved if checkpoints.keep is None else min(saved, checkpoints.keep + keeps_one)
