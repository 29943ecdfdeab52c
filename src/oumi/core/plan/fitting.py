# SPDX-License-Identifier: Apache-2.0
"""Checks whether a run fits into memory, and finds changes with which it would. Imports no torch."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from oumi.core.configs import TrainingParams
from oumi.core.errors import ConfigError
from oumi.core.plan.choices import NUM_RECOMPUTED
from oumi.core.plan.facts import Facts
from oumi.core.plan.least_memory import plan_least_memory, with_activations
from oumi.core.plan.lora import LoraPlan
from oumi.core.plan.memory import plan_memory
from oumi.core.plan.parts import Plan
from oumi.core.plan.resources import MemoryPlan
from oumi.core.plan.sections import recompute_settings
from oumi.core.plan.step_sizes import LAYERS_AGAIN, LargestMicroBatch, num_recomputed

_MAX_LISTED = 3
_RECOMPUTE = 1 / 3
"""Time of a forward pass as a share of a step: the backward pass takes twice as long."""
_ADAPTER = 0.75
"""Time of a step with an adapter, which needs no gradients of the base weights, as a share of a full one."""
_SHORTEST = 128
"""Smallest model_max_length that is suggested, in tokens."""
_SINGLE_TOKEN = LargestMicroBatch(1, 1)
"""The smallest possible micro-batch: a run that is short of memory with it cannot fit whatever its rows are."""
_AUTO_SHARE = 0.85
"""Share of the memory that `auto` may fill; a prediction may be off by a tenth."""
LargestOf = Callable[[Plan], LargestMicroBatch | None]
"""Returns the largest micro-batch of a plan, None where lengths are only known during training (a stream)."""


@dataclass(frozen=True)
class Change:
    """A change of the config, and its effect."""

    text: str
    plan: Plan
    largest: LargestMicroBatch
    slowdown: float = 1.0
    keeps_result: bool = True
    """False if the trained weights differ by more than rounding."""

    @property
    def memory(self) -> MemoryPlan:
        """Returns the memory of the changed run."""
        memory = memory_of(self.plan, self.largest)
        assert memory is not None, "no change makes the memory unknown"
        return memory


def memory_of(plan: Plan, largest: LargestMicroBatch | None) -> MemoryPlan | None:
    """Returns the memory of a plan on its machine, None if it is unknown.

    Without `largest`, every row counts as long as it may be.
    """
    if plan.memory is None:
        return None
    return plan_memory(plan, plan.memory.available, plan.memory.is_tight, largest)


def with_memory(plan: Plan, facts: Facts) -> Plan:
    """Returns the plan with its memory, before any row is read: each counts as long as it may be."""
    memory = plan_memory(plan, facts.memory_bytes, facts.has_tight_heap)
    if memory is None:
        return replace(plan, least_memory=plan_least_memory(plan, facts))
    return with_what_fits(replace(plan, memory=memory), lambda _: None)


def with_what_fits(plan: Plan, largest_of: LargestOf) -> Plan:
    """Returns the plan with a value for each `auto`: the largest micro-batches, and the fewest recomputed layers, with
    which it fits.

    Smaller micro-batches are tried first, since they cost less time than recomputed layers. The rows of a step stay the
    same, and so does its result.
    """
    if plan.memory is None:
        return plan
    is_recompute_auto = _is_recompute_auto(plan.config.training)
    if is_recompute_auto:
        plan = replace(plan, gradient_checkpointing=None)
    # Only divisors of the rows of a step, so that all micro-batches of a step are equally large.
    rows = plan.steps.micro_batch_rows * plan.steps.accumulation
    accumulations = [plan.steps.accumulation]
    if plan.config.training.per_device_train_batch_size == "auto":
        accumulations = [count for count in range(1, rows + 1) if rows % count == 0]
    for accumulation in accumulations:
        steps = replace(plan.steps, micro_batch_rows=rows // accumulation, accumulation=accumulation)
        plan = replace(plan, steps=steps)
        memory = memory_of(plan, largest_of(plan))
        if memory is not None and _has_room(memory):
            return replace(plan, memory=memory)
    # Not even the smallest micro-batches fit.
    if is_recompute_auto:
        plan = _with_fewest_recomputed(plan, largest_of(plan), _has_room)
    return replace(plan, memory=memory_of(plan, largest_of(plan)))


def _with_fewest_recomputed(
    plan: Plan, largest: LargestMicroBatch | None, is_enough: Callable[[MemoryPlan], bool]
) -> Plan:
    """Returns the plan with the fewest more recomputed layers that are enough, else with those that need least."""
    settings = recompute_settings(plan.config.training)
    num_layers = plan.shape.layers if plan.shape else 1

    def recomputing(count: int) -> Plan:
        return replace(plan, gradient_checkpointing={**settings, NUM_RECOMPUTED: count})

    def total(count: int) -> float:
        memory = memory_of(recomputing(count), largest)
        return math.inf if memory is None else memory.total

    def fits(count: int) -> bool:
        memory = memory_of(recomputing(count), largest)
        return memory is not None and is_enough(memory)

    # Memory falls with each recomputed layer, so bisection finds the fewest. The last few layers are tried one by one:
    # recomputing them may need more memory than they save.
    first = num_recomputed(plan.gradient_checkpointing, num_layers) + 1
    monotonic_end = max(num_layers - LAYERS_AGAIN, first)
    fewest = first + bisect_left(range(first, monotonic_end), True, key=fits)
    last = range(fewest, num_layers + 1)
    return recomputing(next((count for count in last if fits(count)), min(last, key=total)))


def _has_room(memory: MemoryPlan) -> bool:
    return memory.total <= _AUTO_SHARE * memory.available


def _is_recompute_auto(training: TrainingParams) -> bool:
    """Returns True if the config leaves the number of recomputed layers to the plan."""
    return (
        training.enable_gradient_checkpointing and training.gradient_checkpointing_kwargs.get(NUM_RECOMPUTED) == "auto"
    )


def with_rows(plan: Plan, num_rows: int | None, largest_of: LargestOf) -> Plan:
    """Returns the plan updated for the actual rows.

    Args:
        plan: Plan of the run.
        num_rows: Rows of an epoch, None for a stream.
        largest_of: Returns the largest micro-batch of a plan.

    Raises:
        ConfigError: The run needs more memory than there is; names changes with which it would fit. A stream is refused
            only if it needs more with rows of any length.
    """
    plan = with_what_fits(plan.with_num_rows(num_rows), largest_of)
    if plan.memory is None:
        return with_activations(plan, largest_of(plan))
    largest = largest_of(plan)
    # Rows of a stream may all be short, so only what no row can make fit is an error.
    least = memory_of(plan, largest or _SINGLE_TOKEN)
    if least is not None and least.is_short:
        raise ConfigError(_refusal(plan, least, largest or _SINGLE_TOKEN))
    return plan if largest is None else replace(plan, memory=least)


def memory_notes(plan: Plan) -> tuple[str, ...]:
    """Returns the notes of a plan about its memory: values of `auto`, layers recomputed without need, a shortage."""
    memory, training = plan.memory, plan.config.training
    if memory is None:
        # Values that were chosen for `auto` without knowing whether they fit.
        chosen: dict[str, Any] = {}
        if training.per_device_train_batch_size == "auto":
            chosen["training.per_device_train_batch_size"] = plan.steps.micro_batch_rows
        if _is_recompute_auto(training) and plan.gradient_checkpointing is not None:
            chosen[f"training.gradient_checkpointing_kwargs.{NUM_RECOMPUTED}"] = "all layers"
        notes = [f"{key}: {value}, since the memory of this run cannot be predicted" for key, value in chosen.items()]
        if plan.least_memory is not None and plan.least_memory.is_short:
            notes.append(f"memory: not enough; {plan.device_name} has {plan.least_memory.available / 1e9:,.1f} GB")
        return tuple(notes)
    if not memory.is_short:
        return _spare_notes(plan)
    least = memory_of(plan, _SINGLE_TOKEN)
    if least is not None and least.is_short:
        return ("memory: not enough; the run will be refused before its weights are loaded",)
    return (
        f"memory: not enough if rows are as long as they may be; if the actual rows need more than "
        f"{memory.available / 1e9:,.1f} GB, the run is refused before its weights are loaded",
    )


def _spare_notes(plan: Plan) -> tuple[str, ...]:
    """Returns a note if memory allows to recompute fewer layers."""
    shape, settings = plan.shape, plan.gradient_checkpointing
    # A number of layers in the config is the user's own choice, so it gets no note.
    if shape is None or settings is None or NUM_RECOMPUTED in settings:
        return ()
    # The same plan with `auto` shows how many layers are needed.
    training = plan.config.training
    auto = training.model_copy(
        update={"gradient_checkpointing_kwargs": {**training.gradient_checkpointing_kwargs, NUM_RECOMPUTED: "auto"}}
    )
    fitted = with_what_fits(replace(plan, config=plan.config.model_copy(update={"training": auto})), lambda _: None)
    count = num_recomputed(fitted.gradient_checkpointing, shape.layers)
    if count == shape.layers or fitted.memory is None or not _has_room(fitted.memory):
        return ()
    return (
        f"memory has room: with training.gradient_checkpointing_kwargs.{NUM_RECOMPUTED}: auto, at most {count} of "
        f"{shape.layers} layers are recomputed, and a step takes about "
        f"{_time_of(plan, count) / _time_of(plan, shape.layers):.2f} of the time",
    )


def _time_of(plan: Plan, num_recomputed_layers: int) -> float:
    """Returns the time of a step, as a multiple of one that trains all weights and recomputes nothing."""
    assert plan.shape is not None
    return (1 if plan.lora is None else _ADAPTER) + _RECOMPUTE * num_recomputed_layers / plan.shape.layers


def changes_that_fit(plan: Plan, largest: LargestMicroBatch) -> list[Change]:
    """Returns the cheapest changes with which the run fits: those that keep its result first, then by time."""
    changes = [*_fewer_rows(Change("", plan, largest))]
    for change in (*_kinds(plan, largest), *_shorter(plan, largest)):
        # A change that is not enough alone may be with smaller micro-batches.
        changes += _fewer_rows(change) if change.memory.is_short else [change]
    return sorted(changes, key=lambda change: (not change.keeps_result, change.slowdown))[:_MAX_LISTED]


def _refusal(plan: Plan, memory: MemoryPlan, largest: LargestMicroBatch) -> str:
    changes = changes_that_fit(plan, largest)
    fits = [
        f"\n  {change.text} ({change.memory.total / 1e9:,.1f} GB, about {round(change.slowdown, 2):g}x the time)"
        for change in changes
    ]
    help_ = (
        f"What would fit:{''.join(fits)}" if fits else "No change of the config would make it fit; use a smaller model"
    )
    return (
        f"memory: the run needs {memory.total / 1e9:,.1f} GB at its peak, and {plan.device_name} has "
        f"{memory.available / 1e9:,.1f} GB. {help_}"
    )


def _kinds(plan: Plan, largest: LargestMicroBatch) -> Iterator[Change]:
    """Yields changes of recomputed layers, optimizer and trained weights, whether or not they fit."""
    yield from _fewest_recomputed(Change("", plan, largest))
    for name in ("adafactor", "sgd"):
        if plan.optimizer.name != name:
            changed = replace(plan, optimizer=replace(plan.optimizer, name=name, momentum=0.0))
            yield Change(f"training.optimizer: {name}", changed, largest, keeps_result=False)
    if plan.lora is None:
        adapted = replace(plan, lora=LoraPlan({"r": 8, "target_modules": None}, "ADAPTER_ONLY"))
        text = "training.use_peft: true"
        change = Change(text, adapted, largest, _ADAPTER, keeps_result=False)
        yield change
        yield from _fewest_recomputed(change)  # an adapter alone may not be enough


def _fewest_recomputed(change: Change) -> Iterator[Change]:
    """Yields a change with the fewest recomputed layers that fit, with those that need least memory if none fit."""
    shape, training = change.plan.shape, change.plan.config.training
    if shape is None or num_recomputed(change.plan.gradient_checkpointing, shape.layers) == shape.layers:
        return
    plan = _with_fewest_recomputed(change.plan, change.largest, lambda memory: not memory.is_short)
    before, count = (num_recomputed(run_plan.gradient_checkpointing, shape.layers) for run_plan in (change.plan, plan))
    # The shortest text that gives `count`: all layers are the default once checkpointing is on.
    key = f"training.gradient_checkpointing_kwargs.{NUM_RECOMPUTED}: {count}"
    text = key if before else "training.enable_gradient_checkpointing: true"
    if not before and (count < shape.layers or NUM_RECOMPUTED in training.gradient_checkpointing_kwargs):
        text = f"{text} with {key}"
    slowdown = _time_of(plan, count) / _time_of(plan, before)
    yield replace(
        change,
        text=f"{change.text} with {text}" if change.text else text,
        plan=plan,
        slowdown=change.slowdown * slowdown,
    )


def _shorter(plan: Plan, largest: LargestMicroBatch) -> Iterator[Change]:
    """Yields the largest model_max_length that fits, by halving the longest row."""
    length = largest.longest // 2
    while length >= _SHORTEST:
        cut = LargestMicroBatch(min(largest.tokens, plan.steps.micro_batch_rows * length), length)
        change = Change(f"model.model_max_length: {length}", plan, cut, keeps_result=False)
        if not change.memory.is_short:
            yield change
            return
        length //= 2


def _fewer_rows(change: Change) -> Iterator[Change]:
    """Yields a change with the largest micro-batches that fit; the rows of a step stay the same."""
    steps, largest = change.plan.steps, change.largest
    for parts in range(2, steps.micro_batch_rows + 1):
        if steps.micro_batch_rows % parts:
            continue
        cut = replace(steps, micro_batch_rows=steps.micro_batch_rows // parts, accumulation=steps.accumulation * parts)
        text = (
            f"training.per_device_train_batch_size: {cut.micro_batch_rows} with "
            f"training.gradient_accumulation_steps: {cut.accumulation}"
        )
        smaller = replace(
            change,
            text=f"{change.text}, {text}" if change.text else text,
            plan=replace(change.plan, steps=cut),
            # No micro-batch is smaller than its longest row.
            largest=LargestMicroBatch(max(largest.longest, -(-largest.tokens // parts)), largest.longest),
        )
        if not smaller.memory.is_short:
            yield smaller
            return
