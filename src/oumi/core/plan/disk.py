# SPDX-License-Identifier: Apache-2.0
"""Disk that a run needs, before it starts."""

from __future__ import annotations

from dataclasses import replace

from oumi.core.errors import OutputError
from oumi.core.plan.facts import ModelFacts
from oumi.core.plan.parts import CheckpointPlan, DiskPlan, LoraPlan, OptimizerPlan, Plan, SavedSize, StepsPlan

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Of a number."""
_STATES = {"adafactor": 0.0, "sgd": 0.0}
"""Size of an optimizer's state, as a multiple of the trained weights; Adam's two moments by default."""
_STATE_BYTES = {"adamw_8bit": 2.03, "paged_adamw_8bit": 2.03, "paged_adamw": 8.0, "paged_adamw_32bit": 8.0}
"""Bytes of a weight's state whatever its dtype: two moments, in 8 bits with a scale for each 256 of them."""
EMBEDDINGS = ("embed", "lm_head", "wte", "wpe")
"""Parts of the names of weights that stand outside the layers."""


def plan_disk(
    steps: StepsPlan, checkpoints: CheckpointPlan, optimizer: OptimizerPlan, saved: SavedSize | None, free_bytes: int
) -> DiskPlan:
    """Returns the bytes of a checkpoint and of all that stand together; None where the weights are not known yet."""
    final_bytes = checkpoint_bytes = None
    if saved is not None:
        final_bytes = saved.num_bytes + saved.base_bytes
        checkpoint_bytes = saved.num_bytes + state_bytes(optimizer, saved.trained_bytes, saved.number_bytes)
    return DiskPlan(
        checkpoint_bytes=checkpoint_bytes,
        num_checkpoints=_count(steps, checkpoints),
        final_bytes=final_bytes if checkpoints.final_model else 0,
        free_bytes=free_bytes,
    )


def state_bytes(optimizer: OptimizerPlan, trained_bytes: int, number_bytes: int) -> int:
    """Returns the size of an optimizer's state.

    Args:
        optimizer: Which one.
        trained_bytes: Of the weights that it moves.
        number_bytes: Of one number among them.
    """
    if optimizer.name in _STATE_BYTES:
        return int(trained_bytes / number_bytes * _STATE_BYTES[optimizer.name])
    times = 1.0 if optimizer.name == "sgd" and optimizer.momentum else _STATES.get(optimizer.name, 2.0)
    return int(trained_bytes * times)


def with_saved_size(plan: Plan, saved: SavedSize) -> Plan:
    """Returns the same plan for the weights that the model really has.

    Raises:
        OutputError: More has to be written than there is room for.
    """
    disk = plan_disk(plan.steps, plan.checkpoints, plan.optimizer, saved, plan.disk.free_bytes)
    if disk.is_short:
        assert disk.total_bytes is not None, "the weights are known"
        raise OutputError(
            f"training.output_dir: the run writes {disk.total_bytes / 1e6:,.0f} MB and {plan.output_dir} has "
            f"{disk.free_bytes / 1e6:,.0f} MB free. Free some, keep fewer checkpoints with training.save_total_limit, "
            "or save less often with training.save_steps"
        )
    return replace(plan, disk=disk)


def saved_size_of_files(facts: ModelFacts, dtype: str, lora: LoraPlan | None) -> SavedSize | None:
    """Returns what will be saved as far as the model's files tell, None where they do not.

    Args:
        facts: Of the model.
        dtype: Of its weights in the run.
        lora: The adapter, if one is trained; its matrices are rank x in and out x rank, in float32.
    """
    if lora is None:
        if facts.num_parameters is None:
            return None
        number_bytes = BYTES.get(dtype, 4)
        num_bytes = facts.num_parameters * number_bytes
        return SavedSize(num_bytes, num_bytes, number_bytes=number_bytes)
    settings, targets = lora.settings, lora.settings["target_modules"]
    if targets is None or settings["modules_to_save"] or settings["target_parameters"] or not facts.matrices:
        return None
    adapted = [shape for name, shape in facts.matrices.items() if _is_adapted(name, targets)]
    adapter_bytes = 4 * sum(settings["r"] * sum(shape) for shape in adapted)
    base_bytes = (facts.num_parameters or 0) * BYTES.get(dtype, 4)
    return SavedSize(adapter_bytes, adapter_bytes, 0 if lora.save_mode == "ADAPTER_ONLY" else base_bytes)


def _is_adapted(name: str, targets: list[str] | str) -> bool:
    module = name.removesuffix(".weight")
    if isinstance(targets, str):
        return not any(part in module for part in EMBEDDINGS)
    return any(module == target or module.endswith(f".{target}") for target in targets)


def _count(steps: StepsPlan, checkpoints: CheckpointPlan) -> int:
    """Returns how many checkpoints stand at the same time, at most: a new one is published before the oldest goes."""
    every = checkpoints.every_steps or (steps.per_epoch if checkpoints.every_epoch else None)
    if not every:
        return 0
    if steps.total is None:
        return 1 if checkpoints.keep is None else checkpoints.keep + 1
    saved = steps.total // every
    return saved if checkpoints.keep is None else min(saved, checkpoints.keep + 1)
