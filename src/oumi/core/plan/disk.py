# SPDX-License-Identifier: Apache-2.0
"""Predicts the disk space that a run needs."""

from __future__ import annotations

import re
from dataclasses import replace

from oumi.core.configs.peft import ALL_LINEAR
from oumi.core.errors import OutputError
from oumi.core.plan.facts import ModelFacts
from oumi.core.plan.frozen import is_frozen
from oumi.core.plan.lora import LoraPlan, is_target
from oumi.core.plan.parts import CheckpointPlan, OptimizerPlan, Plan, StepsPlan
from oumi.core.plan.resources import DiskPlan, SavedSize
from oumi.core.plan.sharding import ShardingPlan

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number, by dtype."""
_STATES = {"adafactor": 0.0, "sgd": 0.0}
"""Size of an optimizer's state as a multiple of the trained weights. Any other optimizer has the two moments of Adam.
"""
_STATE_BYTES = {"adamw_8bit": 2.03, "paged_adamw_8bit": 2.03, "paged_adamw": 8.0, "paged_adamw_32bit": 8.0}
"""State bytes per weight, independent of its dtype: two moments; in 8 bits, each 256 of them share a scale."""
EMBEDDINGS = ("embed", "lm_head", "wte", "wpe")
"""Name parts of the weights outside the layers: embeddings and head."""


def plan_disk(
    steps: StepsPlan,
    checkpoints: CheckpointPlan,
    optimizer: OptimizerPlan,
    saved: SavedSize | None,
    free_bytes: int,
    sharding: ShardingPlan | None = None,
) -> DiskPlan:
    """Returns the bytes of a checkpoint and of the final model, None where the weights are unknown.

    The ranks of a divided model save their slices of the optimizer's state, those of a second copy nothing.
    """
    # A checkpoint has the state of the optimizer, the final model has the base weights if the adapter's mode says so.
    final_bytes = checkpoint_bytes = None
    temporary_bytes, num_checkpoints = 0, _num_checkpoints(steps, checkpoints)
    if saved is not None:
        final_bytes = saved.num_bytes + saved.base_bytes
        checkpoint_bytes = saved.num_bytes + state_bytes(optimizer, saved.trained_bytes, saved.number_bytes)
        makes_whole = checkpoints.final_model or (num_checkpoints and sharding and sharding.saves_whole_model)
        if sharding is not None and makes_whole:
            temporary_bytes = saved.num_bytes
        if checkpoints.final_model:  # layers with their adapter are merged in files
            temporary_bytes += saved.base_bytes
    return DiskPlan(
        checkpoint_bytes=checkpoint_bytes,
        num_checkpoints=num_checkpoints,
        final_bytes=final_bytes if checkpoints.final_model else 0,
        free_bytes=free_bytes,
        temporary_bytes=temporary_bytes,
    )


def state_bytes(optimizer: OptimizerPlan, trained_bytes: int, number_bytes: int) -> int:
    """Returns the size of an optimizer's state in bytes.

    Args:
        optimizer: The optimizer.
        trained_bytes: Bytes of the trained weights.
        number_bytes: Bytes of a single trained weight.
    """
    if optimizer.name in _STATE_BYTES:
        return int(trained_bytes / number_bytes * _STATE_BYTES[optimizer.name])
    # SGD keeps a buffer only with momentum.
    times = 1.0 if optimizer.name == "sgd" and optimizer.momentum else _STATES.get(optimizer.name, 2.0)
    return int(trained_bytes * times)


def with_saved_size(plan: Plan, saved: SavedSize) -> Plan:
    """Returns the plan updated for the actual weights of the model.

    Raises:
        OutputError: The run writes more than there is free space.
    """
    disk = plan_disk(plan.steps, plan.checkpoints, plan.optimizer, saved, plan.disk.free_bytes, plan.sharding)
    if disk.is_short:
        assert disk.total_bytes is not None, "the weights are known"
        raise OutputError(
            f"training.output_dir: the run writes {disk.total_bytes / 1e6:,.0f} MB and {plan.output_dir} has "
            f"{disk.free_bytes / 1e6:,.0f} MB free. Free some space, keep fewer checkpoints with "
            "training.save_total_limit, or save less often with training.save_steps"
        )
    return replace(plan, disk=disk)


def size_of_files(facts: ModelFacts, dtype: str, lora: LoraPlan | None) -> SavedSize | None:
    """Returns the size of what will be saved, None if the model's files do not show it.

    Args:
        facts: Facts about the model.
        dtype: Dtype of its weights in the run.
        lora: The adapter, None if all weights are trained.
    """
    if lora is None:
        # Without files of weights, the shape shows how many there are.
        num_parameters = facts.num_parameters or (facts.shape.num_parameters if facts.shape else None)
        if num_parameters is None:
            return None
        number_bytes = BYTES.get(dtype, 4)
        num_bytes = num_parameters * number_bytes
        return SavedSize(num_bytes, num_bytes, number_bytes=number_bytes)
    settings, targets = lora.settings, lora.settings["target_modules"]
    # These cases depend on PEFT or on the modules of the model, which are not loaded yet.
    odd = ("modules_to_save", "target_parameters", "trainable_token_indices", "use_dora")
    if targets is None or any(settings.get(name) for name in odd) or not facts.matrices:
        return None
    # An adapter is two matrices per target, rank x inputs and outputs x rank, in float32.
    adapter_bytes, trained_bytes = (
        4 * sum(settings["r"] * sum(shape) for shape in matrices.values())
        for matrices in (adapted_matrices(facts, lora), trained_matrices(facts, lora))
    )
    file_bytes = adapter_bytes * (2 if lora.taken_from_base else 1)  # with what it began with
    base_bytes = (facts.num_parameters or 0) * BYTES.get(dtype, 4)
    return SavedSize(file_bytes, trained_bytes, 0 if lora.save_mode == "ADAPTER_ONLY" else base_bytes)


def adapted_matrices(facts: ModelFacts, lora: LoraPlan) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the weights with an adapter, by their names in the files; targets must be given."""
    targets, excluded = lora.settings["target_modules"], lora.settings.get("exclude_modules")
    return {
        name: shape
        for name, shape in facts.matrices.items()
        if _is_adapted(module := name.removesuffix(".weight"), targets)
        and not (excluded and re.fullmatch(excluded, module))
    }


