# SPDX-License-Identifier: Apache-2.0
"""The gradients of a step, in as much memory as there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from oumi.core.batch import Batch, collate, empty_batch
from oumi.core.distributed.sharding import free_gathered, reset_passes
from oumi.core.errors import ConfigError, OtherRankError
from oumi.core.log import logger
from oumi.core.methods.method import Loss, StepSums, add_step_sums, over_ranks
from oumi.core.plan.parts import MethodPlan
from oumi.core.plan.step_sizes import LargestMicroBatch
from oumi.core.run import Run
from oumi.core.types.example import Example, Source

Result = TypeVar("Result")

_FITS, _OUT_OF_MEMORY, _CANNOT_CUT = range(3)
"""How a try to compute a step ended on a rank; the worst of all ranks decides."""


def add_gradients(run: Run, micro_batches: list[Batch], num_terms: int) -> Loss:
    """Adds this rank's gradients of a step to those of the weights.

    Returns:
        This rank's part of the loss, a mean over `num_terms`, and its part of the sums that are metrics.

    Raises:
        ConfigError: A single row does not fit.
    """
    step: StepSums = {}
    if run.method.reads_step_sums:
        # Of all micro-batches before the first gradient, so that the loss does not depend on how the step is cut.
        sums = _in_memory(run, micro_batches, lambda parts: _step_sums(run, parts))
        step = over_ranks(sums, run.world)
    return _in_memory(run, micro_batches, lambda parts: _add(run, parts, num_terms, step))


def _in_memory(run: Run, micro_batches: list[Batch], compute: Callable[[list[Batch]], Result]) -> Result:
    """Returns what `compute` returns for the micro-batches, in as many parts as fit into memory.

    Where memory runs out on any rank, it is computed anew with every micro-batch in twice as many parts, and so are all
    steps after it, on all ranks alike. Since a loss is a sum over the terms of the whole step, that changes the
    gradients by rounding only.
    """
    while True:
        parts = [part for batch in micro_batches for part in _cut(run, batch)]
        result = None
        try:
            result = compute(parts)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Out of the handler, so that the error holds no tensor of the failed try any more.
        if result is None and run.parameters.divided:
            _complete_passes(run)
        cannot_cut = result is None and all(part.num_rows <= 1 or part.num_images for part in parts)
        worst = run.world.agree(_CANNOT_CUT if cannot_cut else _OUT_OF_MEMORY if result is None else _FITS)
        if result is not None and worst == _FITS:
            return result
        run.parameters.drop_gradients()
        if run.world.device.type != "cpu":
            torch.accelerator.empty_cache()
        if cannot_cut:
            raise _out_of_memory(run, parts)
        if worst == _CANNOT_CUT:
            raise OtherRankError("another rank is out of memory; its message tells with which rows")
        run.state.parts *= 2
        logger.warning(
            "step %d: out of memory; each micro-batch is computed in %d parts from here on, with the same result",
            run.state.step + 1,
            run.state.parts,
        )


def record_pass(run: Run) -> None:
    """Takes one pass without rows, from which a rank knows the operations of a pass if memory runs out in its first.

    Random numbers go on as if nothing had been. Does nothing unless the model is divided.
    """
    if not run.parameters.divided:
        return
    run.model.train()
    with torch.random.fork_rng():
        add_gradients(run, [empty_batch()], 1)
    run.parameters.drop_gradients()


def try_largest_micro_batch(run: Run, largest: LargestMicroBatch | None) -> None:
    """Takes the gradients of the largest micro-batch and forgets them, so that a lack of memory shows before step 1.

    The optimizer's memory is taken meanwhile. Random numbers go on as if nothing had been. Nothing is tried where
    lengths are only known as the rows are trained.
    """
    if largest is None:
        return
    if not run.model.is_flat:  # each row is padded to the longest
        largest = LargestMicroBatch(run.plan.steps.micro_batch_rows * largest.longest, largest.longest)
    memory = run.plan.memory
    reserved = 0 if run.optimizer.state or memory is None else memory.optimizer
    batch = like_largest(largest, run.plan.method)
    run.model.train()
    with torch.random.fork_rng():
        optimizer_state = torch.empty(reserved, dtype=torch.uint8, device=run.world.device)
        add_gradients(run, [batch], run.method.num_terms(batch))
        del optimizer_state
    run.parameters.drop_gradients()


def like_largest(largest: LargestMicroBatch, method: MethodPlan) -> Batch:
    """Returns a micro-batch of that size for a method, all of it of one token."""
    num_longest, num_left = divmod(largest.tokens, largest.longest)
    lengths = [largest.longest] * num_longest + [num_left] * (num_left > 0)
    source, documents_per_row = Source("", "the longest rows", 0), method.spec.documents_per_row
    batch = collate(
        [
            Example(
                np.zeros(length, dtype=np.int32),
                np.ones(length, dtype=np.bool_),
                source,
                starts=tuple(length * i // documents_per_row for i in range(documents_per_row)),
                columns=method.spec.columns,
            )
            for length in lengths
        ]
    )
    return replace(batch, mismatched=batch) if method.mismatches else batch


def is_out_of_memory(error: BaseException) -> bool:
    """Returns True if an error says that memory ran out, of a GPU or of this process."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or any(sign in str(error) for sign in ("can't allocate memory", "bad_alloc"))


