# SPDX-License-Identifier: Apache-2.0
"""Whether a run fits into memory, and what would make it fit. Imports no torch."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from oumi.core.configs import TrainingParams
from oumi.core.errors import ConfigError
from oumi.core.plan.choices import NUM_RECOMPUTED
from oumi.core.plan.memory import LAYERS_AGAIN, LargestMicroBatch, num_recomputed, plan_memory
from oumi.core.plan.parts import LoraPlan, MemoryPlan, Plan
from oumi.core.plan.sections import recompute_settings

_MAX_LISTED = 3
_RECOMPUTE = 1 / 3
"""Of the time of a step: a forward pass, beside which backward takes two."""
_ADAPTER = 0.75
"""Time of a step without the gradients of the weights below an adapter."""
_SHORTEST = 128
"""Tokens that rows are cut to, at least."""
_SINGLE_TOKEN = LargestMicroBatch(1, 1)
_AUTO_SHARE = 0.85
"""Of the memory, what micro-batches that are chosen here may fill, as a prediction may be a tenth off."""
LargestOf = Callable[[Plan], LargestMicroBatch | None]
"""Gives the largest micro-batch of a plan, None where lengths are only known as the rows are trained."""


@dataclass(frozen=True)
class Change:
    """A change of the config, and what it brings."""

    text: str
    plan: Plan
    largest: LargestMicroBatch
    slowdown: float = 1.0
    keeps_result: bool = True
    """False if other weights come out of it than by rounding."""

    @property
    def memory(self) -> MemoryPlan:
        """Returns what the changed run needs."""
        plan = memory_of(self.plan, self.largest)
        assert plan is not None, "a change makes nothing unknown"
        return plan


def memory_of(plan: Plan, largest: LargestMicroBatch | None) -> MemoryPlan | None:
    """Returns what a plan needs with a largest micro-batch, on the machine of the plan; None: as large as it may be."""
    if plan.memory is None:
        return None
    return plan_memory(plan, plan.memory.available, plan.memory.is_tight, largest)


def with_what_fits(plan: Plan, largest_of: LargestOf) -> Plan:
    """Returns the plan with what its config leaves to us: the largest micro-batches and the fewest layers computed
    again with which it fits.

    Smaller micro-batches cost less than layers that are computed again. The rows of a step stay the same, and so does
    its result.
    """
    if plan.memory is None:
        return plan
    leaves_layers = _leaves_layers(plan.config.training)
    if leaves_layers:
        plan = replace(plan, gradient_checkpointing=None)
    for cut in _cuts(plan):
        plan = replace(cut, memory=memory_of(cut, largest_of(cut)))
        if plan.memory is not None and _leaves_room(plan.memory):
            return plan
    if leaves_layers:
        plan = _with_fewest_recomputed(plan, largest_of(plan), _leaves_room)
    return replace(plan, memory=memory_of(plan, largest_of(plan)))


def _cuts(plan: Plan) -> Iterator[Plan]:
    """Yields what micro-batches may be, the largest first; only the plan itself if the config says it."""
    rows = plan.steps.micro_batch_rows * plan.steps.accumulation
    parts = [plan.steps.accumulation]
    if plan.config.training.per_device_train_batch_size == "auto":
        parts = [count for count in range(1, rows + 1) if rows % count == 0]
    for count in parts:
        yield replace(plan, steps=replace(plan.steps, micro_batch_rows=rows // count, accumulation=count))


def _with_fewest_recomputed(
    plan: Plan, largest: LargestMicroBatch | None, is_enough: Callable[[MemoryPlan], bool]
) -> Plan:
    """Returns the plan with as few layers more computed again as are enough; if none are, with what takes least."""
    settings = recompute_settings(plan.config.training)
    num_layers = plan.shape.layers if plan.shape else 1

    def recomputing(count: int) -> Plan:
        return replace(plan, gradient_checkpointing={**settings, NUM_RECOMPUTED: count})

    def total(count: int) -> float:
        memory = memory_of(recomputing(count), largest)
        return math.inf if memory is None else memory.total

    def will_do(count: int) -> bool:
        memory = memory_of(recomputing(count), largest)
        return memory is not None and is_enough(memory)

    # Each layer more takes less memory, but for the last few, which need room to compute again.
    first = num_recomputed(plan.gradient_checkpointing, num_layers) + 1
    even = max(num_layers - LAYERS_AGAIN, first)
    fewest = first + bisect_left(range(first, even), True, key=will_do)
    last = range(fewest, num_layers + 1)
    return recomputing(next((count for count in last if will_do(count)), min(last, key=total)))


def _leaves_room(memory: MemoryPlan) -> bool:
    return memory.total <= _AUTO_SHARE * memory.available


def _leaves_layers(training: TrainingParams) -> bool:
    """Returns True if the config leaves to us which layers compute again."""
    return (
        training.enable_gradient_checkpointing and training.gradient_checkpointing_kwargs.get(NUM_RECOMPUTED) == "auto"
    )


def with_rows(plan: Plan, num_rows: int | None, largest_of: LargestOf) -> Plan:
    """Returns the same plan for the rows that are really there.

    Args:
        plan: Of the run.
        num_rows: Rows of an epoch, None for a stream.
        largest_of: Tells the largest micro-batch.

    Raises:
        ConfigError: The run needs more memory than there is, with what would fit; of unknown rows, with any row.
    """
    plan = with_what_fits(plan.with_num_rows(num_rows), largest_of)
    if plan.memory is None:
        return plan
    largest = largest_of(plan)
    least = memory_of(plan, largest or _SINGLE_TOKEN)
    if least is not None and least.is_short:
        raise ConfigError(_refusal(plan, least, largest or _SINGLE_TOKEN))
    return plan if largest is None else replace(plan, memory=least)


def memory_notes(plan: Plan) -> tuple[str, ...]:
    """Returns what a reader of the plan should know of its memory."""
    memory = plan.memory
    if memory is None:
        return tuple(f"{key}: {value}, as nothing tells what would fit" for key, value in _chosen(plan).items())
    if not memory.is_short:
        return _spare_notes(plan)
    least = memory_of(plan, _SINGLE_TOKEN)
    if least is not None and least.is_short:
        return ("memory: there is not enough; the run will be refused before its weights are loaded",)
    return (
        f"memory: there is not enough where rows are as long as they may be; if those that are read need more than "
        f"{memory.available / 1e9:,.1f} GB, the run is refused before its weights are loaded",
    )


def _spare_notes(plan: Plan) -> tuple[str, ...]:
    """Returns what layers are computed again for no need; a number that the config names is taken as meant."""
    shape, settings = plan.shape, plan.gradient_checkpointing
    if shape is None or settings is None or NUM_RECOMPUTED in settings:
        return ()
    training = plan.config.training
    left = training.model_copy(
        update={"gradient_checkpointing_kwargs": {**training.gradient_checkpointing_kwargs, NUM_RECOMPUTED: "auto"}}
    )
    fitted = with_what_fits(replace(plan, config=plan.config.model_copy(update={"training": left})), lambda _: None)
    count = num_recomputed(fitted.gradient_checkpointing, shape.layers)
    if count == shape.layers or fitted.memory is None or not _leaves_room(fitted.memory):
        return ()
    return (
        f"memory has room: with training.gradient_checkpointing_kwargs.{NUM_RECOMPUTED}: auto, {count} of "
        f"{shape.layers} layers at most are computed again, and a step takes about "
        f"{_time_of(plan, count) / _time_of(plan, shape.layers):.2f} of the time",
    )


def _time_of(plan: Plan, num_recomputed_layers: int) -> float:
    """Returns the time of a step, as a multiple of one in which all weights are trained and nothing is done twice."""
    assert plan.shape is not None
    return (1 if plan.lora is None else _ADAPTER) + _RECOMPUTE * num_recomputed_layers / plan.shape.layers


def _chosen(plan: Plan) -> dict[str, Any]:
    """Returns what the plan took for each `auto`."""
    training = plan.config.training
    chosen: dict[str, Any] = {}
    if training.per_device_train_batch_size == "auto":
        chosen["training.per_device_train_batch_size"] = plan.steps.micro_batch_rows
    if _leaves_layers(training) and plan.gradient_checkpointing is not None:
        chosen[f"training.gradient_checkpointing_kwargs.{NUM_RECOMPUTED}"] = "all layers"
    return chosen


def changes_that_fit(plan: Plan, largest: LargestMicroBatch) -> list[Change]:
    """Returns the cheapest changes with which the run fits: those first that keep its result, then by time."""
    return sorted(_changes(plan, largest), key=lambda change: (not change.keeps_result, change.slowdown))[:_MAX_LISTED]


def _refusal(plan: Plan, memory: MemoryPlan, largest: LargestMicroBatch) -> str:
    changes = changes_that_fit(plan, largest)
    fits = [
        f"\n  {change.text} ({change.memory.total / 1e9:,.1f} GB, about {round(change.slowdown, 2):g}x the time)"
        for change in changes
    ]
    help_ = (
        f"What would fit:{''.join(fits)}" if fits else "No change of the config would make it fit; take a smaller model"
    )
    return (
        f"memory: the run needs {memory.total / 1e9:,.1f} GB at its peak, and {plan.device_name} has "
        f"{memory.available / 1e9:,.1f} GB. {help_}"
    )


def _changes(plan: Plan, largest: LargestMicroBatch) -> Iterator[Change]:
    """Yields changes that fit: of each kind alone if that will do, else with smaller micro-batches."""
    yield from _fewer_rows(Change("", plan, largest))
    for change in (*_kinds(plan, largest), *_shorter(plan, largest)):
        if change.memory.is_short:
            yield from _fewer_rows(change)
        else:
            yield change


def _kinds(plan: Plan, largest: LargestMicroBatch) -> Iterator[Change]:
    """Yields changes of what is kept and what is trained."""
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
        yield from _fewest_recomputed(change)


def _fewest_recomputed(change: Change) -> Iterator[Change]:
    """Yields a change with as few layers computed again as let it fit, with all of them if none does."""
    shape, training = change.plan.shape, change.plan.config.training
    if shape is None or num_recomputed(change.plan.gradient_checkpointing, shape.layers) == shape.layers:
        return
    plan = _with_fewest_recomputed(change.plan, change.largest, lambda memory: not memory.is_short)
    before, count = (num_recomputed(run_plan.gradient_checkpointing, shape.layers) for run_plan in (change.plan, plan))
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
    """Yields the longest cut of the rows that fits."""
    length = largest.longest // 2
    while length >= _SHORTEST:
        cut = LargestMicroBatch(min(largest.tokens, plan.steps.micro_batch_rows * length), length)
        change = Change(f"model.model_max_length: {length}", plan, cut, keeps_result=False)
        if not change.memory.is_short:
            yield change
            return
        length //= 2


def _fewer_rows(change: Change) -> Iterator[Change]:
    """Yields a change with the largest micro-batches that fit, the rows of a step being the same."""
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
            largest=LargestMicroBatch(max(largest.longest, -(-largest.tokens // parts)), largest.longest),
        )
        if not smaller.memory.is_short:
            yield smaller
            return
