# SPDX-License-Identifier: Apache-2.0
"""Measures the validation set during a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from oumi.core.batch import Batch
from oumi.core.run import Callback, Objective, Run, StepReport


class Evaluation(Callback):
    """Tells `eval_loss` and `eval_perplexity`, the mean over all terms of the validation set."""

    def __init__(self, batches: Callable[[], Iterable[Batch]], objective: Objective) -> None:
        self._batches = batches
        self._objective = objective

    def step_end(self, run: Run, report: StepReport) -> None:  # type: ignore[override]  # our own loop shows a whole Run
        plan, step = run.plan.evaluation, run.state.step
        is_due = plan.every_steps and step % plan.every_steps == 0
        if is_due or (plan.every_epoch and run.loader.ends_epoch(step)):
            loss = evaluate(run, self._batches(), self._objective)
            run.callbacks.measured(run, {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 700.0))})


@torch.no_grad()
def evaluate(run: Run, batches: Iterable[Batch], objective: Objective) -> float:
    """Returns the mean of an objective over all terms of the batches; the model trains on as before."""
    total = torch.zeros((), dtype=torch.float64, device=run.world.device)
    num_terms = 0
    run.model.eval()
    for batch in batches:
        with run.autocast():
            total += objective(run.model, batch.to(run.world.device))
        num_terms += batch.num_terms
    run.model.train()
    return total.item() / max(num_terms, 1)