def _complete_passes(run: Run) -> None:
    """Takes part in what the other ranks gather and add up, after a pass failed on this one."""
    reset_passes(run.model)
    if run.world.device.type != "cpu":
        torch.accelerator.empty_cache()
    run.world.traffic.complete()


def _cut(run: Run, batch: Batch) -> list[Batch]:
    """Returns the parts of a micro-batch, of a divided model as many on all ranks."""
    parts = batch.cut(run.state.parts)
    # Each pass gathers weights of the other ranks.
    missing = run.state.parts - len(parts) if run.parameters.divided else 0
    return [*parts, *(empty_batch() for _ in range(missing))]


def _step_sums(run: Run, parts: list[Batch]) -> dict[str, torch.Tensor]:
    sums: dict[str, torch.Tensor] = {}
    run.world.traffic.begin(len(parts), "sums")
    for batch in parts:
        run.world.traffic.begin_pass()
        with torch.no_grad(), run.autocast():
            add_step_sums(sums, run.method.step_sums(run.model, batch.to(run.world.device)))
        free_gathered(run.model)  # each pass begins with slices, so that all gather the same
    run.world.traffic.end()
    return sums


def _add(run: Run, parts: list[Batch], num_terms: int, step: StepSums) -> Loss:
    total = torch.zeros((), device=run.world.device)
    metrics: dict[str, torch.Tensor] = {}
    run.world.traffic.begin(len(parts), "gradients")
    for batch in parts:
        run.world.traffic.begin_pass()
        with run.autocast():
            loss = run.method.loss(run.model, batch.to(run.world.device), step)
            part = loss.total / max(num_terms, 1)
        run.scaler.scale(part).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        total += part.detach()
        for name, value in loss.metrics.items():
            metrics[name] = metrics[name] + value if name in metrics else value
    run.world.traffic.end()
    return Loss(total, metrics)


def _out_of_memory(run: Run, parts: list[Batch]) -> ConfigError:
    """Returns the error that ends a run whose rows do not fit one at a time."""
    largest = max(parts, key=lambda part: part.num_tokens)
    rows = f"a batch of {largest.num_rows} rows with images" if largest.num_rows > 1 else "one row"
    return ConfigError(
        f"step {run.state.step + 1}: out of memory with {rows} at a time; the largest begins with "
        f"{largest.sources[0]} and has {largest.num_tokens:,} tokens. Lower training.per_device_train_batch_size "
        "or model.model_max_length, set training.enable_gradient_checkpointing, or train an adapter with "
        "training.use_peft"
    )
