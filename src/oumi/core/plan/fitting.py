# SPDX-License-Identifier: Apache-2.0
"""Whether a run fits into memory, and what would make it fit. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from oumi.core.errors import ConfigError
from oumi.core.plan.memory import Largest, plan_memory
from oumi.core.plan.parts import LoraPlan, MemoryPlan, Plan

_MOST_TOLD = 3
_RECOMPUTE = 1.33
"""Time of a step whose forward pass is done twice: four thirds of one forward and two of backward."""
_ADAPTER = 0.75
"""Time of a step without the gradients of the weights below an adapter."""
_SHORTEST = 128
"""Tokens that rows are cut to, at least."""
_ONE_TOKEN = Largest(1, 1)
_AUTO_SHARE = 0.85
"""Of the memory, what micro-batches that are chosen here may fill, as a prediction may be a tenth off."""
LargestOf = Callable[[Plan], Largest | None]
"""Gives the largest micro-batch of a plan, None where lengths are only known as the rows are trained."""


@dataclass(frozen=True)
class Change:
    """A change of the config, and what it brings."""

    text: str
    plan: Plan
    largest: Largest
    slowdown: float = 1.0
    keeps_result: bool = True
    """False if other weights come out of it than by rounding."""

    @property
    def memory(self) -> MemoryPlan:
        """Returns what the changed run needs."""
        found = memory_of(self.plan, self.largest)
        assert found is not None, "a change makes nothing unknown"
        return found


def memory_of(plan: Plan, largest: Largest | None) -> MemoryPlan | None:
    """Returns what a plan needs with a largest micro-batch, on the machine of the plan; None: as large as it may be."""
    if plan.memory is None:
        return None
    return plan_memory(plan, plan.memory.available, plan.memory.is_tight, largest)


def with_micro_batches(plan: Plan, largest_of: LargestOf) -> Plan:
    """Returns the plan with the largest micro-batches that fit, if the config leaves them to us.

    The rows of a step stay the same, and so does its result.
    """
    if plan.config.training.per_device_train_batch_size != "auto" or plan.memory is None:
        return plan
    rows = plan.steps.micro_batch_rows * plan.steps.accumulation
    for accumulation in (parts for parts in range(1, rows + 1) if rows % parts == 0):
        steps = replace(plan.steps, micro_batch_rows=rows // accumulation, accumulation=accumulation)
        plan = replace(plan, steps=steps)
        memory = memory_of(plan, largest_of(plan))
        if memory is not None and memory.total <= _AUTO_SHARE * memory.available:
            break
    return replace(plan, memory=memory)


def with_rows(plan: Plan, num_rows: int | None, largest_of: LargestOf) -> Plan:
    """Returns the same plan for the rows that are really there.

    Args:
        plan: Of the run.
        num_rows: Rows of an epoch, None for a stream.
        largest_of: Tells the largest micro-batch.

    Raises:
        ConfigError: The run needs more memory than there is, with what would fit; of unknown rows, with any row.
    """
    plan = with_micro_batches(plan.with_num_rows(num_rows), largest_of)
    if plan.memory is None:
        return plan
    largest = largest_of(plan)
    least = memory_of(plan, largest or _ONE_TOKEN)
    if least is not None and least.is_short:
        raise ConfigError(_refusal(plan, least, largest or _ONE_TOKEN))
    return plan if largest is None else replace(plan, memory=least)


def memory_notes(plan: Plan) -> tuple[str, ...]:
    """Returns what a reader of the plan should know of its memory."""
    memory = plan.memory
    if memory is None and plan.config.training.per_device_train_batch_size == "auto":
        return (
            f"training.per_device_train_batch_size: {plan.steps.micro_batch_rows}, as nothing tells which would fit",
        )
    if memory is None or not memory.is_short:
        return ()
    least = memory_of(plan, _ONE_TOKEN)
    if least is not None and least.is_short:
        return ("memory: there is not enough; the run will be refused before its weights are loaded",)
    return (
        f"memory: there is not enough where rows are as long as they may be; if those that are read need more than "
        f"{memory.available / 1e9:,.1f} GB, the run is refused before its weights are loaded",
    )


def changes_that_fit(plan: Plan, largest: Largest) -> list[Change]:
    """Returns the cheapest changes with which the run fits: those first that keep its result, then by time."""
    return sorted(_changes(plan, largest), key=lambda one: (not one.keeps_result, one.slowdown))[:_MOST_TOLD]


def _refusal(plan: Plan, memory: MemoryPlan, largest: Largest) -> str:
    changes = changes_that_fit(plan, largest)
    fits = [
        f"\n  {one.text} ({one.memory.total / 1e9:,.1f} GB, about {round(one.slowdown, 2):g}x the time)"
        for one in changes
    ]
    help_ = (
        f"What would fit:{''.join(fits)}" if fits else "No change of the config would make it fit; take a smaller model"
    )
    return (
        f"memory: the run needs {memory.total / 1e9:,.1f} GB at its peak, and {plan.device_name} has "
        f"{memory.available / 1e9:,.1f} GB. {help_}"
    )


def _changes(plan: Plan, largest: Largest) -> Iterator[Change]:
    """Yields changes that fit: of each kind alone if that will do, else with smaller micro-batches."""
    yield from _fewer_rows(Change("", plan, largest))
    for change in (*_kinds(plan, largest), *_shorter(plan, largest)):
        if change.memory.is_short:
            yield from _fewer_rows(change)
        else:
            yield change


def _kinds(plan: Plan, largest: Largest) -> Iterator[Change]:
    """Yields changes of what is kept and what is trained."""
    recomputes = plan.gradient_checkpointing is None and not plan.speed.compile
    recompute = "training.enable_gradient_checkpointing: true"
    if recomputes:
        yield Change(recompute, replace(plan, gradient_checkpointing={}), largest, _RECOMPUTE)
    for name in ("adafactor", "sgd"):
        if plan.optimizer.name != name:
            changed = replace(plan, optimizer=replace(plan.optimizer, name=name, momentum=0.0))
            yield Change(f"training.optimizer: {name}", changed, largest, keeps_result=False)
    if plan.lora is None:
        adapted = replace(plan, lora=LoraPlan({"r": 8, "target_modules": None}, "ADAPTER_ONLY"))
        text = "training.use_peft: true"
        yield Change(text, adapted, largest, _ADAPTER, keeps_result=False)
        if recomputes:
            both = replace(adapted, gradient_checkpointing={})
            yield Change(f"{text} with {recompute}", both, largest, _ADAPTER * _RECOMPUTE, keeps_result=False)


def _shorter(plan: Plan, largest: Largest) -> Iterator[Change]:
    """Yields the longest cut of the rows that fits."""
    length = largest.longest // 2
    while length >= _SHORTEST:
        cut = Largest(min(largest.tokens, plan.steps.micro_batch_rows * length), length)
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
            largest=Largest(max(largest.longest, -(-largest.tokens // parts)), largest.longest),
        )
        if not smaller.memory.is_short:
            yield smaller
            return