def trained_matrices(facts: ModelFacts, lora: LoraPlan) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the weights with an adapter that is trained, which those in frozen modules are not."""
    adapted = adapted_matrices(facts, lora)
    return {name: shape for name, shape in adapted.items() if not is_frozen(name.removesuffix(".weight"), lora.frozen)}


def _is_adapted(module: str, targets: list[str] | str) -> bool:
    if targets == ALL_LINEAR:  # which leaves the head out
        return not any(part in module for part in EMBEDDINGS)
    return is_target(targets, module)


def _num_checkpoints(steps: StepsPlan, checkpoints: CheckpointPlan) -> int:
    """Returns how many checkpoints exist at the same time, at most."""
    # That of the best evaluation, and while it is replaced also the one before it.
    extra = 2 if checkpoints.best is not None and checkpoints.best.restores else 0
    return _num_periodic(steps, checkpoints) + extra


def _num_periodic(steps: StepsPlan, checkpoints: CheckpointPlan) -> int:
    every = checkpoints.every_steps or (steps.per_epoch if checkpoints.every_epoch else None)
    if not every:
        return 0
    # One more than are kept: a new checkpoint is published before the oldest is deleted.
    if steps.total is None:
        return 1 if checkpoints.keep is None else checkpoints.keep + 1
    num_saved = steps.total // every
    return num_saved if checkpoints.keep is None else min(num_saved, checkpoints.keep + 1)
