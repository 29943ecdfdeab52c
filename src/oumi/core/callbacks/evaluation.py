# SPDX-License-Identifier: Apache-2.0
"""Evaluates the validation set during a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch

from oumi.core.batch import Batch
from oumi.core.callbacks.samples import Sampler
from oumi.core.checkpoint.best import track_best
from oumi.core.data.pipeline.loader import in_order
from oumi.core.data.training_data import TrainingData
from oumi.core.distributed.sharding import free_gathered
from oumi.core.distributed.world import World
from oumi.core.methods.log_probs import wide
from oumi.core.methods.method import Loss, add_step_sums, over_ranks
from oumi.core.models.acceleration.flat import generating
from oumi.core.plan.parts import Plan
from oumi.core.run import Callback, Run, StepReport


class Evaluation(Callback):
    """Reports `eval_loss` and the metrics of the method, as means over all terms of the validation set.

    For losses per token, it also reports `eval_perplexity`, and for texts `eval_bits_per_byte`.
    """

    def __init__(self, batches: Callable[[], Iterable[Batch]], data: TrainingData, sampler: Sampler | None) -> None:
        """Sets what yields the batches of this rank, the data they are from, and what answers rows on the main one."""
        self._batches = batches
        self._data = data
        self._sampler = sampler

    def train_start(self, run: Run) -> None:  # type: ignore[override]  # the native loop passes a Run
        if run.state.awaits_evaluation:
            self._evaluate(run)
        run.stop_requested |= run.state.has_converged  # of a run that was killed after its last step

    def step_end(self, run: Run, report: StepReport) -> None:  # type: ignore[override]
        plan, step = run.plan.evaluation, run.state.step
        is_due = plan.every_steps and step % plan.every_steps == 0
        if is_due or (plan.every_epoch and run.loader.ends_epoch(step)):
            self._evaluate(run)

    def _evaluate(self, run: Run) -> None:
        metrics = evaluate(run, self._batches)
        run.state.awaits_evaluation = metrics is None
        if metrics is None:
            run.stop_requested = True
            return
        metrics = with_bits_per_byte(metrics, run.plan, self._data)
        run.callbacks.measured(run, {**metrics, **track_best(run, metrics)})
        if self._sampler is not None and run.world.is_main:
            with generating(run.model) as model:
                samples = self._sampler.samples(model)
            run.callbacks.sampled(run, samples)


def build_evaluation(plan: Plan, world: World, data: TrainingData) -> Evaluation:
    """Returns the evaluation of a rank's share of the validation set."""
    share = (data.collate(plan), world.rank, world.size)
    batches = partial(in_order, data.validation, plan.evaluation.batch_size, *share)
    return Evaluation(batches, data, build_sampler(plan, world, data))


def build_sampler(plan: Plan, world: World, data: TrainingData) -> Sampler | None:
    """Returns what answers rows of the validation set, on the main rank; None if the plan asks for no answers."""
    num_samples = plan.evaluation.num_samples
    if not num_samples or not world.is_main:
        return None
    return Sampler(data.validation, data.preprocessor.tokenizer, num_samples)


def with_perplexity(metrics: dict[str, float], plan: Plan, prefix: str = "eval") -> dict[str, float]:
    """Returns metrics with the perplexity that belongs to their loss, if that is a mean over tokens."""
    if plan.method.spec.is_per_token:
        # math.exp raises OverflowError above 709.
        metrics[f"{prefix}_perplexity"] = math.exp(min(metrics[f"{prefix}_loss"], 700.0))
    return metrics


def with_bits_per_byte(
    metrics: dict[str, float], plan: Plan, data: TrainingData, prefix: str = "eval"
) -> dict[str, float]:
    """Returns metrics with the loss in bits per byte of text, where the validation rows are texts; as nanochat does.

    Unlike the loss per token, it does not depend on how a tokenizer splits a text.
    """
    if plan.method.spec.is_per_token and (ratio := data.bytes_per_token) is not None:
        metrics[f"{prefix}_bits_per_byte"] = metrics[f"{prefix}_loss"] / math.log(2) / ratio
    return metrics


@torch.no_grad()
def evaluate(run: Run, batches: Callable[[], Iterable[Batch]]) -> dict[str, float] | None:
    """Returns the mean loss over all terms of the batches of all ranks, and the means of the method's metrics.

    For losses per token, it also returns the perplexity. Names begin with `eval_`. None if a signal to stop came
    meanwhile. The model is in training mode afterwards.

    Args:
        run: The run, whose model is evaluated as if the validation set were one step.
        batches: Returns this rank's batches; called a second time for a method that reads sums over all of them.
    """
    run.model.eval()
    sums: dict[str, torch.Tensor] = {}
    if run.method.reads_step_sums:
        for batch in _until_stopped(run, batches()):
            with run.autocast():
                add_step_sums(sums, run.method.step_sums(run.model, batch))
    step = over_ranks(sums, run.world)
    # Sums in float64, divided once at the end: a mean of means would weigh short batches too much.
    total, num_terms = Loss(wide(torch.zeros((), device=run.world.device))), 0
    for batch in _until_stopped(run, batches()):
        with run.autocast():
            loss = run.method.loss(run.model, batch, step)
        metrics = {name: wide(value) for name, value in loss.metrics.items()}
        add_step_sums(metrics, total.metrics)
        total = Loss(total.total + loss.total, metrics)
        num_terms += run.method.num_terms(batch)
    run.model.train()
    free_gathered(run.model)
    if run.world.agree(run.stop_signaled):
        return None
    # One collective operation for all sums.
    flat = total.flat()
    *values, num_terms = run.world.sum(torch.cat([flat, torch.full_like(flat[:1], num_terms)])).tolist()
    means = {"loss": values[0] / max(num_terms, 1), **total.means(values)}
    return with_perplexity({f"eval_{name}": value for name, value in means.items()}, run.plan)


def _until_stopped(run: Run, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yields batches on the device of the run, until a signal to stop came."""
    for batch in batches:
        if run.world.agree(run.stop_signaled):  # ranks with a divided model take as many passes
            return
        yield batch.to(run.world.device)
