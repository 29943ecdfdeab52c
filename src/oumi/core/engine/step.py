# SPDX-License-Identifier: Apache-2.0
"""One optimizer step."""

from __future__ import annotations

import torch

from oumi.core.batch import Batch
from oumi.core.engine.gradients import add_gradients
from oumi.core.run import Run, StepReport


def take_step(run: Run, micro_batches: list[Batch]) -> StepReport:
    """Takes one optimizer step, as if the micro-batches of all ranks were one big batch.

    A loss is a sum over terms (trained tokens, or pairs), divided by the global number of terms. So 1 x 8 rows,
    4 x 2 rows and any order of them give the same gradients.
    """
    counts = [(run.method.num_terms(batch), batch.num_targets, batch.num_tokens) for batch in micro_batches]
    num_terms, num_targets, num_tokens = run.world.sum(torch.tensor(counts).sum(0)).tolist()
    mean = add_gradients(run, micro_batches, num_terms)
    run.parameters.sum_gradients()
    run.scaler.unscale_(run.optimizer)
    sums = run.world.sum(mean.flat())
    # The only wait for the device, but for float16's scale: no weight moves before these are known to be finite.
    norm = run.parameters.clip_gradients(run.optimizer, run.plan.optimizer.max_grad_norm)
    grad_norm, *values = torch.cat([norm.to(sums.dtype)[None], sums]).tolist()
    report = StepReport(
        loss=values[0],
        grad_norm=grad_norm,
        learning_rate=run.optimizer.param_groups[0]["lr"],
        num_targets=num_targets,
        num_tokens=num_tokens,
        extra=mean.means(values),
    )
    run.callbacks.before_update(run, report, micro_batches)
    scale = run.scaler.get_scale()
    run.scaler.step(run.optimizer)
    run.scaler.update()
    if run.scaler.get_scale() >= scale:  # float16 skips the update where its scaled gradient overflows
        run.schedule.step()
    run.optimizer.zero_grad(set_to_none=True)
    return report
