# SPDX-License-Identifier: Apache-2.0
"""Disk that a run needs, before it starts."""

from __future__ import annotations

from dataclasses import replace

from oumi.core.errors import OutputError
from oumi.core.plan.facts import ModelFacts
from oumi.core.plan.parts import CheckpointPlan, DiskPlan, LoraPlan, OptimizerPlan, Plan, Saved, StepsPlan

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Of a number."""
_STATES = {"adafactor": 0.0, "sgd": 0.0, "adamw_8bit": 0.5, "paged_adamw_8bit": 0.5}
"""Size of an optimizer's state, as a multiple of the trained weights in float32; Adam's two moments by default."""
_EMBEDDINGS = ("embed", "lm_head", "wte", "wpe")


def plan_disk(
    steps: StepsPlan, checkpoints: CheckpointPlan, optimizer: OptimizerPlan, saved: Saved | None, free_bytes: int
) -> DiskPlan:
    """Returns the bytes of a checkpoint and of all that stand together; None where the weights are not known yet."""
    final_bytes = None if saved is None else saved.num_bytes + saved.base_bytes
    return DiskPlan(
        checkpoint_bytes=None if saved is None else saved.num_bytes + int(saved.trained_bytes * states_of(optimizer)),
        num_checkpoints=_count(steps, checkpoints),
        final_bytes=final_bytes if checkpoints.final_model else 0,
        free_bytes=free_bytes,
    )


def states_of(optimizer: OptimizerPlan) -> float:
    """Returns the size of an optimizer's state, as a multiple of the weights that it moves."""
    return 1.0 if optimizer.name == "sgd" and optimizer.momentum else _STATES.get(optimizer.name, 2.0)


def with_saved(plan: Plan, saved: Saved) -> Plan:
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


def saved_of_files(facts: ModelFacts, dtype: str, lora: LoraPlan | None) -> Saved | None:
    """Returns what will be saved as far as the model's files tell, None where they do not.

    Args:
        facts: Of the model.
        dtype: Of its weights in the run.
        lora: The adapter, if one is trained; its matrices are rank x in and out x rank, in float32.
    """
    if lora is None:
        if facts.num_parameters is None:
            return None
        num_bytes = facts.num_parameters * BYTES.get(dtype, 4)
        return Saved(num_bytes, num_bytes)
    settings, targets = lora.settings, lora.settings["target_modules"]
    if targets is None or settings["modules_to_save"] or settings["target_parameters"] or not facts.matrices:
        return None
    adapted = [shape for name, shape in facts.matrices.items() if _is_adapted(name, targets)]
    adapter_bytes = 4 * sum(settings["r"] * sum(shape) for shape in adapted)
    base_bytes = (facts.num_parameters or 0) * BYTES.get(dtype, 4)
    return Saved(adapter_bytes, adapter_bytes, 0 if lora.save_mode == "ADAPTER_ONLY" else base_bytes)


def _is_adapted(name: str, targets: list[str] | str) -> bool:
    module = name.removesuffix(".weight")
    if isinstance(targets, str):
        return not any(part in module for part in _EMBEDDINGS)
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
