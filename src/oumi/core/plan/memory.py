# SPDX-License-Identifier: Apache-2.0
"""Predicts the peak memory of a training process. Imports no torch.

Counted are the tensors that the engine keeps: what the backward pass of each layer reads, and one chunk of logits. The
peak is the largest of a few moments at which most of them are held together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from oumi.core.plan.disk import BYTES, state_bytes
from oumi.core.plan.division import can_count_weights, divide, gathered_bytes
from oumi.core.plan.parts import Plan
from oumi.core.plan.resources import MemoryPlan
from oumi.core.plan.step_sizes import LargestMicroBatch, StepSizes

_PROCESS = {"cpu": 465 << 20, "cuda": 800 << 20}
"""Memory before there is a model. On a CPU: Python, torch, transformers and the tokenizer, rounded up to huge pages. On
a GPU: its context and the workspaces of matrix products."""
_PEFT = 30 << 20
_BITSANDBYTES = 60 << 20
_RANKS = 40 << 20
"""Memory of the communication between ranks on a CPU: measured."""


def plan_memory(
    plan: Plan, available: int, is_tight: bool = False, largest: LargestMicroBatch | None = None
) -> MemoryPlan | None:
    """Returns the peak memory of the process, None where it cannot be predicted.

    Args:
        plan: Plan of the run.
        available: Memory of the host or of the GPU, in bytes.
        is_tight: Freed memory is reused without fragmentation, see `host.has_tight_heap`.
        largest: The largest micro-batch, None if the rows are not read yet: then each is as long as it may be.
    """
    division = divide(plan)
    if plan.shape is None or division is None or not _can_be_predicted(plan):
        return None
    if largest is None and plan.model.max_length is None:
        return None
    # The actual micro-batch counts only in flat batches; in padded ones every row is as long as the longest.
    length = largest.longest if largest else plan.model.max_length or 0
    documents = plan.steps.micro_batch_rows * plan.method.spec.documents_per_row
    padded = LargestMicroBatch(documents * length, length)
    micro_batch = largest if largest and plan.speed.flat_batches else padded
    moments = _moments(StepSizes(plan, plan.shape, division, micro_batch, is_tight or plan.device != "cpu"))
    peak = max(moments, key=lambda moment: moment.total)
    return replace(peak, available=available, is_tight=is_tight, is_bound=largest is None)


def process_bytes(plan: Plan) -> int:
    """Returns the memory of the process before there is a model."""
    if plan.device != "cpu":
        return _PROCESS.get(plan.device, _PROCESS["cuda"])
    return (
        _PROCESS["cpu"]
        + (_PEFT if plan.lora else 0)
        + (_BITSANDBYTES if plan.model.quantization else 0)
        + (_RANKS if plan.steps.world_size > 1 else 0)
    )


def _can_be_predicted(plan: Plan) -> bool:
    """Returns True for trainer OUMI if all weights and activations can be counted."""
    # The mask of a padded batch is small compared with scores that are kept, but not with fused attention.
    has_mask = plan.shape is not None and plan.shape.has_window and not plan.shape.has_softcap
    is_plain = plan.speed.flat_batches or not (has_mask or plan.data.train.pack)
    return plan.is_native and is_plain and can_count_weights(plan)


def _moments(step: StepSizes) -> Iterator[MemoryPlan]:
    """Yields the memory at the candidates for the peak: at the head, in backward, at its end, and while loading."""
    plan, shape, division = step.plan, step.shape, step.division
    number = division.compute_bytes or BYTES.get(plan.model.dtype, 4)
    head = shape.embedding * number if step.adapted is None else 0
    states = 2 * step.largest.tokens * shape.hidden * number
    kept = _kept(step)
    whole_at_head, whole_in_backward, whole_at_end = gathered_bytes(plan, division, step.sums_tied)
    layers, layer, holes = step.layers_bytes, step.layer_bytes, step.holes
    recomputed = layer - states // 2  # the input of the layer is kept already
    # At the head: all activations, one chunk of logits, and the gradient of the head.
    loss = head + states + step.logits_bytes
    largest = max(loss, step.adapter_forward_bytes)
    yield replace(kept, activations=int(layers * holes), loss=int(largest * holes), gathered=whole_at_head)
    # In the backward pass of the first recomputed layer.
    at_first, at_last = step.layers_again
    inner = int((layers + at_first * recomputed + step.backward_bytes) * holes)
    yield replace(kept, activations=inner, loss=int((head + states) * holes), gathered=whole_in_backward)
    # At the end of backward. If head and embedding each make a gradient of tied weights, both and their sum exist.
    gradients = step.trained_bytes
    if plan.sharding is None:
        gradients += head * (2 * step.sums_tied + (plan.steps.accumulation > 1))
    activations = int(at_last * layer * holes + step.left_bytes(gradients))
    on_device = 0 if kept.on_host else gradients
    yield replace(kept, gradients=on_device, activations=activations, gathered=whole_at_end)
    if plan.sharding is not None and plan.device == "cpu":
        # The slices are read, and then copied. Random weights are drawn as a whole first.
        drawn = 0 if plan.model.pretrained else shape.num_parameters * BYTES.get(plan.model.dtype, 4)
        yield replace(kept, gradients=0, optimizer=0, gathered=drawn + division.slice_bytes())


def _kept(step: StepSizes) -> MemoryPlan:
    """Returns the memory that is held during the whole step."""
    plan, device, trained = step.plan, step.plan.device, step.trained_bytes
    # Paged states move to the host's memory when the GPU's is full.
    is_paged = device != "cpu" and plan.optimizer.name.startswith("paged")
    state = 0 if is_paged else state_bytes(plan.optimizer, trained, step.trained_number)
    is_offloaded = plan.sharding is not None and plan.sharding.offload and device != "cpu"
    kept = MemoryPlan(
        process=process_bytes(plan),
        weights=step.weight_bytes,
        # Gradients exist during the forward pass only where they accumulate.
        gradients=trained if plan.steps.accumulation > 1 else 0,
        optimizer=state,
        activations=0,
        loss=0,
        available=0,
        is_tight=step.is_tight,
        is_bound=False,
    )
    if not is_offloaded:
        return kept
    return replace(kept, weights=0, gradients=0, optimizer=0, on_host=step.weight_bytes + trained + state)
