# SPDX-License-Identifier: Apache-2.0
"""Renders a plan as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from oumi.core.plan.choices import NUM_RECOMPUTED
from oumi.core.plan.memory import num_recomputed
from oumi.core.plan.parts import Plan
from oumi.core.system.redact import redact


def plan_json(plan: Plan) -> dict[str, Any]:
    """Returns the plan as JSON values, with secrets masked."""
    # The config is left out: a run writes it to a file of its own.
    record = {field.name: _plain(getattr(plan, field.name)) for field in fields(plan) if field.name != "config"}
    steps = plan.steps
    record["steps"] |= {
        "rows_per_step": steps.rows_per_step,
        "per_epoch": steps.per_epoch,
        "total": steps.total,
    }
    if plan.memory is not None:
        record["memory"] |= {"total": plan.memory.total, "is_short": plan.memory.is_short}
    return dict(redact(record))


def plan_text(plan: Plan) -> str:
    """Returns the plan as aligned lines, then its notes."""
    # The usual method and no evaluation get no line.
    settings = "".join(f", {name} {value}" for name, value in plan.method.settings.items())
    method = "" if plan.method.name == "next_token" else f"{plan.method.name}{settings}"
    evaluation = "after each epoch" if plan.evaluation.every_epoch else ""
    if plan.evaluation.every_steps:
        evaluation = f"every {plan.evaluation.every_steps} steps"
    # In the order of this dict; a line without a value is left out.
    lines = {
        "model": _model(plan),
        "data": _data(plan),
        "method": method,
        "steps": _steps(plan),
        "optimizer": _optimizer(plan),
        "precision": plan.precision.reason,
        "device": f"{plan.device}, {plan.device_name}",
        "memory": _memory(plan),
        "recompute": _recompute(plan),
        "evaluation": evaluation,
        "checkpoints": _checkpoints(plan),
        "output": str(plan.output_dir),
    }
    text = [f"  {name:<12} {value}" for name, value in lines.items() if value]
    return "\n".join(["Plan", *text, *(f"  ! {note}" for note in plan.notes)])


def _model(plan: Plan) -> str:
    how = "" if plan.model.pretrained else ", random weights"
    lora = f", LoRA rank {plan.lora.settings['r']}" if plan.lora else ""
    length = f", up to {plan.model.max_length} tokens a row" if plan.model.max_length else ""
    return f"{plan.model.name}, {plan.model.dtype}{how}{lora}{length}"


def _data(plan: Plan) -> str:
    names = ", ".join(data.dataset_path or data.dataset_name for data in plan.data.train.datasets)
    rows = "rows counted when read" if plan.steps.num_rows is None else f"{plan.steps.num_rows:,} rows"
    rows = "streamed" if plan.data.train.stream else rows
    return f"{names}: {rows}, trained on {plan.data.train_on.replace('_', ' ')}"


def _steps(plan: Plan) -> str:
    steps = plan.steps
    total = "counted when read" if steps.total is None else f"{steps.total:,}"
    auto = " (auto)" if plan.config.training.per_device_train_batch_size == "auto" else ""
    processes = "process" if steps.world_size == 1 else "processes"
    size = f"{steps.micro_batch_rows} rows{auto} x {steps.accumulation} x {steps.world_size} {processes}"
    epochs = f"{steps.num_epochs} epochs" if steps.max_steps is None else f"max_steps {steps.max_steps}"
    return f"{total} ({epochs}) of {steps.rows_per_step} rows = {size}"


def _optimizer(plan: Plan) -> str:
    # `warmup_steps` overrides `warmup_ratio`, even if it is 0.
    warmup = plan.schedule.warmup_steps
    ratio = plan.schedule.warmup_ratio
    ramp = f", warmup {warmup} steps" if warmup else f", warmup {ratio:.0%}" if ratio and warmup is None else ""
    norm = plan.optimizer.max_grad_norm
    clip = f", gradients clipped at {norm:g}" if norm else ", no clipping"
    return f"{plan.optimizer.name}, learning rate {plan.optimizer.learning_rate:g} {plan.schedule.name}{ramp}{clip}"


def _memory(plan: Plan) -> str:
    memory = plan.memory
    if memory is None:
        # Memory of other trainers is never predicted, so a line would say nothing.
        return "not known before the run" if plan.is_native else ""
    parts = {name: getattr(memory, name) for name in ("weights", "gradients", "optimizer", "activations", "loss")}
    listed = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in {**parts, "process": memory.process}.items())
    most = "up to " if memory.is_bound else ""
    return f"{most}{memory.total / 1e9:,.1f} GB of {memory.available / 1e9:,.0f} GB: {listed}"


def _recompute(plan: Plan) -> str:
    settings, training = plan.gradient_checkpointing, plan.config.training
    if not training.enable_gradient_checkpointing:
        return ""
    # Without the number of layers, only a number in the config can be shown.
    if plan.shape is None:
        return (
            f"the first {settings[NUM_RECOMPUTED]} layers" if settings and NUM_RECOMPUTED in settings else "all layers"
        )
    auto = " (auto)" if training.gradient_checkpointing_kwargs.get(NUM_RECOMPUTED) == "auto" else ""
    return f"{num_recomputed(settings, plan.shape.layers)} of {plan.shape.layers} layers{auto}"


def _checkpoints(plan: Plan) -> str:
    saving = plan.checkpoints
    when = f"every {saving.every_steps} steps" if saving.every_steps else ""
    when = "after each epoch" if saving.every_epoch else when or "none during training"
    kept = f", the last {saving.keep} kept" if saving.keep is not None else ""
    disk = plan.disk
    if disk.checkpoint_bytes is None:
        return f"{when}{kept}; {_size(disk.free_bytes)} free"
    total = disk.checkpoint_bytes * disk.num_checkpoints + (disk.final_bytes or 0)
    each = f"; {disk.num_checkpoints} x {_size(disk.checkpoint_bytes)}" if disk.num_checkpoints else ""
    return f"{when}{kept}{each}; {_size(total)} in all, {_size(disk.free_bytes)} free"


def _size(num_bytes: int) -> str:
    value = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "model_dump"):  # a section of the config
        return value.model_dump(mode="json")
    return value
