# SPDX-License-Identifier: Apache-2.0
"""Evaluates the validation set during a run."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable

import torch

from oumi.core.batch import Batch
from oumi.core.checkpoint.best import track_best
from oumi.core.distributed.sharding import free_gathered
from oumi.core.plan.parts import Plan
from oumi.core.run import Callback, Run, StepReport


class Evaluation(Callback):
    """Reports `eval_loss` and the metrics of the method, as means over all terms of the validation set.

    For losses per token, it also reports `eval_perplexity`.
    """

    def __init__(self, batches: Callable[[], Iterable[Batch]]) -> None:
        self._batches = batches

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
        metrics = evaluate(run, self._batches())
        run.state.awaits_evaluation = metrics is None
        if metrics is None:
            run.stop_requested = True
            return
        run.callbacks.measured(run, {**metrics, **track_best(run, metrics)})


def with_perplexity(metrics: dict[str, float], plan: Plan, prefix: str = "eval") -> dict[str, float]:
    """Returns metrics with the perplexity that belongs to their loss, if that is a mean over tokens."""
    if plan.method.spec.is_per_token:
        # math.exp raises OverflowError above 709.
        metrics[f"{prefix}_perplexity"] = math.exp(min(metrics[f"{prefix}_loss"], 700.0))
    return metrics


@torch.no_grad()
def evaluate(run: Run, batches: Iterable[Batch]) -> dict[str, float] | None:
    """Returns the mean loss over all terms of the batches of all ranks, and the means of the method's metrics.

    For losses per token, it also returns the perplexity. Names begin with `eval_`. None if a signal to stop came
    meanwhile. The model is in training mode afterwards.
    """
    # Sums in float64, divided once at the end: a mean of means would weigh short batches too much.
    sums: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), dtype=torch.float64, device=run.world.device))
    run.model.eval()
    for batch in batches:
        if run.world.agree(run.stop_signaled):  # ranks with a divided model take as many passes
            break
        with run.autocast():
            loss = run.method.loss(run.model, batch.to(run.world.device))
        for name, value in {"loss": loss.total, **loss.metrics}.items():
            sums[name] += value
        sums["terms"] += run.method.num_terms(batch)
    run.model.train()
    free_gathered(run.model)
    if run.world.agree(run.stop_signaled):
        return None
    # One collective operation for all sums.
    values = run.world.sum(torch.stack(list(sums.values()))).tolist()
    means = dict(zip(sums, values, strict=True))
    num_terms = max(means.pop("terms"), 1)
    return with_perplexity({f"eval_{name}": value / num_terms for name, value in means.items()}, run.plan)
