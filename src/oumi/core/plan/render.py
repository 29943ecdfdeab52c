# SPDX-License-Identifier: Apache-2.0
"""Renders a plan as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from oumi.core.plan.choices import NUM_RECOMPUTED
from oumi.core.plan.communication import ASSUMED_EFFICIENCY, plan_communication
from oumi.core.plan.parts import Plan
from oumi.core.plan.step_sizes import num_recomputed
from oumi.core.system.devices import find_device
from oumi.core.system.peaks import nominal_flops
from oumi.core.system.redact import redact

_PURPOSES = ("weights", "gradients", "optimizer", "gathered", "activations", "loss", "process")
"""Fields of a MemoryPlan, in the order of the text."""


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
    for name in ("memory", "least_memory"):
        if (memory := getattr(plan, name)) is not None:
            record[name] |= {"total": memory.total, "is_short": memory.is_short}
    if (sent := plan_communication(plan)) is not None:
        record["communication"] = {**_plain(sent), "total_bytes": sent.total_bytes, "share": sent.share}
    return dict(redact(record))


def plan_text(plan: Plan) -> str:
    """Returns the plan as aligned lines, then its notes."""
    # The usual method and no evaluation get no line.
    method = "" if plan.method.name == "next_token" else _method(plan)
    evaluation = "after each epoch" if plan.evaluation.every_epoch else ""
    if plan.evaluation.every_steps:
        evaluation = f"every {plan.evaluation.every_steps} steps"
    if plan.checkpoints.best is not None:
        evaluation += f"; {plan.checkpoints.best.text}"
    # In the order of this dict; a line without a value is left out.
    lines = {
        "model": _model(plan),
        "data": _data(plan),
        "method": method,
        "steps": _steps(plan),
        "optimizer": _optimizer(plan),
        "precision": plan.precision.reason,
        "device": f"{plan.device}, {plan.device_name}",
        "ranks": _ranks(plan),
        "sent": _communication(plan),
        "assumed": _assumptions(plan),
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
    if (quantization := plan.model.quantization) is not None:
        lora = f"{lora} on weights quantized to {quantization.number_format}"
    length = f", up to {plan.model.max_length} tokens a row" if plan.model.max_length else ""
    return f"{plan.model.name}, {plan.model.dtype}{how}{lora}{length}"


def _method(plan: Plan) -> str:
    # What most runs set first, then all that is not the default.
    shown = {"beta", "loss_type", "simpo_gamma"}
    defaults = {name: field.default for name, field in plan.method.spec.settings.model_fields.items()}
    settings = [
        f"{name} {', '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in plan.method.settings.items()
        if name in shown or value != defaults.get(name)
    ]
    return ", ".join([plan.method.name, *settings])


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


def _ranks(plan: Plan) -> str:
    """Returns how many ranks there are, and what each of them has of the model."""
    world_size, sharding = plan.steps.world_size, plan.sharding
    if world_size == 1:
        return ""
    num_nodes = world_size // plan.steps.ranks_per_node
    place = f"{world_size} on {num_nodes} nodes of {plan.steps.ranks_per_node}" if num_nodes > 1 else f"{world_size}"
    if sharding is None:
        return f"{place}, the whole model on each"
    copies = "one copy" if sharding.num_replicas == 1 else f"each of {sharding.num_replicas} copies"
    return f"{place}, {copies} of the model divided over {sharding.num_shards}"


def _communication(plan: Plan) -> str:
    sent = plan_communication(plan)
    if sent is None:
        return ""
    parts = {
        "weights": sent.gathered_bytes, "gradients": sent.reduced_bytes, "between copies": sent.between_copies_bytes,
    }  # fmt: skip
    listed = ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size)
    time = ""
    if sent.seconds is not None:
        time = f"; {sent.seconds:.2g} s"
    if sent.share is not None:
        most = "up to " if plan.memory is None or plan.memory.is_bound else ""
        time += f", {sent.share:.0%} of a step if nothing is computed meanwhile ({most}{sent.compute_seconds:.2g} s)"
    return f"{_size(sent.total_bytes)} by each rank in a step: {listed}{time}"


def _assumptions(plan: Plan) -> str:
    """Returns what the time of the communication depends on."""
    device, speed = find_device(plan.device_name), nominal_flops(plan.device_name)
    if device is None or plan_communication(plan) is None:
        return ""
    lines = [f"{plan.steps.ranks_per_node} x {device.name} a node"]
    if plan.steps.ranks_per_node > 1:
        lines.append(f"{device.link} {device.link_bandwidth / 1e9:g} GB/s each way")
    if plan.steps.world_size > plan.steps.ranks_per_node:
        lines.append(f"{device.network_bandwidth * 8 / 1e9:g} Gb/s a GPU between nodes")
    if speed is not None:
        lines.append(f"{ASSUMED_EFFICIENCY:.0%} of {speed / 1e12:g} TFLOP/s")
    return ", ".join(lines)


def _memory(plan: Plan) -> str:
    memory = plan.memory or plan.least_memory
    if memory is None:
        return "not known before the run"
    sizes = {name: getattr(memory, name) for name in _PURPOSES}
    listed = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in sizes.items() if size)
    limit = "at least " if memory.uncounted else "up to " if memory.is_bound else ""
    each = " a rank" if plan.steps.world_size > 1 else ""
    host = f"; {memory.on_host / 1e9:,.1f} GB in the memory of the host" if memory.on_host else ""
    rest = f"; without {memory.uncounted}" if memory.uncounted else ""
    return f"{limit}{memory.total / 1e9:,.1f} GB of {memory.available / 1e9:,.0f} GB{each}: {listed}{host}{rest}"


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
    each = f"; {disk.num_checkpoints} x {_size(disk.checkpoint_bytes)}" if disk.num_checkpoints else ""
    if each and plan.sharding is not None:
        each += f" with state in {plan.sharding.num_shards} files"
    temporary = f" with {_size(disk.temporary_bytes)} while saving" if disk.temporary_bytes else ""
    return f"{when}{kept}{each}; {_size(disk.total_bytes or 0)} in all{temporary}, {_size(disk.free_bytes)} free"


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
