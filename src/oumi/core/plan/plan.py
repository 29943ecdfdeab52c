# SPDX-License-Identifier: Apache-2.0
"""Makes a plan from a config: a pure function that decides every value of the run. Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from oumi.core.configs import TrainingConfig
from oumi.core.plan import adapters, sections
from oumi.core.plan.accelerate import plan_accelerate
from oumi.core.plan.disk import plan_disk, size_of_files
from oumi.core.plan.facts import Facts
from oumi.core.plan.fitting import memory_notes, with_memory
from oumi.core.plan.notes import argument_notes, plan_notes
from oumi.core.plan.parts import LossPlan, Plan
from oumi.core.plan.sharding import plan_sharding
from oumi.core.plan.trainer_kwargs import as_run


def make_plan(config: TrainingConfig, facts: Facts, world_size: int = 1, ranks_per_node: int = 1) -> Plan:
    """Returns what a run of `config` will do on the machine, data and model that `facts` describe."""
    notes_on_arguments, config = argument_notes(config), as_run(config)  # as_run() drops the arguments that are noted
    training = config.training
    output_dir = Path(training.output_dir)
    dtype, precision = sections.plan_precision(config, facts)
    steps = sections.plan_steps(training, world_size, facts.num_rows, ranks_per_node)
    checkpoints = sections.plan_checkpoints(training)
    optimizer = sections.plan_optimizer(training)
    lora = adapters.plan_lora(config) if training.use_peft else None
    model = sections.plan_model(config, dtype, facts.model, adapters.plan_quantization(config, facts, dtype))
    sharding = plan_sharding(config, world_size, ranks_per_node, dtype, facts.has_bf16, not (lora or model.adapter))
    disk = plan_disk(steps, checkpoints, optimizer, size_of_files(facts.model, dtype, lora), facts.free_bytes, sharding)
    plan = Plan(
        config=config,
        trainer=training.trainer_type.name,
        method=sections.plan_method(config, model, steps),
        output_dir=output_dir,
        run_name=training.safe_run_name,
        device=facts.device,
        device_name=facts.device_name,
        seed=training.seed,
        deterministic=training.use_deterministic or training.full_determinism,
        model=model,
        lora=lora,
        sharding=sharding,
        accelerate=plan_accelerate(config, facts, world_size, ranks_per_node, dtype),
        data=sections.plan_data(config),
        steps=steps,
        loss=LossPlan(training.label_smoothing, training.z_loss),
        optimizer=optimizer,
        schedule=sections.plan_schedule(training),
        precision=precision,
        speed=sections.plan_speed(config, dtype, precision, facts),
        gradient_checkpointing=sections.plan_gradient_checkpointing(training),
        empty_cache_every=training.empty_device_cache_steps,
        checkpoints=checkpoints,
        evaluation=sections.plan_evaluation(config),
        logs=sections.plan_logs(config, output_dir),
        disk=disk,
        shape=facts.model.shape,
        memory=None,
        least_memory=None,
        notes=notes_on_arguments,
    )
    plan = with_memory(plan, facts)
    return replace(plan, notes=(*plan.notes, *plan_notes(plan, facts), *memory_notes(plan)))
