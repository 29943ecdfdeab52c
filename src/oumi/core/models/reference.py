# SPDX-License-Identifier: Apache-2.0
"""The model before training, for methods that compare with it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from oumi.core.batch import Batch, Prediction
from oumi.core.distributed.sharding import free_gathered, reset_passes
from oumi.core.distributed.world import World
from oumi.core.models.acceleration.apply import accelerate
from oumi.core.models.build import build_model
from oumi.core.models.sharded import base_weights, shard_model
from oumi.core.plan.parts import Plan


def build_reference(plan: Plan, world: World, model: Any, is_copy: bool) -> Callable[[Batch], Prediction]:
    """Returns a function that computes the predictions of the model as the plan names it, before any step.

    That is a frozen copy; or the model in training, with its adapter disabled where the plan says so, as long as it has
    not taken a step otherwise.

    Args:
        plan: The plan of the run.
        world: This rank, on whose device the copy is.
        model: The model in training, as the loop calls it.
        is_copy: Load a copy.
    """
    reference, context = model, nullcontext
    if is_copy:
        if plan.sharding is not None:  # no backward pass needs its weights again
            plan = replace(plan, sharding=replace(plan.sharding, frees_after_forward=True))
        # With the same seed, a model with random weights begins with the weights that the run began with.
        with torch.random.fork_rng():
            torch.manual_seed(plan.seed)
            source = base_weights(plan, world)
            reference = accelerate(build_model(plan, world.device, weights_from=source).requires_grad_(False), plan)
            shard_model(reference, plan, world, source)
    elif not plan.method.copies_reference:
        context = model.inner.disable_adapter

    def predict(batch: Batch) -> Prediction:
        was_training = reference.training
        reference.eval()  # no dropout: the reference is deterministic
        if is_copy:  # each pass begins with slices, so that all ranks gather the same, also after a pass that failed
            free_gathered(reference)
        try:
            with torch.no_grad(), context():
                prediction: Prediction = reference(batch)
                return prediction
        except (RuntimeError, MemoryError):  # if memory ran out, the step is computed anew in smaller parts
            reset_passes(reference)
            raise
        finally:
            reference.train(was_training)

    return predict
