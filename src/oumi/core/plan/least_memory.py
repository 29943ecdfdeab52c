# SPDX-License-Identifier: Apache-2.0
"""What a run needs at least whose peak of memory cannot be predicted. Imports no torch.

That is a run of another trainer, whose loss is that of an installed release; of a family of models whose layers keep
other tensors than those that are counted; or with an adapter whose weights only the loaded model shows.
"""

from __future__ import annotations

import math
from dataclasses import replace

from oumi.core.plan.disk import BYTES, EMBEDDINGS, size_of_files, state_bytes
from oumi.core.plan.division import Division, quantized_bytes
from oumi.core.plan.facts import Facts, ModelFacts
from oumi.core.plan.memory import process_bytes
from oumi.core.plan.parts import Plan
from oumi.core.plan.preference_kwargs import computes_reference_before
from oumi.core.plan.resources import MemoryPlan
from oumi.core.plan.step_sizes import LargestMicroBatch, StepSizes


def plan_least_memory(plan: Plan, facts: Facts) -> MemoryPlan | None:
    """Returns the memory of what is certain to be held together, None where the weights are not known.

    The weights, their gradients and the state of the optimizer exist together at the end of each step.
    """
    weights = _weight_bytes(plan, facts.model)
    if weights is None:
        return None
    num_shards, number = plan.sharding.num_shards if plan.sharding else 1, BYTES[plan.model.dtype]
    is_full = plan.lora is None and plan.model.adapter is None and not plan.model.freeze
    trained = weights if is_full else 0
    adapter = 0
    if plan.lora is not None:
        saved = size_of_files(facts.model, plan.model.dtype, plan.lora)
        trained = adapter = 0 if saved is None else saved.trained_bytes
        number = 4
    is_paged = facts.device != "cpu" and plan.optimizer.name.startswith("paged")
    state = 0 if is_paged else state_bytes(plan.optimizer, trained, number)
    return MemoryPlan(
        process=process_bytes(plan),
        weights=(weights * (2 if _holds_copy(plan) else 1) + adapter) // num_shards,
        gradients=trained // num_shards,
        optimizer=state // num_shards,
        activations=0,
        loss=0,
        available=facts.memory_bytes,
        is_tight=facts.has_tight_heap,
        is_bound=False,
        uncounted=_uncounted(plan, facts.model),
    )


def with_activations(plan: Plan, largest: LargestMicroBatch | None) -> Plan:
    """Returns the plan with what the layers of transformers keep of the largest micro-batch, where that is more.

    It is counted beside the gradients of a step before, which are freed by then.
    """
    least, shape = plan.least_memory, plan.shape
    if least is None or largest is None or shape is None or plan.is_native or plan.model.sees_images:
        return plan
    speed = replace(plan.speed, flat_batches=False, shared_prefixes=False, fused_loss=False, fused_layers=False)
    # Without padding, and without scores or masks: what is certain.
    tokens = LargestMicroBatch(largest.tokens, 0)
    sizes = StepSizes(replace(plan, speed=speed), shape, Division((), 0, (), 1, None, None), tokens, True)
    activations = int(sizes.layers_bytes)
    if activations <= least.gradients:
        return plan
    return replace(plan, least_memory=replace(least, gradients=0, activations=activations))


def _weight_bytes(plan: Plan, model: ModelFacts) -> int | None:
    """Returns the bytes of the weights of the model, None if they are not known or not all on the device."""
    count = model.num_parameters or (plan.shape.num_parameters if plan.shape else None)
    # The files of a model for images and text do not tell which of their weights are those of the text.
    is_known = not plan.model.text_only and plan.model.dtype in BYTES
    is_offloaded = plan.sharding is not None and plan.sharding.offload
    is_divided_by_others = plan.accelerate.fsdp is not None or plan.accelerate.deepspeed is not None
    if count is None or not is_known or is_offloaded or is_divided_by_others:
        return None
    number = BYTES[plan.model.dtype]
    quantization = plan.model.quantization
    if quantization is None:
        return count * number
    if not quantization.bits or not model.matrices:
        return None
    skipped = (*EMBEDDINGS, ".experts.", *quantization.skipped)
    narrow = sum(math.prod(size) for name, size in model.matrices.items() if not any(part in name for part in skipped))
    return int(narrow * (quantized_bytes(plan) or number)) + (count - narrow) * number


def _holds_copy(plan: Plan) -> bool:
    """Returns True if a copy of the model is the reference during training."""
    if plan.is_native:
        return plan.method.holds_copy
    is_computed_before = computes_reference_before(plan.config.training)
    return plan.method.copies_reference and plan.lora is None and plan.model.adapter is None and not is_computed_before


def _uncounted(plan: Plan, model: ModelFacts) -> str:
    """Returns what is not counted, and why."""
    if not plan.is_native:
        return f"padding, logits and loss, which are those of the installed trainer {plan.trainer}"
    if plan.shape is None:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in model.mixers.items())
        return f"activations, since the layers are of another family{f' ({kinds})' if kinds else ''}"
    return "activations, since what is trained or batched shows only in the loaded model"
