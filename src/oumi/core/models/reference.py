# SPDX-License-Identifier: Apache-2.0
"""The model as it was before the training, for methods that compare with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from oumi.core.batch import Batch, Prediction
from oumi.core.models.acceleration.apply import accelerate
from oumi.core.models.build import build_model
from oumi.core.plan.parts import Plan


def build_reference(plan: Plan, device: torch.device, model: Any) -> Callable[[Batch], Prediction]:
    """Returns what gives the predictions of the model as the plan names it, before any step.

    Below an adapter of this run the weights stay as they are, so the model itself answers with its adapter disabled.
    Otherwise a frozen copy is loaded.

    Args:
        plan: Of the run.
        device: Of the copy.
        model: The model in training, as the loop calls it.
    """
    if plan.lora is not None and plan.model.adapter is None:

        def without_adapter(batch: Batch) -> Prediction:
            was_training = model.training
            model.eval()  # no dropout: the reference is one model, not a random one
            try:
                with torch.no_grad(), model.inner.disable_adapter():
                    prediction: Prediction = model(batch)
                    return prediction
            finally:
                model.train(was_training)

        return without_adapter
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed)  # random weights are those that the run began with
        copy = accelerate(build_model(plan, device).requires_grad_(False), plan).eval()

    def frozen(batch: Batch) -> Prediction:
        with torch.no_grad():
            prediction: Prediction = copy(batch)
            return prediction

    return frozen
